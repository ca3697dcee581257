"""Seeded tensors, and the measure of accuracy: PyTorch's own operation against float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mli_fast import native

needs_kernels = pytest.mark.skipif(native.module() is None, reason=f"no compiled kernels: {native.why_missing()}")

DTYPES = [torch.float32, torch.float64]
ISAS = native.module().usable_isas() if native.module() is not None else ["none"]  # type: ignore[union-attr]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def mixed(anchors: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Blend in float64 of anchors that are finite: [P, ...]."""
    return torch.tensordot(coefficients, torch.stack(list(anchors)).double(), 1)


def assert_as_good_as_torch(actual: Tensor, vendor: Tensor, reference: Tensor) -> None:
    """Error against fp64 at most twice that of torch's own operation, floored at a few roundings of the largest."""
    assert actual.shape == reference.shape
    if not reference.numel():
        return
    roundings = (
        4 if actual.dtype == torch.float32 else 256
    )  # float64 has no wider reference: two orders of summation differ
    floor = roundings * torch.finfo(actual.dtype).eps * float(reference.abs().max())
    allowed = 2 * float((vendor.double() - reference).abs().max()) + floor
    assert float((actual.double() - reference).abs().max()) <= allowed


def one(coefficients: Sequence[float]) -> Tensor:
    return torch.tensor([list(coefficients)], dtype=torch.float64)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)
