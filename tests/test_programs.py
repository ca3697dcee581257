"""Fresh random networks in every run, in every mode, held against plain PyTorch; see `tests.programs`."""

from __future__ import annotations

import os
import time

import pytest

from tests.programs import judged

COUNT = int(os.environ.get("MLI_FAST_PROGRAMS", "300"))
FIRST = int(os.environ.get("MLI_FAST_SEED", str(time.time_ns() // 1_000_000_000 % 1_000_000 * 1000)))
PARTS = 10
GOOD = ("right", "float32 itself is off", "fails in PyTorch")


@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_are_right_in_every_mode(part: int) -> None:
    found = {seed: judged(seed) for seed in range(FIRST + part, FIRST + COUNT, PARTS)}
    wrong = {seed: verdict for seed, verdict in found.items() if verdict[0] not in GOOD}
    assert not wrong, f"MLI_FAST_SEED={FIRST}, each alone: python -m tests.programs 1 SEED; {wrong}"
    right = [engine for verdict, engine in found.values() if verdict == "right"]
    assert len(right) > 0.8 * len(found), "few networks say anything"
    assert right.count("plain") <= 1, "networks are refused"
