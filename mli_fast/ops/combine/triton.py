"""The combination of shared products in Triton: R products are read once and become many points' values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from mli_fast.ops import launching
from mli_fast.ops.epilogue import ACTIVATIONS
from mli_fast.ops.tiles import activated, add_weighted, affine, bound, expect, on_device, spaced


@no_type_check
@triton.jit
def _affine_columns(tile, scale, shift, scale_offsets, shift_offsets, inside):
    """`affine` with a factor and a summand for each column of a tile, read here; either may be None."""
    if scale is not None:
        factor = tl.load(scale + scale_offsets, mask=inside, other=0.0).to(tile.dtype)[None, :]
        if shift is not None:
            summand = tl.load(shift + shift_offsets, mask=inside, other=0.0).to(tile.dtype)[None, :]
            tile = affine(tile, factor, summand)
        else:
            tile = affine(tile, factor, None)
    elif shift is not None:
        tile = affine(tile, None, tl.load(shift + shift_offsets, mask=inside, other=0.0).to(tile.dtype)[None, :])
    return tile


@no_type_check
@triton.jit(do_not_specialize=["P", "M", "points"])
def combine_fwd_kernel(
    out,  # [P, M, N]
    products,  # the first of the R products [M, N]
    coefficients,  # [P, R] float64
    scale,  # [P, N] or None
    shift,  # [P, N] or None
    residual,  # [P, M, N] or None
    P,
    M,
    N,
    points,  # of one program
    product_step,
    stride_product,
    stride_out_point,
    stride_out_row,
    stride_residual_point,
    stride_residual_row,
    stride_coefficients,
    stride_scale,
    stride_shift,
    R: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles_n = tl.cdiv(N, BLOCK_N)
    n_first = (tl.program_id(0) % tiles_n) * BLOCK_N
    m_first = tl.cast(tl.program_id(0) // tiles_n, tl.int64) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    n_there = n < N - n_first
    there = (m < M - m_first)[:, None] & n_there[None, :]

    product = products + m_first * stride_product + n_first + (m[:, None] * stride_product + n[None, :])
    terms = ()
    for r in tl.static_range(R):
        term = tl.load(product + r * tl.cast(product_step, tl.int64), mask=there, other=0.0)
        terms = terms + (term.to(WIDE),)  # noqa: RUF005
    out += m_first * stride_out_row + n_first
    place = m[:, None] * stride_out_row + n[None, :]

    p_first = tl.program_id(1) * points
    for point in range(bound(p_first), bound(tl.minimum(p_first + points, P))):
        p = tl.cast(point, tl.int64)
        total = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
        for r in tl.static_range(R):
            total = add_weighted(total, tl.load(coefficients + p * stride_coefficients + r).to(WIDE), terms[r])
        total = _affine_columns(
            total, scale, shift, p * stride_scale + n_first + n, p * stride_shift + n_first + n, n_there
        )
        if residual is not None:
            beside = residual + p * stride_residual_point + m_first * stride_residual_row + n_first
            beside = beside + (m[:, None] * stride_residual_row + n[None, :])
            total = total + tl.load(beside, mask=there, other=0.0).to(WIDE)
        total = activated(total, ACTIVATION)
        tl.store(out + p * stride_out_point + place, total.to(out.dtype.element_ty), mask=there)


def combine(
    products: Sequence[Tensor],  # R x [M, N]
    coefficients: Tensor,  # [P, R] float64
    *,
    scale: Tensor | None = None,  # [P, N]
    shift: Tensor | None = None,  # [P, N]
    residual: Tensor | None = None,  # [P, M, N]
    activation: str = "none",
    dtype: torch.dtype,
    out: Tensor | None = None,  # [P, M, N]
) -> Tensor:  # [P, M, N]
    """activation((sum_r c[p, r] products[r]) * scale + shift + residual), summed in float32 or float64.

    Args:
        products: R tensors of one shape and dtype, the last dimension contiguous.
        coefficients: on the products' device; exactly 0 leaves its product out.
        scale: a factor per point and column, any dtype.
        shift: a summand per point and column, any dtype.
        residual: a summand, any dtype.
        activation: a name in `mli_fast.ops.epilogue.ACTIVATIONS`.
        dtype: the result's dtype.
        out: where the result goes, of that dtype, the last dimension contiguous.

    Returns:
        [P, M, N] in `dtype`, or `out`.

    Raises:
        ValueError: if shapes, dtypes or layouts do not fit.
    """
    points, (rows, columns) = len(coefficients), products[0].shape
    if out is None:
        out = products[0].new_empty(points, rows, columns, dtype=dtype)
    for i, product in enumerate(products):
        expect(f"products[{i}]", product, (rows, columns), products[0].dtype)
    expect("coefficients", coefficients, (points, len(products)), torch.float64)
    expect("out", out, (points, rows, columns), dtype)
    if scale is not None:
        expect("scale", scale, (points, columns))
    if shift is not None:
        expect("shift", shift, (points, columns))
    if residual is not None:
        expect("residual", residual, (points, rows, columns))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation has to be one of {sorted(ACTIVATIONS)}, not {activation!r}")
    if out.numel() == 0:
        return out
    wide = torch.float64 in (products[0].dtype, dtype)
    chosen = launching.configuration("combine", "float64" if wide else "float32", "", out.device)
    block = chosen["BLOCK"] if len(products) <= 4 else chosen["BLOCK"] // 2  # they stay in registers
    block_n = min(triton.next_power_of_2(columns), 256)
    block_m = min(triton.next_power_of_2(rows), max(1, block // block_n))
    tiles = triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
    each = launching.points_per_program(tiles, points, out.device)
    first, step = spaced(products)
    with on_device(out):
        combine_fwd_kernel[(tiles, triton.cdiv(points, each))](
            out,
            first,
            coefficients,
            scale,
            shift,
            residual,
            points,
            rows,
            columns,
            each,
            step,
            first.stride(0),
            out.stride(0),
            out.stride(1),
            *((0, 0) if residual is None else residual.stride()[:2]),
            *(0 if t is None else t.stride(0) for t in (coefficients, scale, shift)),
            R=len(products),
            WIDE=tl.float64 if wide else tl.float32,
            ACTIVATION=activation,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=chosen["num_warps"],
        )
    return out
