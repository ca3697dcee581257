"""blend: sum_r c[p, r] * anchor_r for P points, rounded once to the compute dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.blend import reference
from mli_fast.ops.dispatch import choose
from mli_fast.ops.points import as_operator, placed


def blend(
    anchors: Sequence[Tensor],  # R x [*shape]
    coefficients: Tensor,  # [P, R] float64
    dtype: torch.dtype,
    scale: Tensor | None = None,  # [P, shape[0]]
) -> Tensor:  # [P, *shape]
    """Blend R anchors at P points; a coefficient of exactly 0 leaves its anchor out.

    Args:
        anchors: R tensors of one shape.
        coefficients: float64 [P, R].
        dtype: the result's dtype; the sum is taken in float32, or float64 for float64 anchors or results.
        scale: factors along dimension 0, applied before rounding: how a batch norm is folded into a convolution.
    """
    on_gpu = anchors[0].is_cuda

    def fits(kernel: str) -> bool:
        if not all(a.is_contiguous() for a in anchors):
            return False
        if kernel == "native" and on_gpu:
            return native.cuda.takes_blend(anchors[0].dtype, dtype)
        return kernel != "native" or (scale is None and dtype == torch.float32)

    kernel = choose("blend", (*anchors, scale), fits=fits)
    if kernel == "triton":
        from mli_fast.ops.blend import triton as kernels

        return kernels.blend(anchors, placed(coefficients, anchors[0].device), dtype, scale)
    if kernel == "native" and on_gpu:
        return native.cuda.blend(anchors, placed(coefficients, anchors[0].device), dtype, scale)
    if kernel == "native":
        out = torch.empty(len(coefficients), *anchors[0].shape, dtype=dtype)
        rows = list(out)
        native.blend(rows, [anchors] * len(rows), coefficients.contiguous())
        return out
    return reference.blend(anchors, coefficients, dtype, scale)


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
