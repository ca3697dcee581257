"""What every test shares: the hypothesis profile, and a switch that forces one engine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Triton decides when a kernel is defined whether it is compiled or interpreted: without a GPU the tests interpret.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every run, so that a red run is a change of ours; `--hypothesis-profile=explore` looks further.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=400)
settings.load_profile("default")


@pytest.fixture(params=["replay", "planned"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once under each engine."""
    from mli_fast.engine import forced

    with forced(request.param):
        yield request.param
