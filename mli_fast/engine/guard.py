"""What must not outlive a sweep: changes to random states, and errors that do not say where they happened."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put PyTorch's, NumPy's and Python's global random states back at the end."""
    states = RngSnapshot(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        states[0].restore()
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


class RngSnapshot:
    """PyTorch's random states as they are now, on the CPU and on the current GPU."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def unchanged(self) -> bool:
        """Whether nothing was drawn since."""
        now = RngSnapshot()
        same_gpu = self._gpu is None or now._gpu is None or torch.equal(self._gpu, now._gpu)
        return same_gpu and torch.equal(self._cpu, now._cpu)

    def restore(self) -> None:
        """Put them back: what is drawn next is what was drawn next then."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)


@contextlib.contextmanager
def without_autocast(kinds: Iterable[str]) -> Iterator[None]:
    """Within the block the caller's autocast is off: it is the sweep that says the precision.

    No context of autocast's own, which would be the outermost one: values cast in the model would then be kept.
    """
    before = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    try:
        for kind in before:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind, was in before.items():
            torch.set_autocast_enabled(kind, was)


@contextlib.contextmanager
def on(device: torch.device, tf32: bool) -> Iterator[None]:
    """Work on this device: on a GPU, with the switches of `arithmetic` and as the current one."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.init()  # its random states are there to be kept from now on
    with torch.cuda.device(device), arithmetic(tf32):
        yield


class _Flag(NamedTuple):
    """One of PyTorch's switches: its holder and name, and what it is during a sweep."""

    holder: Any
    name: str
    wanted: Any


@contextlib.contextmanager
def arithmetic(tf32: bool) -> Iterator[None]:
    """Within the block a GPU's products of float32 are what the sweep says, sums are float32, algorithms fixed.

    PyTorch has an older and a newer name for the TF32 switches, and refuses to read the older ones where only the
    newer were set; so both are set, and both put back.

    Args:
        tf32: whether products of float32 round their operands to TF32.
    """
    matmul, cudnn, precision = torch.backends.cuda.matmul, torch.backends.cudnn, "tf32" if tf32 else "ieee"
    flags = [
        _Flag(matmul, "allow_tf32", tf32),
        _Flag(cudnn, "allow_tf32", tf32),
        _Flag(matmul, "fp32_precision", precision),
        _Flag(cudnn.conv, "fp32_precision", precision),  # type: ignore[attr-defined]
        _Flag(cudnn.rnn, "fp32_precision", precision),
        _Flag(matmul, "allow_bf16_reduced_precision_reduction", False),
        _Flag(matmul, "allow_fp16_reduced_precision_reduction", False),
        _Flag(cudnn, "benchmark", False),  # its winner may change from one process to the next
        _Flag(cudnn, "deterministic", True),
    ]
    before: list[_Flag] = []
    medium = False
    with contextlib.suppress(RuntimeError):
        medium = torch.get_float32_matmul_precision() == "medium"  # the one state that the flags do not hold
    for flag in flags:
        with contextlib.suppress(RuntimeError):  # an older name that PyTorch refuses to read
            before.append(flag._replace(wanted=getattr(flag.holder, flag.name)))
    try:
        for flag in flags:
            setattr(flag.holder, flag.name, flag.wanted)
        yield
    finally:
        if medium:
            torch.set_float32_matmul_precision("medium")
        for flag in before:
            if not (medium and flag.holder is matmul and flag.name == "allow_tf32"):
                setattr(flag.holder, flag.name, flag.wanted)


@contextlib.contextmanager
def noting(where: str) -> Iterator[None]:
    """Add to any exception where it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"mli_fast: {where}")
        raise


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in message or "out of memory" in message)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 characters."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
