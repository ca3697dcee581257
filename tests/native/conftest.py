"""Every instruction set this processor has, and any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mli_fast import native
from tests.native.helpers import ISAS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once per instruction set this processor has."""
    module = native.module()
    assert module is not None
    before = module.isa()
    module.set_isa(request.param)
    yield request.param
    module.set_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the number of torch threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
