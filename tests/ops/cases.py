"""What every op is checked with: coefficients, routes, backends, and the one rule for how exact it has to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import usable

ROUTES = ("alone", "together", "shared")
needs_native = pytest.mark.skipif(native.module() is None, reason="no compiled kernels here")
needs_triton = pytest.mark.skipif(not usable("triton", "cpu"), reason="Triton is not interpreted here")
BACKENDS = (
    "reference",
    pytest.param("native", marks=needs_native),
    pytest.param("triton", marks=[needs_triton, pytest.mark.slow]),  # by its interpreter
)


def generator(*seeds: int) -> torch.Generator:
    """A generator of its own for every case."""
    return torch.Generator().manual_seed(hash(seeds) % 2**31)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Standard normal float32."""
    return torch.randn(shape, generator=g)


def coefficients(g: torch.Generator, points: int, anchors: int) -> Tensor:
    """[P, R] float64: the first point is the last anchor alone, the others are anywhere."""
    c = torch.rand(points, anchors, generator=g, dtype=torch.float64) * 2 - 0.5
    c[0] = 0.0
    c[0, -1] = 1.0
    return c


def blended(anchors: Sequence[Tensor], row: Tensor, dtype: torch.dtype) -> Tensor:
    """One point's parameter, summed in float64."""
    return sum(c * a.double() for c, a in zip(row.tolist(), anchors, strict=True)).to(dtype)  # type: ignore[union-attr]


def evaluated(
    route: str,
    op: Callable[[Tensor, Tensor], Tensor],
    of_shared: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    c: Tensor,
) -> Tensor:
    """An op at P points: each by itself, all in one call, or by the products of an input that they share.

    Args:
        route: of `ROUTES`.
        op: the op, of inputs [P, ...] and coefficients [P, R].
        of_shared: the same of one input [...].
        x: [P, ...]; the shared route uses x[0] for all points.
        c: [P, R].
    """
    if route == "alone":
        return torch.cat([op(x[p : p + 1], c[p : p + 1]) for p in range(len(c))])
    return op(x, c) if route == "together" else of_shared(x[0], c)


def inputs_of(route: str, x: Tensor) -> Tensor:
    """The inputs that `evaluated` used, one per point."""
    return x[:1].expand_as(x) if route == "shared" else x


def assert_as_exact_as_torch(ours: Tensor, exact: Tensor, theirs: Tensor) -> None:
    """Our error against float64 is at most twice that of PyTorch's own op, and a few units in the last place."""
    assert ours.shape == exact.shape
    if exact.numel() == 0:
        return
    allowed = 2 * (theirs.double() - exact).abs().max() + 4 * torch.finfo(theirs.dtype).eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= allowed
