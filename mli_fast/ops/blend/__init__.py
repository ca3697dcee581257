"""blend: sum_r c[p, r] * anchor_r for P points, rounded once to the compute dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.blend import reference
from mli_fast.ops.dispatch import choose
from mli_fast.ops.memory import placed


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
        out = torch.empty(len(coefficients), *anchors[0].shape, dtype=dtype, device=anchors[0].device)
        rows = list(out)
        native.blend(rows, [anchors] * len(rows), coefficients.contiguous())
        return out
    return reference.blend(anchors, coefficients, dtype, scale)
