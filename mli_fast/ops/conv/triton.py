"""The blended convolution in Triton: an implicit product in channels-last memory, one launch for all points.

Y^T = W(p) X^T, where the rows of X are the patches under the output's pixels, gathered with masks and never stored. The
depth of the product runs over the taps of the kernel and, innermost, over the channels, as both lie in memory. A tile
of weights is blended anew for every tile of pixels: with 128 pixels that is 1/16 of the product's own work, less than
what keeping all depths of a blended tile in registers would cost in programs that run side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

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
    input_precision,
    on_device,
    rounded_to_tf32,
    settled,
    spaced,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Blocks(NamedTuple):
    """Tile sizes (output channels, pixels, largest depth) and how a program runs."""

    n: int
    pixels: int
    depth: int
    warps: int
    stages: int


# by precision and the width of a tile of output channels
_BLOCKS = {
    ("half", 16): Blocks(16, 128, 64, 4, 3),
    ("half", 32): Blocks(32, 128, 64, 4, 3),
    ("half", 64): Blocks(64, 256, 64, 8, 3),
    ("half", 128): Blocks(128, 128, 64, 8, 3),
    ("tf32", 16): Blocks(16, 128, 32, 4, 3),
    ("tf32", 32): Blocks(32, 128, 32, 4, 3),
    ("tf32", 64): Blocks(64, 128, 32, 8, 3),
    ("fp32", 16): Blocks(16, 128, 32, 4, 3),
    ("fp32", 32): Blocks(32, 128, 32, 8, 3),
    ("fp32", 64): Blocks(64, 128, 32, 8, 3),
}
_LEAST_DEPTH = 16  # that the matrix units take
_FEW_PIXELS = 64  # tile of pixels where a point has no more


def blocks(dtype: torch.dtype, tf32: bool, channels: int, pixels: int) -> Blocks:
    """The tile sizes for x of that dtype, so many output channels, and so many output pixels per point."""
    precision = "half" if dtype.itemsize == 2 else "tf32" if tf32 else "fp32"
    widths = [n for kind, n in _BLOCKS if kind == precision]
    chosen = _BLOCKS[precision, next((n for n in widths if n >= channels), widths[-1])]
    return chosen._replace(pixels=_FEW_PIXELS, warps=4) if pixels <= _FEW_PIXELS else chosen


def depth_blocks(channels: int, taps: int, depth: int) -> tuple[int, int]:
    """Channels and taps (powers of 2) of one step, whose product is at most `depth` and at least `_LEAST_DEPTH`."""
    channel_block = min(triton.next_power_of_2(max(channels, 1)), depth)
    tap_block = min(depth // channel_block, triton.next_power_of_2(max(taps, 1)))
    return max(channel_block, _LEAST_DEPTH // tap_block), tap_block


@triton.jit(do_not_specialize=["pixels", "pixel_tiles", "n_tiles"])
def conv_fwd_kernel(  # type: ignore[no-untyped-def]
    out,  # [P, B, OH, OW, N]
    x,  # [P, B, H, W, C]
    weights,  # R x [N, KH, KW, C]
    coefficients,  # [P, R] float64
    scale,  # [P, N] or None
    shift,  # [P, N] or None
    residual,  # [P, B, OH, OW, N] or None
    pixels,  # B * OH * OW
    N,
    C,
    H,
    W,
    OH,
    OW,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    x_point,  # elements from one point's x to the next, 0 for one x for all
    anchor_step,
    pixel_tiles,
    n_tiles,
    R: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BN: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,  # channels per step
    BT: tl.constexpr,  # taps per step
    ACTIVATION: tl.constexpr,
    TF32: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # tiles of channels run fastest: they read the same patches
    n_tile = tl.program_id(0) % n_tiles
    pixel_tile = tl.program_id(0) // n_tiles % pixel_tiles
    p = (tl.program_id(0) // n_tiles // pixel_tiles).to(tl.int64)

    c = ()
    for r in tl.static_range(R):
        c = c + (coefficient_column(coefficients + p * R, r, BN),)  # type: ignore[assignment]  # noqa: RUF005

    n = n_tile * BN + tl.arange(0, BN)
    n_inside = n < N
    pixel = pixel_tile * BP + tl.arange(0, BP)
    pixel_inside = pixel < pixels
    image = pixel // (OH * OW)
    top = pixel // OW % OH * stride_h - padding_h  # of the patch under the pixel
    left = pixel % OW * stride_w - padding_w
    patch = x + p * x_point + image.to(tl.int64) * (H * W * C) + (top * W + left) * C  # may lie outside
    weights_at = weights + n.to(tl.int64) * (KH * KW * C)

    depth = tl.arange(0, BT * BC)
    channel_steps = tl.cdiv(C, BC)
    product = tl.zeros([BN, BP], tl.float32)
    for step in range(bound(tl.cdiv(KH * KW, BT) * channel_steps)):
        tap = step // channel_steps * BT + depth // BC
        channel = step % channel_steps * BC + depth % BC
        depth_inside = (tap < KH * KW) & (channel < C)
        down = tap // KW * dilation_h
        right = tap % KW * dilation_w
        row = top[None, :] + down[:, None]
        column = left[None, :] + right[:, None]
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
        inside = inside & depth_inside[:, None] & pixel_inside[None, :]
        patches = tl.load(patch[None, :] + ((down * W + right) * C + channel)[:, None], mask=inside, other=0.0)
        weight = tl.zeros([BN, BT * BC], tl.float32)
        for r in tl.static_range(R):
            at = weights_at[:, None] + r * tl.cast(anchor_step, tl.int64) + (tap * C + channel)[None, :]
            term = tl.load(at, mask=n_inside[:, None] & depth_inside[None, :], other=0.0)
            weight = add_weighted(weight, c[r], term.to(tl.float32))
        weight = weight.to(patches.dtype)
        if TF32:
            weight, patches = rounded_to_tf32(weight), rounded_to_tf32(patches)
        product = settled(tl.dot(weight, patches, product, input_precision=PRECISION))

    factor, summand = None, None
    if scale is not None:
        factor = tl.load(scale + p * N + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    if shift is not None:
        summand = tl.load(shift + p * N + n, mask=n_inside, other=0.0).to(tl.float32)[:, None]
    product = affine(product, factor, summand)
    at = (p * pixels + pixel)[None, :] * N + n[:, None]
    inside = n_inside[:, None] & pixel_inside[None, :]
    if residual is not None:
        product += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, activated(product, ACTIVATION).to(out.dtype.element_ty), mask=inside)


def takes(x: Tensor, weights: Sequence[Tensor], groups: int = 1) -> bool:
    """Whether `conv` serves such operands: 1-D or 2-D, not grouped, weights in x's dtype or float32."""
    weight = weights[0]
    return (
        groups == 1
        and weight.ndim in (3, 4)
        and x.ndim in (weight.ndim, weight.ndim + 1)
        and x.dtype in DTYPES
        and weight.dtype in (x.dtype, torch.float32)
    )


