"""What the Triton kernels share: the weighted sum of anchors, activations, rounding to TF32, and how they are launched.

Only the `triton.py` of an op imports this, and only where a Triton kernel is about to run: Triton is optional.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor


def spaced(tensors: Sequence[Tensor]) -> tuple[Tensor, int]:
    """The first of R tensors and how many elements apart they lie, so that a kernel takes one address for all.

    Tensors that do not lie equally far apart, or are laid out differently, are copied into one block.

    Args:
        tensors: R tensors of one shape and dtype.
    """
    first, size = tensors[0], tensors[0].element_size()
    steps = {b.data_ptr() - a.data_ptr() for a, b in pairwise(tensors)}
    if len(steps) <= 1 and all(t.stride() == first.stride() for t in tensors):
        step = steps.pop() if steps else 0
        if step % size == 0:
            return first, step // size
    block = torch.stack(list(tensors))
    return block[0], block.stride(0)


def expect(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Check what a kernel takes as it is: a shape, a dtype, and that the last dimension is contiguous.

    Raises:
        ValueError: with the tensor's name and what it is instead.
    """
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    if shape and shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} {tuple(shape)} has strides {tensor.stride()}: its last dimension is not contiguous")


def input_precision(dtype: torch.dtype, tf32: bool) -> str:
    """How `tl.dot` multiplies operands of that dtype: float32 in split precision, or rounded to TF32 beforehand.

    Halves are multiplied as they are, and the interpreter multiplies exactly.
    """
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if tf32 else "ieee" if INTERPRETED else "tf32x3"


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@no_type_check
@triton.jit
def add_weighted(total, coefficient, term):
    """total + coefficient * term; an anchor of coefficient exactly 0 is left out, whatever it holds."""
    return tl.where(coefficient == 0, total, plus_product(total, coefficient, term))


@no_type_check
@triton.jit
def plus_product(total, coefficient, term):
    """total + coefficient * term in one rounding, so that every kernel rounds alike; all three of one dtype."""
    return tl.fma(coefficient, term, total)


@no_type_check
@triton.jit
def coefficient_column(coefficients, r, LENGTH: tl.constexpr):
    """Coefficient r as a column [LENGTH, 1], to blend a tile with.

    It is the same value LENGTH times, read from memory: blending with a scalar, Triton 3.6 would not blend in the
    layout of the matrix unit's operand but carry every blended tile through shared memory.
    """
    return tl.load(coefficients + r + tl.zeros((LENGTH,), tl.int32)).to(tl.float32)[:, None]


INTERPRETED = tl.constexpr(not isinstance(plus_product, triton.JITFunction))


@no_type_check
@triton.jit
def bound(n):
    """n as the end of a loop: interpreted scalars are arrays of one element, which NumPy no longer takes as one."""
    if INTERPRETED:
        return n.handle.data.item() if hasattr(n, "handle") else int(n)
    else:
        return n


@no_type_check
@triton.jit
def affine(x, scale, shift):
    """x * scale + shift, where either may be None."""
    if scale is not None:
        if shift is not None:
            x = tl.fma(x, scale, shift)
        else:
            x = x * scale
    elif shift is not None:
        x = x + shift
    return x


@no_type_check
@triton.jit
def settled(accumulator):
    """The accumulator once its products are done, for use after every `tl.dot` whose left operand is in registers.

    Without it Triton 3.6 lets Hopper's asynchronous products run on while the next block's left operand is written
    over the registers they still read (triton-lang/triton#9433). The empty assembly makes Triton wait, no more.
    """
    if not INTERPRETED:
        accumulator = tl.inline_asm_elementwise("", "=r,0", [accumulator], tl.float32, is_pure=True, pack=1)
    return accumulator


@no_type_check
@triton.jit
def rounded_to_tf32(x):
    """To the nearest TF32 value, ties away from zero, as cvt.rna does; the matrix units truncate. NaN and Inf stay."""
    bits = x.to(tl.int32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, (bits + 0x1000) & -8192, bits).to(tl.float32, bitcast=True)


@no_type_check
@triton.jit
def _tanh(x):
    # 1 - 2 / (exp(2x) + 1) cancels near 0; there the odd series, or the continued fraction, is exact to x's dtype
    square = x * x
    if x.dtype == tl.float64:
        series = x / (1.0 + square / (3.0 + square / (5.0 + square / (7.0 + square / (9.0 + square / 11.0)))))
    else:
        series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.2, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@no_type_check
@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of that name, as in `mli_fast.ops.epilogue.ACTIVATIONS`; x in float32 or wider."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)  # keeps NaN, as PyTorch does
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        x = _tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x
