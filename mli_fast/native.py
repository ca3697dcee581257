"""The compiled CPU kernels: loads ``mli_fast._native`` and calls it on torch tensors.

Shapes, dtypes and memory layouts are checked here; the kernels get addresses and sizes. Nothing is copied: a tensor
that is not laid out as a kernel needs it is a ``ValueError``. ``MLI_FAST_NATIVE=0`` in the environment switches the
kernels off, ``MLI_FAST_ISA=portable|avx2|avx512`` restricts the instruction set.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import buffers

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5}
_DTYPES = (torch.float32, torch.float64)


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("MLI_FAST_NATIVE") == "0":
        return None, "switched off by MLI_FAST_NATIVE=0"
    try:
        native = importlib.import_module("mli_fast._native")
    except (ImportError, ValueError) as error:  # ValueError: MLI_FAST_ISA names a set that is not usable here
        return None, f"mli_fast._native cannot be imported: {error}"
    native.set_openmp(_gomp_parallel())
    return native, None


def _gomp_parallel() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch itself is linked to; 0 where there is none.

    Other packages bring runtimes of their own. A second pool of threads fights torch's, whose workers go on spinning
    for a while after each operation: four times slower was measured.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return 0
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    for path in paths:
        if Path(path).name == "libtorch_cpu.so":
            try:
                function = ctypes.CDLL(path).GOMP_parallel  # looked up in the library and all that it is linked to
            except (OSError, AttributeError):  # a runtime without GNU entry points
                return 0
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def module() -> ModuleType | None:
    """The compiled module, or None; then `why_missing` says why."""
    return _load()[0]


def why_missing() -> str | None:
    """Why there are no compiled kernels here, or None if there are."""
    return _load()[1]


def isa() -> str:
    """Name of the instruction set in use: "portable", "avx2" or "avx512"; "none" without the compiled module."""
    native = module()
    return "none" if native is None else native.isa()


def _require() -> ModuleType:
    native, reason = _load()
    if native is None:
        raise RuntimeError(f"no compiled kernels: {reason}")
    return native


def _check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Address of a contiguous CPU tensor of exactly this shape and dtype."""
    if tensor.shape != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} of shape {tuple(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"{name}: needs contiguous CPU memory, got {tensor.device}, strides {tensor.stride()}")
    return tensor.data_ptr()


def _check_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: the compiled kernels take float32 and float64, got {tensor.dtype}")
    return tensor.dtype


def _addresses(name: str, tensors: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> list[int]:
    if not tensors:
        raise ValueError(f"{name}: at least one is needed")
    return [_check(name, tensor, shape, dtype) for tensor in tensors]


def _check_coefficients(coefficients: Tensor, count: int) -> tuple[int, int]:
    """Number of points P and the address of coefficients [P, R] float64."""
    if coefficients.dim() != 2:
        raise ValueError(f"coefficients: expected [points, anchors], got shape {tuple(coefficients.shape)}")
    points = coefficients.shape[0]
    return points, _check("coefficients", coefficients, (points, count), torch.float64)


_Epilogue = tuple[int, ...]  # addresses of scale, shift, residual; their point strides; activation


def _epilogue(
    points: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    scale: Tensor | None,  # [P, N] or [N]
    shift: Tensor | None,  # [P, N] or [N]
    residual: Tensor | None,  # [P, M, N] or [M, N] in memory order
    activation: str,
) -> _Epilogue:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    addresses, strides = [0, 0, 0], [0, 0, 0]
    tails = ((columns,), (columns,), (rows, columns))
    terms = zip(("scale", "shift", "residual"), (scale, shift, residual), tails, strict=True)
    for i, (name, tensor, tail) in enumerate(terms):
        if tensor is not None:
            per_point = tensor.dim() > len(tail)
            addresses[i] = _check(name, tensor, (points, *tail) if per_point else tail, dtype)
            strides[i] = prod(tail) if per_point else 0
    return (*addresses, *strides, ACTIVATIONS[activation])


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
    native = _require()
    dtype = _check_dtype("x", x)
    if x.dim() != (2 if shared else 3):
        raise ValueError(f"x: expected {'[M, K]' if shared else '[P, M, K]'}, got shape {tuple(x.shape)}")
    points, coefficients_at = _check_coefficients(coefficients, len(anchors))
    rows, depth = x.shape[-2:]
    columns = anchors[0].shape[0] if anchors else 0
    weights = _addresses("anchors", anchors, (columns, depth), dtype)
    x_at = _check("x", x, (rows, depth) if shared else (points, rows, depth), dtype)
    tail = _epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    if out is None:
        out = buffers.empty((points, rows, columns), dtype)
    native.product(
        dtype is torch.float64,
        _check("out", out, (points, rows, columns), dtype),
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
    out_sizes = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )
    if min(out_sizes, default=1) < 0 or channels * prod(sizes) >= 2**31:
        raise ValueError(f"conv: image {sizes} x {channels} channels does not fit kernel {kernel} or 32-bit offsets")
    index = torch.zeros((1,) * (2 * dims), dtype=torch.int64)
    inside = torch.ones_like(index, dtype=torch.bool)
    for i in range(dims):
        at = torch.arange(out_sizes[i])[:, None] * stride[i] - padding[i] + torch.arange(kernel[i]) * dilation[i]
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
        algorithm: "direct", or "winograd": fewer multiplications for a 3 x 3 kernel at stride 1 in float32. There a
            NaN or infinity reaches the whole of each 2 x 2 tile of the output that it touches.

    Returns:
        The output, [P * B, N, out spatial...] in channels-last memory.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = _require()
    dtype = _check_dtype("x", x)
    points, coefficients_at = _check_coefficients(coefficients, len(anchors))
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
        out_sizes = tuple(n + 2 * p - 2 for n, p in zip(sizes, padding, strict=True))
    elif algorithm == "direct":
        offsets, out_sizes = _pixel_offsets(channels, tuple(sizes), kernel, *move)
    else:
        raise ValueError(f'algorithm {algorithm!r}: expected "direct" or "winograd"')
    pixels = prod(out_sizes)
    rows = batch * pixels
    x_at = _check("x in channels-last memory", x.movedim(1, -1), (x.shape[0], *sizes, channels), dtype)
    weights = [a.movedim(1, -1) for a in anchors]
    weights_at = _addresses("anchors in channels-last memory", weights, (columns, *kernel, channels), dtype)
    if residual is not None:
        residual = _rows_of(residual, points, rows, columns)
    tail = _epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    out = buffers.empty((points * batch, *out_sizes, columns), dtype)
    image = prod(sizes) * channels
    if algorithm == "winograd":
        native.winograd(
            out.data_ptr(),
            x_at,
            (points, batch, *sizes, channels, columns),
            (*out_sizes, *padding),
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
    if (kernel, stride, dilation, dtype) != ((3, 3), (1, 1), (1, 1), torch.float32):
        raise ValueError(
            "winograd: takes 3 x 3 kernels, stride 1, dilation 1, float32; got "
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
    native = _require()
    points, coefficients_at = _check_coefficients(coefficients, len(products))
    if not products or products[0].dim() != 2:
        raise ValueError(f"products: expected [M, N] each, got {[tuple(p.shape) for p in products]}")
    dtype = _check_dtype("products", products[0])
    rows, columns = products[0].shape
    sources = _addresses("products", products, (rows, columns), dtype)
    tail = _epilogue(points, rows, columns, dtype, scale, shift, residual, activation)
    if out is None:
        out = buffers.empty((points, rows, columns), dtype)
    to = _check("out", out, (points, rows, columns), dtype)
    wide = dtype is torch.float64
    native.combine(wide, to, sources, coefficients_at, (points, rows, columns), tail, torch.get_num_threads())
    return out


class BlendPlan:
    """All parameters of one point, checked once, blended as often as wanted: ``plan(coefficients)`` fills the outputs.

    Args:
        outs: T tensors to write; all float32 or all float64, contiguous.
        anchors: R tensors per output, of its shape and dtype, contiguous.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.

    The plan keeps the tensors alive. They may change in value, not in place of memory.
    """

    def __init__(self, outs: Sequence[Tensor], anchors: Sequence[Sequence[Tensor]]) -> None:
        self._native = _require()
        if len(anchors) != len(outs):
            raise ValueError(f"blend: {len(outs)} outputs, but anchors for {len(anchors)}")
        self._dtype = _check_dtype("outs", outs[0]) if outs else torch.float32
        self._count = len(anchors[0]) if anchors else 0
        self._sources: list[int] = []
        for t, (target, group) in enumerate(zip(outs, anchors, strict=True)):
            if len(group) != self._count or not group:
                raise ValueError(f"blend: {len(group)} anchors for tensor {t}, {self._count} for the first")
            self._sources += [_check(f"anchors of tensor {t}", a, target.shape, self._dtype) for a in group]
        self._targets = [_check(f"outs[{t}]", target, target.shape, self._dtype) for t, target in enumerate(outs)]
        self._sizes = [target.numel() for target in outs]
        self._kept = (list(outs), [list(group) for group in anchors])

    def __call__(self, coefficients: Tensor) -> None:
        """``outs[t] = sum_r coefficients[t, r] * anchors[t][r]``.

        Args:
            coefficients: float64 [T, R], or [R] for all tensors. An anchor whose coefficient is exactly 0 is not read.

        Raises:
            ValueError: The coefficients' shape or dtype does not fit.
        """
        if not self._targets:
            return
        tensors = len(self._targets)
        if coefficients.dim() == 1:
            coefficients = coefficients.expand(tensors, coefficients.shape[0]).contiguous()
        at = _check("coefficients", coefficients, (tensors, self._count), torch.float64)
        wide = self._dtype is torch.float64
        self._native.blend(wide, self._targets, self._sources, at, self._sizes, torch.get_num_threads())


def blend(
    outs: Sequence[Tensor],  # T
    anchors: Sequence[Sequence[Tensor]],  # T times R, shaped like outs[t]
    coefficients: Tensor,  # [T, R], or [R] for all tensors
) -> None:
    """One use of a `BlendPlan`, with its arguments and errors."""
    BlendPlan(outs, anchors)(coefficients)


class CrossEntropy(NamedTuple):
    """What `cross_entropy` returns."""

    losses: Tensor  # [P, M] float64; 0 where the target is ignored
    predictions: Tensor  # [P, M] int64
    loss_sums: Tensor  # [P] float64
    hits: Tensor  # [P] int64, correct predictions


def cross_entropy(
    logits: Tensor,  # [P, M, C]
    targets: Tensor,  # [M]
    ignore_index: int = -100,
) -> CrossEntropy:
    """Cross entropy, argmax and their sums over rows in one pass.

    Args:
        logits: float32 or float64, contiguous.
        targets: int64 class numbers, the same for all points.
        ignore_index: Rows with this target have loss 0 and are not counted; their prediction is given all the same.

    Returns:
        Losses, predictions (the first index on ties, NaN counts as largest, as ``torch.argmax``) and their sums.

    Raises:
        ValueError: A shape, dtype, memory layout or target does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = _require()
    dtype = _check_dtype("logits", logits)
    if logits.dim() != 3 or logits.shape[2] == 0:
        raise ValueError(f"logits: expected [P, M, C] with C > 0, got shape {tuple(logits.shape)}")
    points, rows, classes = logits.shape
    result = CrossEntropy(
        torch.empty((points, rows), dtype=torch.float64),
        torch.empty((points, rows), dtype=torch.int64),
        torch.empty(points, dtype=torch.float64),
        torch.empty(points, dtype=torch.int64),
    )
    native.cross_entropy(
        dtype is torch.float64,
        _check("logits", logits, logits.shape, dtype),
        _check("targets", targets, (rows,), torch.int64),
        (points, rows, classes),
        ignore_index,
        (result[0].data_ptr(), result[1].data_ptr(), result[2].data_ptr(), result[3].data_ptr()),
        torch.get_num_threads(),
    )
    return result