def conv(
    x: Tensor,  # [P, B, C, *spatial] or [B, C, *spatial] for all points; channels innermost in memory
    weights: Sequence[Tensor],  # R x [N, C, *kernel], channels innermost in memory
    coefficients: Tensor,  # [P, R] float64
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: Tensor | None = None,  # [P, N]
    shift: Tensor | None = None,  # [P, N]
    residual: Tensor | None = None,  # [P, B, N, *spatial out], channels innermost in memory
    activation: str = "none",
    tf32: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,  # [P, B, N, *spatial out], channels innermost in memory
) -> Tensor:  # [P, B, N, *spatial out], channels innermost in memory
    """activation(conv(x, W(p)) * scale + shift + residual) in one or two dimensions, not grouped.

    W(p) is rounded once to x's dtype; `scale`, a folded batch norm's, meets the product in float32.

    Args:
        x: float32, float16 or bfloat16.
        weights: in x's dtype or float32.
        coefficients: contiguous, on x's device; exactly 0 leaves an anchor out.
        stride: step per spatial dimension.
        padding: zeros before and after each.
        dilation: distance between taps in each.
        scale: factor per output channel, contiguous, any floating dtype.
        shift: summand per output channel, alike.
        residual: summand per output element, any floating dtype.
        activation: one of `mli_fast.ops.epilogue.ACTIVATIONS`.
        tf32: float32 operands are rounded to TF32; else the products are as exact as float32's.
        dtype: the result's, x's (the default) or float32.
        out: where to write, in that dtype.

    Raises:
        ValueError: a shape, dtype, device or memory layout does not fit.
    """
    if not weights or not takes(x, weights):
        raise ValueError(
            f"conv: x {x.dtype} {tuple(x.shape)} and weights {[(w.dtype, tuple(w.shape)) for w in weights]} "
            "do not fit this kernel"
        )
    if weights[0].ndim == 3:  # a line is an image of height 1
        residual, out = (None if t is None else t.unsqueeze(-2) for t in (residual, out))
        return conv(
            x.unsqueeze(-2),
            [w.unsqueeze(-2) for w in weights],
            coefficients,
            stride=(1, *stride),
            padding=(0, *padding),
            dilation=(1, *dilation),
            scale=scale,
            shift=shift,
            residual=residual,
            activation=activation,
            tf32=tf32,
            dtype=dtype,
            out=out,
        ).squeeze(-2)

    dtype = dtype or x.dtype
    shape = _output_shape(x, weights, coefficients, stride, padding, dilation)
    P, B, N, OH, OW = shape
    C, H, W = x.shape[-3:]
    R, (KH, KW) = len(weights), weights[0].shape[-2:]
    if out is None:
        out = torch.empty(P, B, OH, OW, N, dtype=dtype, device=x.device).movedim(-1, 2)
    _check_operands(x, weights, coefficients, Epilogue(scale, shift, residual, activation), dtype, out, shape)
    if not prod(shape):
        return out

    block = blocks(x.dtype, tf32, N, B * OH * OW)
    channel_block, tap_block = depth_blocks(C, KH * KW, block.depth)
    pixel_tiles, n_tiles = triton.cdiv(B * OH * OW, block.pixels), triton.cdiv(N, block.n)
    first, step = spaced([w.movedim(1, -1) for w in weights])  # a copy keeps the channels innermost
    rounds = tf32 and x.dtype == torch.float32
    stage_bytes = channel_block * tap_block * (R * block.n * first.element_size() + block.pixels * x.element_size())
    with on_device(x):
        conv_fwd_kernel[(P * pixel_tiles * n_tiles,)](
            out,
            x,
            first,
            coefficients,
            scale,
            shift,
            residual,
            B * OH * OW,
            N,
            C,
            H,
            W,
            OH,
            OW,
            *stride,
            *padding,
            *dilation,
            0 if x.ndim == 4 else B * C * H * W,
            step,
            pixel_tiles,
            n_tiles,
            R=R,
            KH=KH,
            KW=KW,
            BN=block.n,
            BP=block.pixels,
            BC=channel_block,
            BT=tap_block,
            ACTIVATION=activation,
            TF32=rounds,
            PRECISION=input_precision(x.dtype, tf32),
            num_warps=block.warps,
            num_stages=launching.stages(block.stages, stage_bytes, launching.shared_memory(x.device)),
        )
    return out


