"""What every test shares: the hypothesis profile, and a switch that forces one engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples on every run, so that a red run is a change of ours; `--hypothesis-profile=explore` looks further.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=400)
settings.load_profile("default")


@pytest.fixture(params=["loop", "vmap"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once under each engine."""
    from mli_fast.engine import forced

    with forced(request.param):
        yield request.param
