"""Which kernel computes an op: one table of the kernels there are, and the measured figures that choose among them.

``figures.json`` beside this file holds what was measured: a row for each op, kernel, dtype, class of shapes and
architecture, with the machine, the date and the ratio of the time of PyTorch's own operations to the kernel's, as the
geometric mean over the shapes of the class. "auto" takes the kernel with the best figure above 1 and otherwise
PyTorch's own operations, so a kernel that has not been measured on an architecture is never chosen there; asking for a
backend by name takes its kernels as they are. Nothing here may depend on which points are asked for, or on how many:
a point's value must not. ``MLI_FAST_FIGURES`` in the environment names another file of figures.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast.native.checks import unreadable
from mli_fast.ops.backend import current, usable

PLAIN = "reference"  # PyTorch's own operations
_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)  # what is freed of these the kernels refuse themselves

FIGURES = Path(os.environ.get("MLI_FAST_FIGURES") or Path(__file__).with_name("figures.json"))


class Kernel(NamedTuple):
    """One row: a kernel, what asks for it, and what it can run on."""

    op: str
    name: str
    backend: str  # the `backend=` that asks for it
    device: str
    dtypes: frozenset[str]  # of the first operand; "tf32" is float32 data multiplied in TF32
    least: int = 0  # compute capability, 10 * major + minor
    most: int = 1000
    wide: bool = False  # other operands may be float32 beside a narrower first one


F32 = frozenset({"float32"})
FLOATS = frozenset({"float32", "tf32", "bfloat16", "float16"})
ALL = FLOATS | {"float64"}

KERNELS = (
    *(Kernel(op, "native", "native", "cpu", F32) for op in ("blend", "combine", "linear", "chain", "conv")),
    Kernel("cross_entropy", "native", "native", "cpu", F32),
    # what was compiled for sm_90a runs on that architecture alone
    Kernel("blend", "native", "native", "cuda", ALL, least=80, wide=True),
    Kernel("linear", "native", "native", "cuda", FLOATS, least=90, most=90),
    Kernel("conv", "cudnn", "native", "cuda", FLOATS, least=80, wide=True),
    Kernel("blend", "triton", "triton", "cuda", ALL, least=80, wide=True),
    Kernel("combine", "triton", "triton", "cuda", ALL, least=80, wide=True),
    Kernel("linear", "triton", "triton", "cuda", FLOATS, least=80, wide=True),
    Kernel("linear_of_products", "triton", "triton", "cuda", FLOATS, least=80, wide=True),
    Kernel("conv", "triton", "triton", "cuda", FLOATS, least=80, wide=True),
    Kernel("cross_entropy", "triton", "triton", "cuda", ALL, least=80),
    Kernel("linear_cross_entropy", "triton", "triton", "cuda", FLOATS, least=80, wide=True),
)


def shape_class(op: str, *sizes: int) -> str:
    """The class of shapes that figures are kept for.

    Args:
        op: the op's name.
        sizes: linear, linear_of_products: (M, N, K), rows of one point, columns, depth. linear_cross_entropy: (V,), the
            classes. conv: (dimensions, N, C), the spatial dimensions and the channels out of and into one group.
            Others: anything, there is one class.
    """
    if op in ("linear", "linear_of_products"):
        rows = sizes[0]
        return "few rows" if rows <= 64 else "some rows" if rows <= 512 else "many rows"
    if op == "linear_cross_entropy":
        return "few classes" if sizes[0] <= 256 else "many classes"
    if op == "conv":
        dimensions, columns, channels = sizes
        if dimensions != 2 or columns < 16 or channels < 8:
            return "thin"  # too few channels to fill a tile
        return "small" if max(columns, channels) <= 64 else "large"
    return "any"


@functools.cache
def figures() -> dict[tuple[str, str, str, str], dict[str, float]]:
    """(op, dtype, class, architecture) -> kernel -> the time of PyTorch's own operations over its own."""
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in json.loads(FIGURES.read_text()):
        key = row["op"], row["dtype"], row["shape_class"], row["arch"]
        found.setdefault(key, {})[row["kernel"]] = float(row["ratio"])
    return found


@functools.cache
def architecture(device: torch.device) -> tuple[str, int]:
    """How figures call it, and its compute capability as one number (0 on a CPU)."""
    if device.type != "cuda":
        return device.type, 0
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}", 10 * major + minor


@functools.cache
def ranked(op: str, device: torch.device, dtype: str, cls: str, backend: str) -> tuple[Kernel, ...]:
    """The kernels to try in turn, before PyTorch's own operations.

    Args:
        op: the op's name.
        device: where the operands are.
        dtype: "float32", "tf32", "bfloat16", "float16" or "float64".
        cls: of `shape_class`.
        backend: of `mli_fast.ops.backend.BACKENDS`.
    """
    arch, capability = architecture(device)
    # Triton's interpreter runs on the CPU what is written for a GPU, for tests: only when it is asked for.
    kinds = {device.type, "cuda" if backend == "triton" else device.type}
    able = [
        k
        for k in KERNELS
        if k.op == op
        and dtype in k.dtypes
        and k.device in kinds
        and (device.type != "cuda" or k.least <= capability <= k.most)
        and (k.device == device.type or k.backend == "triton")
        and usable(k.backend, device.type)
    ]
    if backend != "auto":
        return tuple(k for k in able if k.backend == backend)
    ratios = figures().get((op, dtype, cls, arch), {})
    winning = [k for k in able if ratios.get(k.name, 0.0) > 1.0]
    return tuple(sorted(winning, key=lambda k: -ratios[k.name]))


def choose(
    op: str,
    operands: Sequence[Tensor | None],
    cls: str = "any",
    fits: Callable[[str], bool] | None = None,
    noted: bool = True,
) -> str:
    """The name of the kernel that computes this call, `PLAIN` for PyTorch's own operations.

    Args:
        op: the op's name.
        operands: all tensors of the call; the first one's dtype and device decide.
        cls: of `shape_class`.
        fits: says of a kernel whether it takes this call's layout.
        noted: whether the choice goes into the provenance.
    """
    choice = current()
    first = operands[0]
    assert first is not None
    key = op, first.device, first.dtype, cls
    kernels = choice.ranked.get(key)
    if kernels is None:
        dtype = "tf32" if choice.tf32 and first.dtype == torch.float32 else str(first.dtype).removeprefix("torch.")
        kernels = choice.ranked[key] = ranked(op, first.device, dtype, cls, choice.backend)
    name = PLAIN
    for kernel in kernels:
        if _alike(operands, first, kernel.wide) and (fits is None or fits(kernel.name)):
            name = kernel.name
            break
    if noted:
        choice.used.add(f"{op}:{name}")
    return name


def _alike(operands: Sequence[Tensor | None], first: Tensor, wide: bool) -> bool:
    """Whether all operands are where the first is and of its dtype, or wider where the kernel takes that.

    A kernel reads memory: what holds other values there, or none, is left to PyTorch.
    """
    return all(
        t is None
        or (
            t.device == first.device
            and (t.dtype == first.dtype or (wide and t.dtype in (torch.float32, first.dtype)))
            and not t.is_neg()
            and (type(t) in _PLAIN_TENSORS or unreadable(t) is None)
        )
        for t in operands
    )
