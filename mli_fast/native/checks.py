"""What every kernel is told about its tensors: checked shapes, dtypes and memory, as addresses and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5}
_DTYPES = (torch.float32, torch.float64)


def unreadable(tensor: Tensor) -> str | None:
    """Why no memory holds a strided tensor's values, None if some does. Its values are not touched.

    PyTorch's own operators do not ask: they read through a null pointer.
    """
    try:
        storage = tensor.untyped_storage()
        at, size = storage.data_ptr(), storage.nbytes()
    except RuntimeError:
        return f"a {type(tensor).__name__}, a tensor subclass whose values are elsewhere"
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    needed = (tensor.storage_offset() + 1 + sum((n - 1) * s for n, s in steps)) * tensor.element_size()
    if tensor.numel() == 0 or (at != 0 and needed <= size):
        return None
    return "a tensor whose storage was freed, shrunk or never allocated (as FSDP leaves parameters between uses)"


def address(name: str, tensor: Tensor) -> int:
    """Where a tensor's values begin, once it is sure that they are there as they are."""
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{name}: a negative or conjugate view, whose memory holds other values; resolve it first")
    if (reason := unreadable(tensor)) is not None:
        raise ValueError(f"{name}: {reason}")
    return tensor.data_ptr()


def check(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Address of a contiguous CPU tensor of exactly this shape and dtype."""
    if tensor.shape != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} of shape {tuple(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.is_contiguous():
        layout = f"strides {tensor.stride()}" if tensor.layout is torch.strided else f"layout {tensor.layout}"
        raise ValueError(f"{name}: needs contiguous CPU memory, got {tensor.device}, {layout}")
    return address(name, tensor)


def check_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}: the compiled kernels take float32 and float64, got {tensor.dtype}")
    return tensor.dtype


def addresses(name: str, tensors: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> list[int]:
    if not tensors:
        raise ValueError(f"{name}: at least one is needed")
    return [check(name, tensor, shape, dtype) for tensor in tensors]


def check_coefficients(coefficients: Tensor, count: int) -> tuple[int, int]:
    """Number of points P and the address of coefficients [P, R] float64."""
    if coefficients.dim() != 2:
        raise ValueError(f"coefficients: expected [points, anchors], got shape {tuple(coefficients.shape)}")
    points = coefficients.shape[0]
    return points, check("coefficients", coefficients, (points, count), torch.float64)


PackedEpilogue = tuple[int, ...]  # addresses of scale, shift, residual; their point strides; activation


def epilogue(
    points: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    scale: Tensor | None,  # [P, N] or [N]
    shift: Tensor | None,  # [P, N] or [N]
    residual: Tensor | None,  # [P, M, N] or [M, N] in memory order
    activation: str,
) -> PackedEpilogue:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    addresses, strides = [0, 0, 0], [0, 0, 0]
    tails = ((columns,), (columns,), (rows, columns))
    terms = zip(("scale", "shift", "residual"), (scale, shift, residual), tails, strict=True)
    for i, (name, tensor, tail) in enumerate(terms):
        if tensor is not None:
            per_point = tensor.dim() > len(tail)
            addresses[i] = check(name, tensor, (points, *tail) if per_point else tail, dtype)
            strides[i] = prod(tail) if per_point else 0
    return (*addresses, *strides, ACTIVATIONS[activation])
