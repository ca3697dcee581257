"""Peak memory beyond the two checkpoints and the data, against the size of one parameter set."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import describe
from benchmarks.measure import OURS

VARIANTS = (OURS, "plain_loop", "vmap")
LIMIT = 2.5  # x |theta|, asked of mli_fast on the main row


@dataclass(frozen=True)
class MemoryRow:
    title: str
    widths: tuple[int, ...]
    examples: int
    points: int
    per_point: int  # bytes vmap needs for one point, roughly: its parameters twice (blend and result)


ROWS = {
    "main": MemoryRow("MLP 1024-4096-4096-10, 1,024 examples", (1024, 4096, 4096, 10), 1024, 50, 170_000_000),
    "quick": MemoryRow("MLP 256-1024-1024-10, 512 examples", (256, 1024, 1024, 10), 512, 10, 12_000_000),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory(variant: str, benchmark: Any, summary: dict[str, Any], request: pytest.FixtureRequest) -> None:
    sizes = request.config.getoption("--sizes")
    if sizes not in ROWS:
        pytest.skip("memory is measured with the main row or the quick one")
    row = ROWS[sizes]
    points = row.points if variant != "plain_loop" else 5  # it holds one at a time
    if variant == "vmap":
        fits = int(describe()["memory_gib"] * 2**30 * 0.6 / row.per_point)
        points = max(1, min(points, fits))  # its memory is linear in the points: fewer where all would not fit
    found = benchmark.pedantic(_measure, args=(variant, row, points), rounds=1)
    benchmark.extra_info.update(found)
    summary["memory"] = summary["memory"] or {"title": row.title, "limit": LIMIT, "variants": {}}
    summary["memory"]["variants"][variant] = found
    if variant == OURS and "reason" in found:
        pytest.fail(found["reason"], pytrace=False)


def _measure(variant: str, row: MemoryRow, points: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", variant, str(points), str(row.examples)]
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        command + [str(width) for width in row.widths], cwd=root, capture_output=True, text=True, check=False
    )
    if child.returncode:
        errors = [line for line in child.stderr.splitlines() if "Error" in line]
        return {"reason": (errors or [f"exit status {child.returncode}"])[-1][:200]}
    return json.loads(child.stdout.strip().splitlines()[-1])
