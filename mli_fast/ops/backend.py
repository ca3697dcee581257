"""Which backends there are, which one a sweep asks for, and what it collects on the way."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.native import cuda
from mli_fast.ops.memory import channels_last

BACKENDS = ("auto", "reference", "native", "triton")


@dataclass
class Choice:
    """The backend asked for, and what one sweep collects on the way."""

    backend: str = "auto"
    tf32: bool = False  # products of float32 data are taken in TF32
    used: set[str] = field(default_factory=set)  # "op:kernel"
    ranked: dict[Any, Any] = field(default_factory=dict)  # what the dispatch table said
    layouts: dict[int, tuple[Tensor, Tensor]] | None = None  # id of a weight -> it, its channels-last copy


_outside = Choice()  # for calls of ops outside a sweep
_current: ContextVar[Choice] = ContextVar("mli_fast_choice", default=_outside)


def current() -> Choice:
    """What the sweep at hand asks for."""
    return _current.get()


def backends() -> dict[str, dict[str, object]]:
    """Say which backends are usable here and, for those that are not, why.

    Returns:
        For each of "reference", "native" and "triton" a dict with `available` (bool) and `reason` (str).

    Example:
        >>> backends()["reference"]["available"]
        True
    """
    cpu, gpu = native.why_missing(), cuda.why_missing()
    compiled = f"compiled CPU kernels, instruction set {native.isa()}" if cpu is None else cpu
    compiled += f"; CUDA kernels for {', '.join(cuda.architectures())}" if gpu is None else f"; on a GPU no: {gpu}"
    triton = _triton_missing("cuda")
    if triton is None:
        triton = f"Triton {triton_version()} on {torch.cuda.get_device_name()}"
    elif usable("triton", "cpu"):
        triton = "interpreted on the CPU (TRITON_INTERPRET=1): right but very slow"
    return {
        "reference": {"available": True, "reason": f"plain PyTorch {torch.__version__}"},
        "native": {"available": cpu is None or gpu is None, "reason": compiled},
        "triton": {"available": usable("triton", "cuda") or usable("triton", "cpu"), "reason": triton},
    }


@functools.cache
def _triton_missing(device: str) -> str | None:
    """Why Triton kernels cannot run on such a device, None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None if device == "cpu" else "TRITON_INTERPRET=1 runs them on the CPU"
    if device != "cuda":
        return "Triton kernels run on a GPU"
    if not torch.cuda.is_available():
        return "this PyTorch sees no GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"the kernels need compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}"
    return None


@functools.cache
def triton_version() -> str | None:
    """The installed Triton's version, without importing it."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_not(name: str, device: str) -> str | None:
    """Why backend `name` has no kernels that run on a device of this type, "cpu" or "cuda"; None if it has."""
    if name == "triton":
        return _triton_missing(device)
    if name == "native":
        return cuda.why_missing() if device == "cuda" else native.why_missing()
    return None


@functools.cache
def usable(name: str, device: str) -> bool:
    """Whether backend `name` has kernels that run on a device of this type, "cpu" or "cuda"."""
    return _why_not(name, device) is None


def require(name: str, device: torch.device) -> None:
    """Raise unless backend `name` can be asked for on this device.

    Raises:
        ValueError: the name is unknown, or the backend is not usable there (the message says why).
    """
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(map(repr, BACKENDS))}")
    why = _why_not(name, device.type)
    if why is not None:
        raise ValueError(f"backend={name!r} is not usable on {device}: {why}")


@contextlib.contextmanager
def requested(name: str, tf32: bool = False) -> Iterator[Choice]:
    """Run the block with backend `name`; `used` of what it yields collects the kernels.

    Args:
        name: of `BACKENDS`.
        tf32: whether our kernels multiply float32 data in TF32; PyTorch's own follow PyTorch's flags.
    """
    choice = Choice(name, tf32, layouts={})
    token = _current.set(choice)
    try:
        yield choice
    finally:
        _current.reset(token)


def weight_channels_last(weight: Tensor) -> Tensor:
    """A convolution's weight with its channels innermost, laid out once per sweep."""
    layouts = current().layouts
    if layouts is None:
        return channels_last(weight)
    if id(weight) not in layouts:
        layouts[id(weight)] = weight, channels_last(weight)
    return layouts[id(weight)][1]
