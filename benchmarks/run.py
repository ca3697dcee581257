"""The single command: `python -m benchmarks.run` measures everything and writes one JSON to benchmarks/results/."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks through pytest-benchmark; its exit code is returned."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of under 90 s on small data")
    parser.add_argument("--sizes", choices=("main", "other"), default="main", help="the table's rows, or other shapes")
    parser.add_argument("-k", "--only", help="only the rows this pytest -k expression selects, e.g. 'vit or memory'")
    parser.add_argument("--whole", action="store_true", help="peers are timed at all points, where a sample would do")
    parser.add_argument("--minutes", type=float, help="wall time for the sweeps (default 9)")
    parser.add_argument("--out", type=Path, help="the JSON to write (default benchmarks/results/<sizes>-<time>.json)")
    chosen = parser.parse_args(arguments)
    sizes = "quick" if chosen.quick else chosen.sizes
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    out = chosen.out or FOLDER / "results" / f"{sizes}-{stamp}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    minutes = chosen.minutes or (0.4 if chosen.quick else 9)
    files = [str(FOLDER / "bench_sweep.py"), str(FOLDER / "bench_memory.py")]
    command = [*files, "--benchmark-only", f"--benchmark-json={out}", "--benchmark-columns=min,median,max,rounds"]
    command += ["--sizes", sizes, "--minutes", str(minutes), "--rootdir", str(FOLDER.parent), "-q"]
    # The compiler logs megabytes at debug level, which pytest would show with the first failure.
    command += ["-p", "no:cacheprovider", "-p", "no:logging"]
    if chosen.whole:
        command.append("--whole")
    if chosen.only:
        command += ["-k", chosen.only]
    started = datetime.now().timestamp()
    code = int(pytest.main(command))
    print(f"written: {out}" if out.exists() and out.stat().st_mtime >= started else "nothing was written")
    return code


if __name__ == "__main__":
    sys.exit(main())
