"""Some of PyTorch's own functions, others in every run, replayed bit for bit and planned; see `tests.opinfo`."""

from __future__ import annotations

import os
import random
import time

import pytest
from torch.testing._internal.common_methods_invocations import op_db

from tests.opinfo import of_function

SEED = int(os.environ.get("MLI_FAST_SEED", str(time.time_ns() // 1_000_000_000)))
PARTS, EACH = 8, 12


@pytest.mark.parametrize("part", range(PARTS))
def test_functions_of_the_database_are_replayed_bit_for_bit(part: int) -> None:
    chosen = random.Random(SEED).sample(op_db, PARTS * EACH)[part * EACH : (part + 1) * EACH]
    found = [(op.name, *verdict) for op in chosen for verdict in of_function(op, most=2)]
    bad = [f for f in found if not f[2].startswith(("right", "fails in PyTorch", "refused"))]
    assert not bad, f"MLI_FAST_SEED={SEED}, each alone: python -m tests.opinfo NAME; {bad}"
    assert len(found) > EACH
