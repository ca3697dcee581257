"""The blended linear layer in Triton: weights are blended in registers on their way into the matrix unit.

The product is Y^T = W(p) X^T: what Hopper's matrix unit takes from registers is its left operand. A program holds one
tile of Y for one point or, where a point has few rows, for several, which then share one reading of the anchors' tiles.
With a prologue the input is no tensor but a function of R products that all points share, computed tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from mli_fast.ops import launching
from mli_fast.ops.epilogue import ACTIVATIONS, Epilogue
from mli_fast.ops.tiles import (
    activated,
    add_weighted,
    affine,
    bound,
    coefficient_column,
    expect,
    input_precision,
    on_device,
    plus_product,
    rounded_to_tf32,
    settled,
    spaced,
)

COMPUTE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_UNROLLED = tl.constexpr(4)  # anchors up to which the loop over them is unrolled


@no_type_check
@triton.jit
def _vector(start, offsets, inside):
    return tl.load(start + offsets, mask=inside, other=0.0).to(tl.float32)[:, None]


@no_type_check
@triton.jit
def _affine_rows(tile, scale, shift, scale_offsets, shift_offsets, inside):
    """`affine` with a factor and a summand for each row of a tile, read here; either may be None."""
    if scale is not None:
        if shift is not None:
            tile = affine(tile, _vector(scale, scale_offsets, inside), _vector(shift, shift_offsets, inside))
        else:
            tile = affine(tile, _vector(scale, scale_offsets, inside), None)
    elif shift is not None:
        tile = affine(tile, None, _vector(shift, shift_offsets, inside))
    return tile


@no_type_check
@triton.jit
def _blended_tile(
    coefficients,  # of one point
    tiles,  # the R tiles read, or () for more than are unrolled
    anchor,  # [BLOCK_N, BLOCK_K] pointers into the first anchor
    step,
    inside,
    R: tl.constexpr,
    SELECT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """sum_r c_r tile_r in float32; without SELECT a tile whose coefficient is 0 has to be 0."""
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    if R <= _UNROLLED:
        for r in tl.static_range(R):
            c = coefficient_column(coefficients, r, BLOCK_N)
            total = add_weighted(total, c, tiles[r]) if SELECT else plus_product(total, c, tiles[r])
    else:
        for r in range(R):
            tile = tl.load(anchor + tl.cast(r, tl.int64) * step, mask=inside, other=0.0).to(tl.float32)
            total = add_weighted(total, coefficient_column(coefficients, r, BLOCK_N), tile)
    return total


@no_type_check
@triton.jit(do_not_specialize=["P", "M"])  # that N and K are multiples of 16 lets masked accesses be wide
def linear_fwd_kernel(
    out,  # [P, M, N]
    x,  # [P, M, K] or [M, K]; with a prologue the first of the products [M, K]
    weights,  # the first of the anchors [N, K]
    coefficients,  # [P, R] float64
    scale,  # [P, N] or None
    shift,  # [P, N] or None
    residual,  # [P, M, N] or None
    first,  # [P, PRODUCTS] float64, the prologue's coefficients, or None
    first_scale,  # [P, K] or None
    first_shift,  # [P, K] or None
    P,
    M,
    N,
    K,
    weight_step,
    product_step,
    stride_weight,
    stride_x_point,
    stride_x_row,
    stride_out_point,
    stride_out_row,
    stride_residual_point,
    stride_residual_row,
    stride_coefficients,
    stride_scale,
    stride_shift,
    stride_first,
    stride_first_scale,
    stride_first_shift,
    R: tl.constexpr,
    PRODUCTS: tl.constexpr,  # of the prologue, 0 without
    SHARED: tl.constexpr,  # x is the same at every point
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST_ACTIVATION: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    strips = tl.cdiv(P, POINTS) * tiles_m
    # programs that follow one another share GROUP tiles of weights, which all points' rows pass by
    program = tl.program_id(0)
    band = program // (GROUP * strips)
    within = program - band * (GROUP * strips)
    width = tl.minimum(tiles_n - band * GROUP, GROUP)
    n_first = (band * GROUP + within % width) * BLOCK_N
    strip = within // width
    m_first = (strip % tiles_m) * BLOCK_M
    p_first = (strip // tiles_m) * POINTS

    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    n_there = n < N - n_first
    m_there = m < M - m_first
    # what lies beyond the last row reads that row again and is not stored
    weight = weights + tl.cast(n_first, tl.int64) * stride_weight
    weight_tile = tl.minimum(n, N - 1 - n_first)[:, None] * stride_weight + k[None, :]
    rows = x + tl.cast(m_first, tl.int64) * stride_x_row
    x_tile = tl.minimum(m, M - 1 - m_first)[None, :] * stride_x_row + k[:, None]
    step = tl.cast(weight_step, tl.int64)

    totals = ()
    for _ in tl.static_range(POINTS):
        totals = totals + (tl.zeros((BLOCK_N, BLOCK_M), tl.float32),)  # noqa: RUF005

    for k_first in range(0, bound(K), BLOCK_K):
        k_there = k < K - k_first
        # the R tiles of weights, read once for all of the program's points
        anchor = weight + k_first + weight_tile
        tiles = ()
        if R <= _UNROLLED:
            for r in tl.static_range(R):
                end = K
                if POINTS == 1:  # an anchor that the point leaves out is not read
                    c = tl.load(coefficients + tl.cast(p_first, tl.int64) * stride_coefficients + r)
                    end = tl.where(c.to(tl.float32) != 0, K, 0)
                inside = (k < end - k_first)[None, :]
                tiles = tiles + (tl.load(anchor + r * step, mask=inside, other=0.0).to(tl.float32),)  # noqa: RUF005
        # likewise what all points share of the input
        inputs = ()
        if PRODUCTS > 0 and PRODUCTS <= _UNROLLED:
            for r in tl.static_range(PRODUCTS):
                product = rows + k_first + r * tl.cast(product_step, tl.int64) + x_tile
                inputs = inputs + (tl.load(product, mask=k_there[:, None], other=0.0).to(tl.float32),)  # noqa: RUF005
        elif SHARED and PRODUCTS == 0:
            inputs = (tl.load(rows + k_first + x_tile, mask=k_there[:, None], other=0.0),)

        done = ()
        for g in tl.static_range(POINTS):
            p = tl.cast(tl.minimum(p_first + g, P - 1), tl.int64)
            w = _blended_tile(
                coefficients + p * stride_coefficients,
                tiles,
                anchor,
                step,
                k_there[None, :],
                R,
                POINTS > 1,
                BLOCK_N,
                BLOCK_K,
            )
            if PRODUCTS > 0:
                v = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
                if PRODUCTS <= _UNROLLED:
                    for r in tl.static_range(PRODUCTS):
                        v = add_weighted(v, tl.load(first + p * stride_first + r).to(tl.float32), inputs[r])
                else:
                    for r in range(PRODUCTS):
                        product = rows + k_first + tl.cast(r, tl.int64) * product_step + x_tile
                        product = tl.load(product, mask=k_there[:, None], other=0.0).to(tl.float32)
                        v = add_weighted(v, tl.load(first + p * stride_first + r).to(tl.float32), product)
                v = _affine_rows(
                    v,
                    first_scale,
                    first_shift,
                    p * stride_first_scale + k_first + k,
                    p * stride_first_shift + k_first + k,
                    k_there,
                )
                v = activated(v, FIRST_ACTIVATION).to(COMPUTE)  # 0 stays 0, so the depth is padded with zeros
            elif SHARED:
                v = inputs[0]
            else:
                v = tl.load(rows + p * stride_x_point + k_first + x_tile, mask=k_there[:, None], other=0.0)
            w = w.to(COMPUTE)
            if PRECISION == "tf32":
                w = rounded_to_tf32(w)
                v = rounded_to_tf32(v)
            done = done + (settled(tl.dot(w, v, totals[g], input_precision=PRECISION)),)  # noqa: RUF005
        totals = done

    for g in tl.static_range(POINTS):
        p = tl.cast(p_first + g, tl.int64)
        there = n_there[:, None] & m_there[None, :] & (p_first + g < P)
        y = _affine_rows(
            totals[g],
            scale,
            shift,
            p * stride_scale + n_first + n,
            p * stride_shift + n_first + n,
            n_there & (p_first + g < P),
        )
        if residual is not None:
            beside = residual + p * stride_residual_point + tl.cast(m_first, tl.int64) * stride_residual_row + n_first
            beside = beside + (m[None, :] * stride_residual_row + n[:, None])
            y = y + tl.load(beside, mask=there, other=0.0).to(tl.float32)
        y = activated(y, ACTIVATION)
        place = out + p * stride_out_point + tl.cast(m_first, tl.int64) * stride_out_row + n_first
        tl.store(place + (m[None, :] * stride_out_row + n[:, None]), y.to(out.dtype.element_ty), mask=there)


def linear(
    x: Tensor,  # [P, M, K] or [M, K], then shared by all points
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R] float64
    *,
    scale: Tensor | None = None,  # [P, N]
    shift: Tensor | None = None,  # [P, N]
    residual: Tensor | None = None,  # [P, M, N]
    activation: str = "none",
    tf32: bool = False,
    out: Tensor | None = None,  # [P, M, N]
) -> Tensor:  # [P, M, N]
    """activation(x W(p)^T * scale + shift + residual) with W(p) = sum_r c[p, r] W_r.

    W(p) is summed in float32 and rounded once to x's dtype; the product is accumulated in float32. float32 data is
    multiplied in split precision, as exact as float32, or rounded to TF32.

    Args:
        x: float32, bfloat16 or float16; the last dimension is contiguous.
        weights: R tensors in x's dtype or float32, the last dimension contiguous.
        coefficients: on x's device; exactly 0 leaves its weight out.
        scale: a factor per point and column, any dtype.
        shift: a summand per point and column, any dtype.
        residual: a summand, any dtype.
        activation: a name in `mli_fast.ops.epilogue.ACTIVATIONS`.
        tf32: multiply float32 data in TF32.
        out: where the result goes, in x's dtype or float32; the last dimension is contiguous.

    Returns:
        [P, M, N] in x's dtype, or `out`.

    Raises:
        ValueError: if shapes, dtypes or layouts do not fit.
    """
    ahead = _Prologue((), None, None, None, "none")
    after = Epilogue(scale, shift, residual, activation)
    return _launch(x, ahead, x.dtype, weights, coefficients, after, tf32, out)


def linear_of_products(
    products: Sequence[Tensor],  # R' x [M, K]
    first: Tensor,  # [P, R'] float64
    first_scale: Tensor | None,  # [P, K]
    first_shift: Tensor | None,  # [P, K]
    first_activation: str,
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R] float64
    *,
    scale: Tensor | None = None,  # [P, N]
    shift: Tensor | None = None,  # [P, N]
    residual: Tensor | None = None,  # [P, M, N]
    activation: str = "none",
    tf32: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,  # [P, M, N]
) -> Tensor:  # [P, M, N]
    """`linear` of `combine(products, first, ...)`, bit for bit, without ever storing that.

    Args:
        products: R' tensors of one shape and dtype, the last dimension contiguous.
        first: their coefficients; exactly 0 leaves its product out.
        first_scale: as `combine`'s scale.
        first_shift: as `combine`'s shift.
        first_activation: as `combine`'s activation.
        weights: as in `linear`, in the compute dtype or float32.
        coefficients: as in `linear`.
        scale: as in `linear`.
        shift: as in `linear`.
        residual: as in `linear`.
        activation: as in `linear`.
        tf32: as in `linear`.
        dtype: the compute dtype, which is the result's; default: that of the weights.
        out: as in `linear`.

    Returns:
        [P, M, N] in the compute dtype, or `out`.

    Raises:
        ValueError: if shapes, dtypes or layouts do not fit.
    """
    compute = weights[0].dtype if dtype is None else dtype
    ahead = _Prologue(products, first, first_scale, first_shift, first_activation)
    after = Epilogue(scale, shift, residual, activation)
    return _launch(products[0], ahead, compute, weights, coefficients, after, tf32, out)


def tune_linear(
    x: Tensor,  # [P, M, K]
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R] float64
    *,
    tf32: bool = False,
) -> list[tuple[launching.Configuration, float | str]]:
    """Find the fastest configuration of `linear` for tensors such as these, and keep it: see `launching.tune`.

    Args:
        x: as in `linear`.
        weights: as in `linear`.
        coefficients: as in `linear`.
        tf32: as in `linear`.

    Returns:
        Every candidate with its milliseconds, or with why it has none.
    """
    ends = [0, len(coefficients) - 1]
    anchors = torch.stack([w.double() for w in weights])
    blended = torch.einsum("pr,rnk->pnk", coefficients[ends], anchors).to(x.dtype).double()
    exact = torch.bmm(x[ends].double(), blended.mT)
    accepts = launching.as_exact_as(linear(x, weights, coefficients, tf32=tf32)[ends], exact)
    return launching.tune(
        "linear",
        _precision(x.dtype, tf32),
        launching.rows_class(x.shape[-2]),
        lambda: linear(x, weights, coefficients, tf32=tf32),
        lambda values: accepts(values[ends]),
    )


class _Prologue(NamedTuple):
    products: Sequence[Tensor]  # R' x [M, K]; none: the input is a tensor
    coefficients: Tensor | None  # [P, R'] float64
    scale: Tensor | None  # [P, K]
    shift: Tensor | None  # [P, K]
    activation: str


def _launch(
    x: Tensor,  # [P, M, K], [M, K], or the first of the prologue's products
    ahead: _Prologue,
    compute: torch.dtype,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    after: Epilogue,
    tf32: bool,
    out: Tensor | None,
) -> Tensor:
    points, (rows, depth), columns = len(coefficients), x.shape[-2:], weights[0].shape[0]
    if out is None:
        out = x.new_empty(points, rows, columns, dtype=compute)
    _check(x, ahead, compute, weights, coefficients, after, out)
    if out.numel() == 0:
        return out
    kernel = "linear_of_products" if ahead.products else "linear"
    precision = _precision(compute, tf32)
    chosen = launching.configuration(kernel, precision, launching.rows_class(rows), x.device)
    anchor, weight_step = spaced(weights)
    product, product_step = spaced(ahead.products) if ahead.products else (x, 0)
    blocks = dict(chosen)
    # none of this changes how a point's values are computed
    blocks["POINTS"] = min(blocks["POINTS"], triton.next_power_of_2(points))
    if columns <= 64 < blocks["BLOCK_N"]:
        blocks["BLOCK_N"], blocks["num_warps"], blocks["BLOCK_M"] = 64, 4, min(blocks["BLOCK_M"], 128)
    if depth % 16:  # tiles that are not aligned pass through registers
        blocks["BLOCK_M"] = min(blocks["BLOCK_M"], 64)
    elif after.residual is not None:  # as does a residual
        blocks["BLOCK_M"] = min(blocks["BLOCK_M"], 128)
    inputs = len(ahead.products) or (blocks["POINTS"] if x.ndim == 3 else 1)
    blocks["num_stages"] = stages_that_fit(
        blocks,
        len(weights) * anchor.element_size(),
        inputs * product.element_size(),
        {"float32": 8, "tf32": 4}.get(precision, 2 if ahead.products else 0),
        launching.shared_memory(x.device),
    )
    grid = (
        triton.cdiv(points, blocks["POINTS"])
        * triton.cdiv(rows, blocks["BLOCK_M"])
        * triton.cdiv(columns, blocks["BLOCK_N"]),
    )
    with on_device(x):
        linear_fwd_kernel[grid](
            out,
            product,
            anchor,
            coefficients,
            after.scale,
            after.shift,
            after.residual,
            ahead.coefficients,
            ahead.scale,
            ahead.shift,
            points,
            rows,
            columns,
            depth,
            weight_step,
            product_step,
            anchor.stride(0),
            product.stride(0) if product.ndim == 3 else 0,
            product.stride(-2),
            out.stride(0),
            out.stride(1),
            *((0, 0) if after.residual is None else after.residual.stride()[:2]),
            *(_point_stride(t) for t in (coefficients, after.scale, after.shift)),
            *(_point_stride(t) for t in (ahead.coefficients, ahead.scale, ahead.shift)),
            R=len(weights),
            PRODUCTS=len(ahead.products),
            SHARED=product.ndim == 2,
            COMPUTE=COMPUTE[compute],
            PRECISION=input_precision(compute, tf32),
            ACTIVATION=after.activation,
            FIRST_ACTIVATION=ahead.activation,
            **blocks,
        )
    return out


def stages_that_fit(
    blocks: launching.Configuration, weight_bytes: int, input_bytes: int, operand_bytes: int, limit: int
) -> int:
    """The stages of the software pipeline, as many as asked for or as the shared memory holds.

    Args:
        blocks: the configuration.
        weight_bytes: bytes read for each element of a tile of weights: all anchors'.
        input_bytes: bytes read for each element of a tile of the input: all points' or products'.
        operand_bytes: bytes for each element of the right operand where it goes from registers to shared memory.
        limit: bytes of shared memory.
    """
    stage = (weight_bytes * blocks["BLOCK_N"] + input_bytes * blocks["BLOCK_M"]) * blocks["BLOCK_K"]
    aside = operand_bytes * blocks["BLOCK_M"] * blocks["BLOCK_K"]
    return launching.stages(blocks["num_stages"], stage, limit - aside)


def _precision(compute: torch.dtype, tf32: bool) -> str:
    return "tf32" if tf32 and compute == torch.float32 else str(compute).removeprefix("torch.")


def _point_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def _check(
    x: Tensor,
    ahead: _Prologue,
    compute: torch.dtype,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    after: Epilogue,
    out: Tensor,
) -> None:
    points, (rows, depth), columns = len(coefficients), x.shape[-2:], weights[0].shape[0]
    if compute not in COMPUTE:
        raise ValueError(f"the compute dtype has to be float32, bfloat16 or float16, not {compute}")
    if x.dtype not in COMPUTE:
        raise ValueError(f"products have to be float32, bfloat16 or float16, not {x.dtype}")
    if weights[0].dtype not in (compute, torch.float32):
        raise ValueError(f"weights have to be {compute} or float32, not {weights[0].dtype}")
    if out.dtype not in (compute, torch.float32):
        raise ValueError(f"out has to be {compute} or float32, not {out.dtype}")
    if not ahead.products:
        expect("x", x, (rows, depth) if x.ndim == 2 else (points, rows, depth))
    for i, product in enumerate(ahead.products):
        expect(f"products[{i}]", product, (rows, depth), x.dtype)
    for i, weight in enumerate(weights):
        expect(f"weights[{i}]", weight, (columns, depth), weights[0].dtype)
    expect("coefficients", coefficients, (points, len(weights)), torch.float64)
    if ahead.coefficients is not None:
        expect("first", ahead.coefficients, (points, len(ahead.products)), torch.float64)
    for name, tensor, shape in (
        ("first_scale", ahead.scale, (points, depth)),
        ("first_shift", ahead.shift, (points, depth)),
        ("scale", after.scale, (points, columns)),
        ("shift", after.shift, (points, columns)),
        ("residual", after.residual, (points, rows, columns)),
        ("out", out, (points, rows, columns)),
    ):
        if tensor is not None:
            expect(name, tensor, shape)
    for name in (ahead.activation, after.activation):
        if name not in ACTIVATIONS:
            raise ValueError(f"activation has to be one of {sorted(ACTIVATIONS)}, not {name!r}")
