"""Shared products, combined at every point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast import buffers
from mli_fast.native.checks import addresses, check, check_coefficients, check_dtype, epilogue
from mli_fast.native.loading import require


def combine(
    products: Sequence[Tensor],  # R times [M, N]
    coefficients: Tensor,  # [P, R]
    *,
    scale: Tensor | None = None,  # [P, N] or [N]
    shift: Tensor | None = None,  # [P, N] or [N]
    residual: Tensor | None = None,  # [P, M, N] or [M, N]
    activation: str = "none",
    out: Tensor | None = None,  # [P, M, N]
) -> Tensor:
    """``act((sum_r coefficients[p, r] * products[r]) * scale + shift + residual)``: a layer whose input is shared.

    Args:
        products: The anchors' own products with the shared input, contiguous.
        coefficients: float64. A product whose coefficient is exactly 0 is not read.
        scale: Factor per column.
        shift: Summand per column.
        residual: Summand per element.
        activation: One of `ACTIVATIONS`.
        out: Written and returned if given.

    Returns:
        The output, [P, M, N].

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = require()
    points, coefficients_at = check_coefficients(coefficients, len(products))
    if not products or products[0].dim() != 2:
        raise ValueError(f"products: expected [M, N] each, got {[tuple(p.shape) for p in products]}")
    dtype = check_dtype("products", products[0])
    rows, columns = products[0].shape
    sources = addresses("products", products, (rows, columns), dtype)
    tail = epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    if out is None:
        out = buffers.empty((points, rows, columns), dtype)
    to = check("out", out, (points, rows, columns), dtype)
    wide = dtype is torch.float64
    native.combine(wide, to, sources, coefficients_at, (points, rows, columns), tail, torch.get_num_threads())
    return out
