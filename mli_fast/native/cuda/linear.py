"""The blended linear layer on Hopper GPUs (compute capability 9.0): blended weights are the matrix units' operand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.native.checks import ACTIVATIONS
from mli_fast.native.cuda.checks import aligned, check
from mli_fast.native.cuda.loading import built, capability, launch_on, require, why_missing

_NARROW = {torch.bfloat16: 0, torch.float16: 1}
_TF32, _SPLIT = 2, 3


def takes(
    x: Tensor,  # [P, *rows, K] or [M, K]
    weights: Sequence[Tensor],  # R x [N, K]
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    tf32: bool = False,
) -> bool:
    """Whether `linear` takes these once x, scale, shift and residual are contiguous. Raises nothing.

    Says no to other GPUs, to float64, to more than 4 anchors, to K = 0, to memory that TMA cannot read (rows of x or
    of the weights that are not a multiple of 16 bytes, addresses likewise), and to anchors of another dtype than x.
    """
    del tf32  # float32 goes either way
    if why_missing() is not None or not x.is_cuda or capability(x.device) != (9, 0):
        return False
    terms = [t for t in (scale, shift, residual) if t is not None]
    return (
        (x.dtype in _NARROW or x.dtype == torch.float32)
        and 1 <= len(weights) <= built().most_anchors  # type: ignore[union-attr]
        and x.shape[-1] > 0
        and aligned(x.shape[-1] * x.element_size(), x.data_ptr())
        and all(_readable(w, x) for w in weights)
        and all(t.dtype in (x.dtype, torch.float32) for t in terms)
    )


def _readable(weight: Tensor, x: Tensor) -> bool:
    return (
        weight.dtype == x.dtype
        and weight.device == x.device
        and weight.is_contiguous()
        and aligned(weight.shape[-1] * weight.element_size(), weight.data_ptr())
    )


def split(
    x: Tensor,  # [...]
) -> Tensor:  # [2, ...]
    """float32 as the sum of two TF32 values: the first is x rounded to nearest, the second what is missing.

    For `linear` in split precision; layers that share an input can share this.

    Raises:
        ValueError: x is not float32, not contiguous or not on a GPU.
        RuntimeError: There are no CUDA kernels here.
    """
    native = require()
    if not x.is_cuda:
        raise ValueError(f"x: needs memory on a GPU, got {x.device}")
    at = check("x", x, x.shape, torch.float32, x.device)
    parts = torch.empty(2, *x.shape, dtype=torch.float32, device=x.device)
    if x.numel():
        native.split(at, parts.data_ptr(), x.numel(), *launch_on(x.device))
    return parts


def linear(
    x: Tensor,  # [P, M, K], or [M, K] shared by all points
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R]
    *,
    scale: Tensor | None = None,  # [P, N]
    shift: Tensor | None = None,  # [P, N]
    residual: Tensor | None = None,  # [P, M, N]
    activation: str = "none",
    tf32: bool = False,
    out: Tensor | None = None,  # [P, M, N]
    parts: Tensor | None = None,  # [2, *x.shape]
    cluster: int = 0,
) -> Tensor:  # [P, M, N]
    """``act((x W(p)^T) * scale + shift + residual)`` with ``W(p) = sum_r coefficients[p, r] * weights[r]``.

    The weights are blended in float32 and rounded once to what the matrix units take. float32 data is multiplied as
    TF32 values, rounded to nearest, or, without `tf32`, each number as the sum of two of them (three products, sums
    over 32 elements of K added up in float32), which is about as exact as float32; there an infinite product may come
    out as NaN.

    Args:
        x: bfloat16, float16 or float32, contiguous.
        weights: 1 to 4, of x's dtype, contiguous.
        coefficients: float64, on the device. An anchor whose coefficient is exactly 0 is left out.
        scale: Factor per output column, of x's dtype or float32; so are the next two.
        shift: Summand per output column.
        residual: Summand per output element.
        activation: One of `mli_fast.native.ACTIVATIONS`.
        tf32: Whether float32 data is multiplied in TF32.
        out: Written and returned if given; of x's dtype or float32.
        parts: What `split` made of x, if the caller has it.
        cluster: Blocks that share the weights they read, 1 or 2; 0: chosen here. The result does not depend on it.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: There are no CUDA kernels here, or the GPU is not of compute capability 9.0.
    """
    native = require()
    device, dtype = x.device, x.dtype
    if not x.is_cuda or (dtype not in _NARROW and dtype != torch.float32):
        raise ValueError(f"x: expected bfloat16, float16 or float32 on a GPU, got {dtype} on {device}")
    if capability(device) != (9, 0):
        raise RuntimeError(f"linear: needs a GPU of compute capability 9.0, {device} has {capability(device)}")
    if x.dim() not in (2, 3) or coefficients.dim() != 2 or not 1 <= len(weights) <= native.most_anchors:
        raise ValueError(
            f"linear: expected x [P, M, K] or [M, K], coefficients [P, R] and 1 to {native.most_anchors} weights; got "
            f"{tuple(x.shape)}, {tuple(coefficients.shape)} and {len(weights)} weights"
        )
    if activation not in ACTIVATIONS or cluster not in (0, 1, 2):
        raise ValueError(f"activation {activation!r} of {', '.join(ACTIVATIONS)}, cluster {cluster} of 0, 1, 2")
    points, shared = len(coefficients), x.dim() == 2
    (rows, depth), columns = x.shape[-2:], weights[0].shape[0]
    x_at = check("x", x, (rows, depth) if shared else (points, rows, depth), dtype, device)
    weights_at = [check(f"weights[{r}]", w, (columns, depth), dtype, device) for r, w in enumerate(weights)]
    coefficients_at = check("coefficients", coefficients, (points, len(weights)), torch.float64, device)
    vectors, matrix = (points, columns), (points, rows, columns)
    terms = [
        (0, False) if t is None else (check(name, t, shape, (dtype, torch.float32), device), t.dtype == torch.float32)
        for name, t, shape in (("scale", scale, vectors), ("shift", shift, vectors), ("residual", residual, matrix))
    ]
    if out is None:
        out = torch.empty(matrix, dtype=dtype, device=device)
    out_at = check("out", out, matrix, (dtype, torch.float32), device)
    if out.numel() == 0:
        return out
    pitch = depth * dtype.itemsize
    if depth == 0 or not aligned(pitch, x_at, *weights_at):
        raise ValueError(
            f"linear: rows of K elements and addresses have to be multiples of 16 bytes, K > 0; got x {tuple(x.shape)} "
            f"{dtype} at {x_at:#x}, weights {tuple(weights[0].shape)} at {', '.join(hex(a) for a in weights_at)}"
        )
    kind = _NARROW.get(dtype, _TF32 if tf32 else _SPLIT)
    if kind == _SPLIT:
        parts = split(x) if parts is None else parts
        x_at = check("parts", parts, (2, *x.shape), torch.float32, device)
    native.linear(
        kind,
        (x_at, pitch, rows * pitch),
        shared,
        [(at, pitch) for at in weights_at],
        coefficients_at,
        (points, rows, columns, depth),
        terms,
        (out_at, out.dtype == torch.float32),
        aligned(out_at, terms[2][0]) and columns % (8 if dtype in _NARROW else 4) == 0,
        ACTIVATIONS[activation],
        cluster,
        *launch_on(device),
    )
    return out
