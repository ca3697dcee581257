"""Which implementation an op uses: one table, from measured figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.points import channels_last

BACKENDS = ("auto", "reference", "native", "triton")


@dataclass
class Choice:
    """The backend asked for, and what one sweep collects on the way."""

    backend: str = "auto"
    used: set[str] = field(default_factory=set)  # "op:backend"
    layouts: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict
    )  # id of a weight -> it, its channels-last copy


_current: ContextVar[Choice | None] = ContextVar("mli_fast_choice", default=None)


def backends() -> dict[str, dict[str, object]]:
    """Say which backends are usable here and, for those that are not, why.

    Returns:
        For each of "reference", "native" and "triton" a dict with `available` (bool) and `reason` (str).

    Example:
        >>> backends()["reference"]["available"]
        True
    """
    missing = native.why_missing()
    found = f"compiled CPU kernels, instruction set {native.isa()}" if missing is None else missing
    return {
        "reference": {"available": True, "reason": f"plain PyTorch {torch.__version__}"},
        "native": {"available": missing is None, "reason": found},
        "triton": {"available": False, "reason": "this version has no GPU kernels yet; it runs on the CPU"},
    }


def require(name: str) -> None:
    """Raise unless backend `name` can be asked for here.

    Raises:
        ValueError: the name is unknown, or the backend is not usable here (the message says why).
    """
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(map(repr, BACKENDS))}")
    if name != "auto" and not backends()[name]["available"]:
        raise ValueError(f"backend={name!r} is not usable here: {backends()[name]['reason']}")


@contextlib.contextmanager
def requested(name: str) -> Iterator[Choice]:
    """Run the block with backend `name`; `used` of what it yields collects the kernels."""
    choice = Choice(name)
    token = _current.set(choice)
    try:
        yield choice
    finally:
        _current.reset(token)


def native_serves(op: str, *tensors: Tensor | None, wins: bool = True) -> bool:
    """Whether the compiled kernel of `op` takes this call, which is noted."""
    serves = native_takes(*tensors, wins=wins)
    if (choice := _current.get()) is not None:
        choice.used.add(f"{op}:{'native' if serves else 'reference'}")
    return serves


def native_takes(*tensors: Tensor | None, wins: bool = True) -> bool:
    """Whether a compiled kernel takes these: float32 on the CPU, and measured to win (or asked for)."""
    choice = _current.get()
    backend = "auto" if choice is None else choice.backend
    return (
        (backend == "native" or (backend == "auto" and wins))
        and native.module() is not None
        and all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors)
    )


def weight_channels_last(weight: Tensor) -> Tensor:
    """A convolution's weight with its channels innermost, laid out once per sweep."""
    choice = _current.get()
    if choice is None:
        return channels_last(weight)
    if id(weight) not in choice.layouts:
        choice.layouts[id(weight)] = weight, channels_last(weight)
    return choice.layouts[id(weight)][1]
