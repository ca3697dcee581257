"""Blended convolutions in channels-last memory: the indirect GEMM, and Winograd's for 3 x 3 kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from mli_fast import buffers
from mli_fast.native.checks import address, addresses, check, check_coefficients, check_dtype, epilogue
from mli_fast.native.loading import require


@lru_cache(maxsize=128)
def _pixel_offsets(
    channels: int,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, tuple[int, ...]]:
    """Element of each output pixel's taps in a channels-last image: int32 [pixels, taps], -1: padding; output sizes."""
    dims = len(sizes)
    if min((*kernel, *stride, *dilation), default=1) < 1 or min(padding, default=0) < 0:
        raise ValueError(
            f"conv: expected kernel, stride and dilation >= 1 and padding >= 0, got kernel {kernel}, stride {stride}, "
            f"dilation {dilation}, padding {padding}"
        )
    out_sizes = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )
    if min(out_sizes, default=1) < 0 or channels * prod(sizes) >= 2**31:
        raise ValueError(f"conv: image {sizes} x {channels} channels does not fit kernel {kernel} or 32-bit offsets")
    index = torch.zeros((1,) * (2 * dims), dtype=torch.int64, device="cpu")
    inside = torch.ones_like(index, dtype=torch.bool)
    for i in range(dims):
        rows, taps = (torch.arange(n, device="cpu") for n in (out_sizes[i], kernel[i]))
        at = rows[:, None] * stride[i] - padding[i] + taps * dilation[i]
        shape = [1] * (2 * dims)
        shape[i], shape[dims + i] = out_sizes[i], kernel[i]
        index = index * sizes[i] + at.view(shape)
        inside = inside & ((at >= 0) & (at < sizes[i])).view(shape)
    table = torch.where(inside, index * channels, -1).to(torch.int32)
    return table.reshape(prod(out_sizes), prod(kernel)).contiguous(), out_sizes


def conv(
    x: Tensor,  # [P * B, C, spatial...], or [B, C, spatial...] shared by all points; channels-last memory
    anchors: Sequence[Tensor],  # R times [N, C, kernel...], channels-last memory
    coefficients: Tensor,  # [P, R]
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    scale: Tensor | None = None,  # [P, N] or [N]
    shift: Tensor | None = None,  # [P, N] or [N]
    residual: Tensor | None = None,  # [P * B, N, out spatial...] or [B, N, out spatial...], channels-last memory
    activation: str = "none",
    shared: bool = False,
    algorithm: str = "direct",
) -> Tensor:
    """Convolution in 1, 2 or 3 dimensions, not grouped, with blended weights and the epilogue of `linear`.

    Args:
        x: Input; float32 or float64. Its memory is [batch, spatial..., C] (``torch.channels_last`` in two dimensions).
        anchors: Weights, laid out alike: [N, kernel..., C] in memory.
        coefficients: float64. An anchor whose coefficient is exactly 0 is not read.
        stride: Step per dimension.
        padding: Zeros before and after each dimension.
        dilation: Distance between taps per dimension.
        scale: Factor per output channel (a folded batch norm's).
        shift: Summand per output channel.
        residual: Summand per output element.
        activation: One of `ACTIVATIONS`.
        shared: Whether ``x`` is one input seen by all points.
        algorithm: "direct", or "winograd": fewer multiplications for a 3 x 3 kernel at stride 1 or 2 in float32. At
            stride 1 a NaN or infinity then reaches the whole of each 2 x 2 tile of the output that it touches.

    Returns:
        The output, [P * B, N, out spatial...] in channels-last memory.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = require()
    for name, tensor in (("x", x), *(("anchors", a) for a in anchors), ("residual", residual)):
        if tensor is not None:
            address(name, tensor)  # views of what was freed cannot even be made
    dtype = check_dtype("x", x)
    points, coefficients_at = check_coefficients(coefficients, len(anchors))
    batch, channels, *sizes = x.shape
    if not sizes or not anchors or anchors[0].dim() != x.dim():
        raise ValueError(
            f"conv: x {tuple(x.shape)} and anchors {[tuple(a.shape) for a in anchors]} do not fit together"
        )
    if not shared:
        if batch % max(points, 1):
            raise ValueError(f"x: batch {batch} is not a multiple of the {points} points")
        batch //= max(points, 1)
    columns, kernel = anchors[0].shape[0], tuple(anchors[0].shape[2:])
    move = tuple(stride), tuple(padding), tuple(dilation)
    if algorithm == "winograd":
        _check_winograd(dtype, tuple(sizes), kernel, *move)
        out_sizes = tuple((n + 2 * p - 3) // stride[0] + 1 for n, p in zip(sizes, padding, strict=True))
    elif algorithm == "direct":
        offsets, out_sizes = _pixel_offsets(channels, tuple(sizes), kernel, *move)
    else:
        raise ValueError(f'algorithm {algorithm!r}: expected "direct" or "winograd"')
    pixels = prod(out_sizes)
    rows = batch * pixels
    x_at = check("x in channels-last memory", x.movedim(1, -1), (x.shape[0], *sizes, channels), dtype)
    weights = [a.movedim(1, -1) for a in anchors]
    weights_at = addresses("anchors in channels-last memory", weights, (columns, *kernel, channels), dtype)
    if residual is not None:
        residual = _rows_of(residual, points, rows, columns)
    tail = epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    out = buffers.empty((points * batch, *out_sizes, columns), dtype)
    image = prod(sizes) * channels
    if algorithm == "winograd":
        native.winograd(
            out.data_ptr(),
            x_at,
            (points, batch, *sizes, channels, columns),
            (*out_sizes, *padding, stride[0]),
            0 if shared else batch * image,
            weights_at,
            coefficients_at,
            tail,
            torch.get_num_threads(),
        )
        return out.movedim(-1, 1)
    native.product(
        dtype is torch.float64,
        out.data_ptr(),
        x_at,
        (points, rows, columns, offsets.shape[1], channels),
        0 if shared else batch * image,
        weights_at,
        coefficients_at,
        tail,
        offsets.data_ptr(),
        pixels,
        image,
        torch.get_num_threads(),
    )
    return out.movedim(-1, 1)


def _check_winograd(
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    fixed = kernel, dilation, dtype
    if fixed != ((3, 3), (1, 1), torch.float32) or stride not in ((1, 1), (2, 2)):
        raise ValueError(
            "winograd: takes 3 x 3 kernels, stride 1 or 2, dilation 1, float32; got "
            f"kernel {kernel}, stride {stride}, dilation {dilation}, {dtype}; use direct"
        )
    if min(padding) < 0 or any(n + 2 * p < 2 for n, p in zip(sizes, padding, strict=True)):
        raise ValueError(f"winograd: image {sizes} with padding {padding} does not fit kernel {kernel}")


def _rows_of(images: Tensor, points: int, rows: int, columns: int) -> Tensor:
    """Channels-last images [P * B or B, N, spatial...] as [P, M, N] or [M, N], without a copy."""
    memory = images.movedim(1, -1)
    if not memory.is_contiguous() or images.numel() not in (rows * columns, points * rows * columns):
        raise ValueError(
            f"residual: shape {tuple(images.shape)}, strides {images.stride()} is not channels-last or does not fit"
        )
    shared = images.numel() == rows * columns
    return memory.view((rows, columns) if shared else (points, rows, columns))
