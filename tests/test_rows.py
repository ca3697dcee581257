"""How many rows of an (X, y) pair go through at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mli_fast.engine.limits import LIMITS
from mli_fast.engine.rows import LEAST, rows_per_pass

CPU = torch.device("cpu")
LIMIT = LIMITS["cpu"]


@given(st.integers(0, 100_000), st.none() | st.integers(1, 2**26))
def test_batches_stay_within_the_limits_and_are_nearly_as_few_as_can_be(examples: int, widest: int | None) -> None:
    rows = rows_per_pass(examples, widest, CPU)
    most = LEAST if widest is None else max(LEAST, min(LIMIT.most_rows, LIMIT.activation_bytes // widest))
    assert 0 <= rows <= most
    if examples:
        fewest = -(-examples // most)
        assert -(-examples // rows) <= fewest + fewest // 4 + 1


@pytest.mark.parametrize(("examples", "rows"), [(400, 400), (500, 250), (1000, 250), (1200, 400), (401, 400), (7, 7)])
def test_batches_are_of_one_size_where_that_takes_few_more(examples: int, rows: int) -> None:
    assert rows_per_pass(examples, LIMIT.activation_bytes // 400, CPU) == rows
