"""All that a GPU has to show, in one JSON: `python -m benchmarks.gpu.run`, or `make gpu-check`.

Every part runs in processes of its own and has a deadline; what fails or runs out of time is recorded as such and the
rest goes on. The file is written after every part. Exit status: 0; 1 if a test failed, a value was wrong or a part
broke down; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import suites
from benchmarks.gpu.about import NO_GPU, ROOT
from benchmarks.gpu.measuring import begin, measured
from benchmarks.gpu.process import Running

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Part:
    """One part: what does it, and its share of the time."""

    name: str
    run: Callable[[Path, float, Callable[[dict[str, Any]], None]], dict[str, Any]]
    share: float  # about the seconds it needs; what one leaves over goes to those after it


def measuring(name: str) -> Callable[..., dict[str, Any]]:
    """A part that a child process measures."""
    return partial(measured, name)


PARTS = (
    Part("build", suites.build, 65),
    Part("tests", suites.tested, 95),
    Part("sanitizer", suites.sanitizer, 40),
    Part("ceilings", measuring("ceilings"), 10),
    Part("tuning", measuring("tuning"), 25),
    Part("kernels", measuring("kernels"), 100),
    Part("sweeps", measuring("sweeps"), 105),
    Part("memory", measuring("memory"), 12),
)
NAMES = tuple(part.name for part in PARTS)
TIMED = ("ceilings", "tuning", "kernels", "sweeps", "memory")  # nothing else may run beside these


def main(arguments: list[str] | None = None, parts: tuple[Part, ...] = PARTS) -> int:
    """Parse, look for a GPU, run; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.run", description=__doc__)
    parser.add_argument("--only", help=f"the parts to run, separated by commas, of {','.join(NAMES)}")
    parser.add_argument("--minutes", type=float, default=7.5, help="wall time for everything (default 7.5)")
    parser.add_argument("--out", type=Path, help="a folder that gets the JSON too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for the JSON (benchmarks/results)")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    known = {part.name: part for part in parts}
    names = list(known) if chosen.only is None else [n for n in chosen.only.split(",") if n]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(known)}")
    about = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.about"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if about.returncode:
        print((about.stderr.strip().splitlines() or ["gpu-check could not look at this machine."])[-1], file=sys.stderr)
        return NO_GPU
    now = datetime.now(UTC)
    report: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"),
        **json.loads(about.stdout.strip().splitlines()[-1]),
    }
    report |= {"arguments": {"minutes": chosen.minutes, "only": names}, "parts": {}, "failures": []}
    file = f"gpu-{now:%Y%m%d-%H%M%S}.json"
    targets = [folder / file for folder in (chosen.results, chosen.out) if folder is not None]
    run_parts([known[name] for name in names], report, started, started + 60 * chosen.minutes, partial(write, targets))
    for failure in report["failures"]:
        print(f"FAILED {failure}")
    print(f"written: {', '.join(map(str, targets))} ({report['seconds']:.0f} s)")
    return int(bool(report["failures"]))


def write(targets: list[Path], report: dict[str, Any]) -> None:
    """The report into every target, whole or not at all."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_suffix(".part")
        beside.write_text(json.dumps(plain(report), indent=1, default=str, allow_nan=False))
        os.replace(beside, target)


def plain(value: Any) -> Any:
    """What JSON can hold: NaN and infinities by their names."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_parts(
    parts: list[Part], report: dict[str, Any], started: float, ends: float, save: Callable[[dict[str, Any]], None]
) -> None:
    """Run the parts one after the other; what is measured later compiles beside the build and the tests."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    later = {p.name for p in parts} if parts and parts[0].name not in TIMED else set()
    warming = warm(folder, ends, later)
    try:
        for index, part in enumerate(parts):
            if part.name in TIMED:
                while warming:
                    warming.pop().stop()
            begun = time.monotonic()
            limit = (ends - begun) * part.share / sum(p.share for p in parts[index:])
            entry: dict[str, Any] = {"limit_s": round(limit, 1)}

            def keep(result: dict[str, Any], entry: dict[str, Any] = entry, name: str = part.name) -> None:
                report["parts"][name] = entry | result
                report["seconds"] = round(time.monotonic() - started, 1)
                save(report)

            print(f"{part.name}: up to {limit:.0f} s", flush=True)
            place = folder / part.name
            place.mkdir(exist_ok=True)
            try:
                result = part.run(place, begun + limit, keep)
            except Exception as error:  # noqa: BLE001  one part that breaks down leaves the others
                result = {"failed": f"{type(error).__name__}: {error}"}
            entry["seconds"] = round(time.monotonic() - begun, 1)
            keep(result)
            report["failures"] = [
                f"{name}: {why}" for name, found in report["parts"].items() for why in failures_of(found)
            ]
            save(report)
            print(f"{part.name}: {entry['seconds']:.0f} s, {summary(result)}", flush=True)
            if part.name == "kernels":
                choose_by(report, folder / "figures.json")
    finally:
        os.environ.pop("MLI_FAST_FIGURES", None)
        for running in warming:
            running.stop()
        report["seconds"] = round(time.monotonic() - started, 1)
        save(report)


def choose_by(report: dict[str, Any], figures: Path) -> None:
    """From here on "auto" chooses by what the kernels of this run were measured to do."""
    from benchmarks.adopt import write as write_figures
    from benchmarks.gpu.adopt import figures_of
    from mli_fast.ops.dispatch import FIGURES

    shutil.copy(FIGURES, figures)
    new = figures_of(report, "this run")
    write_figures(new, figures)
    report["figures"] = new
    os.environ["MLI_FAST_FIGURES"] = str(figures)


def warm(folder: Path, ends: float, parts: set[str]) -> list[Running]:
    """Start compiling for what these parts measure; all is stopped before the first figure is taken."""
    from benchmarks.gpu import warming

    everything = warming.keys()
    keys = [key for key in everything if key.partition("/")[0] in parts]
    seconds = max(0.0, ends - time.monotonic())
    return [begin("warming", [key], folder / f"warming-{i}", seconds, ()) for i, key in enumerate(keys)]


def failures_of(result: dict[str, Any]) -> Iterator[str]:
    """What makes the exit status 1: failed tests, wrong values, parts and rows that broke down."""
    if "failed" in result:
        yield str(result["failed"])
    yield from (f"test {name}" for name in result.get("failures", ()))
    for key, row in result.get("rows", {}).items():
        if "failed" in row:
            yield f"{key}: {row['failed']}"
        for each in row.get("rows", ()):
            if each["correct"] is False:
                yield f"{key} by {each['route']}: {each['reason']}"
        ours = row.get("variants", {}).get("mli_fast", {})
        if ours.get("correct") is False or "failed" in ours:
            yield f"{key}: mli_fast: {ours.get('failed') or ours.get('reason')}"


def summary(result: dict[str, Any]) -> str:
    """One line on a part."""
    wrong = len(list(failures_of(result)))
    if "passed" in result:
        return f"{result['passed']} passed, {result['skipped']} skipped, {wrong} failed"
    if "rows" in result:
        return f"{len(result['rows'])} rows, {wrong} failed"
    return "failed" if wrong else result.get("reason", "done")


if __name__ == "__main__":
    sys.exit(main())
