"""`python -m benchmarks.zoo`: every model in a process of its own, the table into benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.zoo import timm_models, torch_layers, torchvision_names, transformers_models
from benchmarks.zoo.judge import judged
from benchmarks.zoo.specimen import Entry, NoSpecimen

RESULTS = Path(__file__).parents[1] / "results"
FORK = multiprocessing.get_context("fork")  # the imports are done once
SOURCES = {"torch.nn": torch_layers, "transformers": transformers_models, "timm": timm_models}
CHECKS = ("agrees", "replay_bitwise", "chunks", "order", "alone", "ends")


def _work(entry: Entry, answer: Connection, quiet: bool) -> None:
    torch.set_num_threads(1)
    if quiet:  # what models print is no part of the table
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    try:
        try:
            specimen = entry.make()
        except Exception as error:
            raise NoSpecimen(f"{type(error).__name__}: {error}") from error
        row = judged(specimen) | {"model": type(specimen.model).__name__}
    except NoSpecimen as error:
        row = {"status": "not built", "reason": str(error)[:300]}
    except BaseException as error:  # noqa: BLE001 - it is a line of the table
        row = {"status": "error", "reason": f"{type(error).__name__}: {error}"[:600]}
    answer.send(row)


def rows(
    entries: Iterator[Entry], wanted: int, jobs: int, limit: float, quiet: bool = True
) -> Iterator[dict[str, Any]]:
    """A row per entry that can be built, until there are `wanted`."""
    running: dict[Connection, tuple[Entry, Any, float]] = {}
    found, more = 0, True
    while more or running:
        while more and len(running) < jobs and found + len(running) < wanted:
            entry = next(entries, None)
            if entry is None:
                more = False
                break
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_work, args=(entry, theirs, quiet))
            process.start()
            theirs.close()
            running[ours] = entry, process, time.monotonic()
        if found >= wanted and not running:
            return
        ready = wait(list(running), timeout=1.0)
        for connection, (entry, process, started) in list(running.items()):
            if connection in ready:
                try:
                    row = connection.recv()
                except EOFError:
                    process.join()
                    row = {"status": "crash", "reason": f"the process ended with {process.exitcode}"}
            elif time.monotonic() - started > limit:
                process.kill()
                row = {"status": "timeout", "reason": f"not done in {limit:g} s"}
            else:
                continue
            process.join()
            del running[connection]
            found += row["status"] != "not built"
            yield {"group": entry.group, "name": entry.name, **row}


def line(row: dict[str, Any]) -> str:
    """The row as a line of the Markdown table."""
    marks = ["" if row.get(key) is None else "yes" if row[key] else "**no**" for key in CHECKS[1:]]
    error, own = (f"{row[key]:.1e}" if row.get(key) is not None else "" for key in ("error", "plain_error"))
    ratio = f"{row['time_ratio']:.2f}" if "time_ratio" in row else ""
    reason = row.get("reason", "").split("\n")[0].replace("|", "/")[:110]
    cells = [row["group"], row["name"], row["status"], row.get("engine", ""), error, own, *marks, ratio, reason]
    return "| " + " | ".join(cells) + " |"


def table(found: list[dict[str, Any]]) -> str:
    """All rows that were judged, and how many of each kind."""
    counts = Counter((row["group"], row["status"], row.get("engine", "")) for row in found)
    summary = [f"| {g} | {s} | {e} | {n} |" for (g, s, e), n in sorted(counts.items()) if s != "not built"]
    head = ["group", "model", "status", "engine", "off fp64", "plain off fp64", "replay = plain", "chunks", "order",
            "alone", "ends", "time / plain loop", "why plain"]  # fmt: skip
    return "\n".join(
        ["| group | status | engine | models |", "|---|---|---|---|", *summary, ""]
        + ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        + [line(row) for row in found if row["status"] != "not built"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="comma-separated groups or names")
    parser.add_argument("--count", type=int, default=100, help="models per source")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=150.0, help="seconds per model")
    parser.add_argument("--loud", action="store_true", help="show what models print")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo.json", help="the table goes beside it, as .md")
    chosen = parser.parse_args()
    only = set(chosen.only.split(",")) if chosen.only else None
    found: list[dict[str, Any]] = []
    if only and chosen.out.exists():  # the other lines stay
        before = json.loads(chosen.out.read_text())["rows"]
        found = [row for row in before if not {row["group"], row["name"], _source(row["group"])} & only]
    torch.set_num_threads(1)
    torchvision_names.importable()
    for source, module in SOURCES.items():
        entries = [e for e in module.entries() if only is None or {e.group, e.name, source} & only]
        wanted = len(entries) if source == "torch.nn" else chosen.count
        for row in rows(iter(entries), wanted, chosen.jobs, chosen.limit, not chosen.loud):
            found.append(row)
            print(line(row), flush=True)
            document = {
                "rows": found,
                "machine_info": machine.describe(),
                "versions": machine.versions()
                | {n: _version(n) for n in ("timm", "transformers", "peft", "torchvision")},
                "datetime": time.strftime("%Y-%m-%dT%H:%M:%S"),
                "layers_of_torch_not_listed": torch_layers.unlisted(),
            }
            chosen.out.write_text(json.dumps(document, indent=1, default=str) + "\n")
            chosen.out.with_suffix(".md").write_text(table(found) + "\n")
    print(Counter((row["group"], row["status"], row.get("engine", "")) for row in found))


def _source(group: str) -> str:
    return "transformers" if group == "peft" else group


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
