"""blend: sum_r c[p, r] * anchor_r for P points, rounded once to the compute dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import native_serves
from mli_fast.ops.blend import reference
from mli_fast.ops.points import as_operator


def blend(
    anchors: Sequence[Tensor],  # R x [*shape]
    coefficients: Tensor,  # [P, R] float64
    dtype: torch.dtype,
) -> Tensor:  # [P, *shape]
    """Blend R anchors at P points; a coefficient of exactly 0 leaves its anchor out.

    Args:
        anchors: R tensors of one shape.
        coefficients: float64 [P, R].
        dtype: the result's dtype; the sum is taken in float32, or float64 for float64 anchors or results.
    """
    if dtype == torch.float32 and all(a.is_contiguous() for a in anchors) and native_serves("blend", *anchors):
        out = torch.empty(len(coefficients), *anchors[0].shape, dtype=dtype)
        rows = list(out)
        native.blend(rows, [anchors] * len(rows), coefficients.contiguous())
        return out
    return reference.blend(anchors, coefficients, dtype)


def blend_at(anchors: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """`blend` at one point, coefficients [R]; may be called under vmap and torch.compile."""
    if as_operator():
        return blend_op(list(anchors), coefficients, dtype)
    return blend(anchors, coefficients[None], dtype)[0]


@torch.library.custom_op("mli_fast::blend", mutates_args=())
def blend_op(anchors: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """`blend` at one point (coefficients [R]) as a PyTorch operator."""
    return blend(anchors, coefficients[None], dtype)[0]


@blend_op.register_fake
def _(anchors: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(anchors[0], dtype=dtype, memory_format=torch.contiguous_format)


@blend_op.register_vmap
def _(info, in_dims, anchors, coefficients, dtype):  # type: ignore[no-untyped-def]
    return blend(anchors, coefficients.movedim(in_dims[1], 0), dtype), 0
