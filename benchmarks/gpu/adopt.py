"""The measured kernels into the dispatch table: `python -m benchmarks.gpu.adopt results.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.adopt import summarised, write
from mli_fast.ops.dispatch import FIGURES

SAME_IN_TF32 = ("blend", "combine", "cross_entropy")  # no products: what holds for float32 holds there


def kernel_rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every row of the part "kernels", those that were not measured too."""
    for row in report["parts"].get("kernels", {}).get("rows", {}).values():
        yield from row.get("rows", ())


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of the kernels whose values were right at every shape of their class.

    A kernel's ratio is the time of the best of PyTorch's own operations, their weights blended by whichever kernel
    blends fastest, over its own: that is what "auto" chooses between.
    """
    wrong, found = set(), []
    for row in kernel_rows(report):
        if row["plain"]:
            continue
        if row["correct"] is False:  # the kernel has no name where it failed: then all of that backend are left out
            wrong.add((row["op"], row["kernel"] or row["route"], row["dtype"], row["shape_class"]))
        elif row.get("ms") and row.get("plain_ms"):
            found.append(row | {"ratio": row["plain_ms"] / row["ms"], "shape": shape_of(row)})
    kept = [
        row
        for row in found
        if not {(row["op"], name, row["dtype"], row["shape_class"]) for name in (row["kernel"], row["route"])} & wrong
    ]
    return kept + [row | {"dtype": "tf32"} for row in kept if row["op"] in SAME_IN_TF32 and row["dtype"] == "float32"]


def shape_of(row: Mapping[str, Any]) -> str:
    """The shape, with the other dtype where there is one."""
    return row["shape"] + (f" {row['other']}" if row.get("other") else "")


def figures_of(report: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """The rows of the table's figures that a report holds; `file` is what they say they come from."""
    about = {"on": report["gpu"]["name"], "date": report["date"][:10], "torch": report["versions"]["torch"]}
    return summarised(rows(report), **about, file=file)


def adopt(file: Path, figures: Path = FIGURES) -> int:
    """Merge the figures of a results file into the table's; how many classes of shapes there are."""
    new = figures_of(json.loads(file.read_text()), file.name)
    write(new, figures)
    return len(new)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.gpu.adopt results.json")
    print(f"{adopt(Path(sys.argv[1]))} figures written to {FIGURES.name}")


if __name__ == "__main__":
    main()