def _output_shape(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int, int]:
    """[P, B, N, OH, OW]; raises where the coefficients are none, or the image does not fit."""
    if coefficients.ndim != 2 or coefficients.dtype != torch.float64 or coefficients.shape[1] != len(weights):
        raise ValueError(
            f"coefficients: expected float64 [P, {len(weights)}], got {coefficients.dtype} {tuple(coefficients.shape)}"
        )
    B, C, H, W = x.shape[-4:]
    N, _, KH, KW = weights[0].shape
    sizes = zip((H, W), (KH, KW), stride, padding, dilation, strict=True)
    OH, OW = ((size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, k, s, pad, d in sizes)
    if OH < 0 or OW < 0 or max(B * OH * OW, (H + 2 * padding[0]) * (W + 2 * padding[1]) * C) >= 2**31:
        raise ValueError(f"conv: x {tuple(x.shape)} does not fit kernel {(KH, KW)} or 32-bit numbers of pixels")
    return len(coefficients), B, N, OH, OW


def _check_operands(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    after: Epilogue,
    dtype: torch.dtype,
    out: Tensor,
    shape: tuple[int, int, int, int, int],
) -> None:
    P, B, N = shape[:3]
    C, H, W = x.shape[-3:]
    if after.activation not in ACTIVATIONS:
        raise ValueError(f"activation={after.activation!r} is not one of {', '.join(map(repr, ACTIVATIONS))}")
    if dtype not in (x.dtype, torch.float32) or out.dtype != dtype:
        raise ValueError(f"out: {out.dtype} is not {dtype}, which has to be {x.dtype} or float32")
    _check("x", x, (B, C, H, W) if x.ndim == 4 else (P, B, C, H, W), x.device, -3)
    for r, weight in enumerate(weights):
        _check(f"weights[{r}]", weight, (N, C, *weights[0].shape[-2:]), x.device, -3)
    _check("coefficients", coefficients, (P, len(weights)), x.device)
    _check("scale", after.scale, (P, N), x.device)
    _check("shift", after.shift, (P, N), x.device)
    _check("residual", after.residual, shape, x.device, -3)
    _check("out", out, shape, x.device, -3)


def _check(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], device: torch.device, channel: int | None = None
) -> None:
    """Raise unless the tensor has that shape, lies on that device, and is packed with dimension `channel` innermost."""
    if tensor is None:
        return
    memory = tensor if channel is None else tensor.movedim(channel, -1)
    if tuple(tensor.shape) != shape or not memory.is_contiguous() or tensor.device != device:
        raise ValueError(
            f"{name}: expected shape {shape} packed{'' if channel is None else ' with channels innermost'} on "
            f"{device}, got {tuple(tensor.shape)}, strides {tensor.stride()} on {tensor.device}"
        )
