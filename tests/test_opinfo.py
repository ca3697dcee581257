"""Some of PyTorch's own functions, others in every run, replayed bit for bit and planned; see `tests.opinfo`.

In a process of its own: PyTorch's database sets switches when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("MLI_FAST_SEED", str(time.time_ns() // 1_000_000_000)))
PARTS, EACH = 4, 25
# What is not initialised; and complex products in batches, which PyTorch folds while a pass is recorded
LAST_BIT = ("empty", "new_empty", "matmul", "__rmatmul__")


@pytest.mark.parametrize("part", range(PARTS))
def test_functions_of_the_database_are_replayed_bit_for_bit(part: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.opinfo", "--some", str(EACH), str(SEED + part)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *bad, counts = done.stdout.strip().split("\n")
    wrong = [line for line in bad if " refused: " not in line and not line.startswith(LAST_BIT)]
    assert not wrong, f"MLI_FAST_SEED={SEED}, each alone: python -m tests.opinfo NAME; {wrong}"
    assert "'right'" in counts
