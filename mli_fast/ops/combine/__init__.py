"""combine: the shared-input route; R products of an input that is the same at every point become P points' values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.combine import reference
from mli_fast.ops.dispatch import PLAIN, choose
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.memory import as_rows, packed, placed, stack


def combine(
    products: Sequence[Tensor],  # R x [*shape]
    coefficients: Tensor,  # [P, R] float64
    epilogue: Epilogue,
    channel: int,
    dtype: torch.dtype,
) -> Tensor:  # [P, *shape]
    """activation((sum_r c[p, r] products[r]) * scale + shift + residual) at P points.

    Args:
        products: R tensors of one shape, in the dtype the sum is to be taken in.
        coefficients: float64 [P, R]; exactly 0 leaves its product out.
        epilogue: bias, residual and activation, for P points.
        channel: the dimension of a product that `scale` and `shift` run along, 1 or -1.
        dtype: the result's dtype.
    """
    rows = [as_rows(p, channel) for p in products]
    residuals = None if epilogue.residual is None else [as_rows(r, channel) for r in epilogue.residual]
    laid_out = all(r is not None for r in (*rows, *(residuals or ())))

    def fits(kernel: str) -> bool:
        return laid_out and (kernel != "native" or dtype == torch.float32)

    kernel = choose("combine", (*products, *epilogue[:3]), fits=fits)
    if kernel == PLAIN:
        return reference.combine(products, coefficients, epilogue, channel, dtype)
    what_follows: dict[str, Any] = {
        "scale": packed(epilogue.scale),
        "shift": packed(epilogue.shift),
        "residual": None if residuals is None else stack(residuals),  # type: ignore[arg-type]
        "activation": epilogue.activation,
    }
    if kernel == "triton":
        from mli_fast.ops.combine import triton as kernels

        there = placed(coefficients, products[0].device)
        out = kernels.combine(rows, there, dtype=dtype, **what_follows)  # type: ignore[arg-type]
    else:
        out = native.combine(rows, coefficients.contiguous(), **what_follows)  # type: ignore[arg-type]
    shape = products[0].movedim(channel, -1).shape
    return out.view(len(out), *shape).movedim(-1, channel + 1 if channel >= 0 else channel)
