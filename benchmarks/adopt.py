"""Measured kernels into the dispatch table: `python -m benchmarks.adopt FILE` on what bench_kernels.py wrote."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from mli_fast.ops.dispatch import FIGURES

KEY = ("op", "kernel", "dtype", "shape_class", "arch")


def merged(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of both, a new one in the place of an old one of the same key, sorted.

    Args:
        old: rows of the figures file.
        new: rows of the same form, one per key.
    """
    rows = {tuple(row[k] for k in KEY): dict(row) for row in (*old, *new)}
    return [rows[key] for key in sorted(rows)]


def write(new: Iterable[Mapping[str, Any]], path: Path = FIGURES) -> None:
    """Merge `new` into the figures file, a row a line, so that a change of one is a change of one line."""
    rows = merged(json.loads(path.read_text()), new)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def summarised(rows: Iterable[Mapping[str, Any]], **about: Any) -> list[dict[str, Any]]:
    """One row for each key: the geometric mean of the ratios of its shapes.

    Args:
        rows: with the fields of `KEY`, `shape` (any text) and `ratio`, the vendor's time over the kernel's.
        about: fields that every row of the result gets, such as the date.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in KEY), []).append(row)
    return [
        dict(zip(KEY, key, strict=True))
        | {"ratio": round(statistics.geometric_mean(r["ratio"] for r in group), 3)}
        | {"worst": round(min(r["ratio"] for r in group), 3), "shapes": sorted({str(r["shape"]) for r in group})}
        | about
        for key, group in groups.items()
    ]


def cpu_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ratios in a JSON of pytest-benchmark: PyTorch's operations over the compiled kernel, group by group."""
    groups: dict[str, dict[str, Any]] = {}
    for entry in found["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["params"]["way"]] = entry
    rows = []
    for name, ways in groups.items():
        kept = ways["native"]["extra_info"]
        ratio = ways["torch"]["stats"]["median"] / ways["native"]["stats"]["median"]
        row = {"op": kept["op"], "kernel": "native", "dtype": "float32", "shape_class": kept["shape_class"]}
        rows.append(row | {"arch": "cpu", "shape": name, "ratio": ratio})
    return rows


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.adopt FILE")
    found = json.loads(Path(sys.argv[1]).read_text())
    about = {"on": machine.describe()["cpu"], "date": found["datetime"][:10], "torch": machine.versions()["torch"]}
    write(summarised(cpu_rows(found), **about))


if __name__ == "__main__":
    main()
