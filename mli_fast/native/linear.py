"""Blended linear layers: the GEMM whose weights are blended while they are packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast import buffers
from mli_fast.native.checks import addresses, check, check_coefficients, check_dtype, epilogue
from mli_fast.native.loading import require


def linear(
    x: Tensor,  # [P, M, K], or [M, K] shared by all points
    anchors: Sequence[Tensor],  # R times [N, K]
    coefficients: Tensor,  # [P, R]
    *,
    scale: Tensor | None = None,  # [P, N] or [N]
    shift: Tensor | None = None,  # [P, N] or [N]
    residual: Tensor | None = None,  # [P, M, N] or [M, N]
    activation: str = "none",
    shared: bool = False,
    out: Tensor | None = None,  # [P, M, N]
) -> Tensor:
    """``act((x W(p)^T) * scale + shift + residual)`` with ``W(p) = sum_r coefficients[p, r] * anchors[r]``.

    Args:
        x: Input; float32 or float64, contiguous.
        anchors: Weights of the same dtype, contiguous.
        coefficients: float64. An anchor whose coefficient is exactly 0 is not read.
        scale: Factor per output column.
        shift: Summand per output column, the blended bias for instance.
        residual: Summand per output element.
        activation: One of `ACTIVATIONS`.
        shared: Whether ``x`` is one input [M, K] seen by all points.
        out: Written and returned if given.

    Returns:
        The output, [P, M, N].

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.

    A row's value depends neither on the other rows and points of the call nor on the number of threads.
    """
    native = require()
    dtype = check_dtype("x", x)
    if x.dim() != (2 if shared else 3):
        raise ValueError(f"x: expected {'[M, K]' if shared else '[P, M, K]'}, got shape {tuple(x.shape)}")
    points, coefficients_at = check_coefficients(coefficients, len(anchors))
    rows, depth = x.shape[-2:]
    columns = anchors[0].shape[0] if anchors and anchors[0].dim() else 0
    weights = addresses("anchors", anchors, (columns, depth), dtype)
    x_at = check("x", x, (rows, depth) if shared else (points, rows, depth), dtype)
    tail = epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    if out is None:
        out = buffers.empty((points, rows, columns), dtype)
    native.product(
        dtype is torch.float64,
        check("out", out, (points, rows, columns), dtype),
        x_at,
        (points, rows, columns, 1, depth),
        0 if shared else rows * depth,
        weights,
        coefficients_at,
        tail,
        0,
        0,
        0,
        torch.get_num_threads(),
    )
    return out
