"""The plan of a sweep: which engine, how many points and rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from mli_fast.blended import CannotDefer
from mli_fast.engine.batches import shapes
from mli_fast.engine.guard import first_line, out_of_memory

ENGINES = ("loop", "vmap")


@dataclass(frozen=True)
class Limits:
    """What suits a kind of device."""

    # Below this many multiply-adds of one point and one batch, what surrounds them costs more than they do, and many
    # points in one call pay; above, one point at a time keeps its activations in cache, or fills the GPU.
    small_work: int
    # The widest activation of one pass
    activation_bytes: int
    most_rows: int


LIMITS = {
    # a part of the last-level cache, yet enough rows that Python between kernels does not show: measured
    "cpu": Limits(2**22, 2**24, 4096),
    # estimated, no GPU has been asked: some multiples of what fills 132 multiprocessors, and of the L2 cache
    "cuda": Limits(2**32, 2**29, 8192),
}

# From this many points per pass on, a chain of layers is worth a pass of its own for its shared products
TOGETHER = 8


def limits(device: torch.device) -> Limits:
    """Those of the device; one that is neither a CPU nor a GPU of NVIDIA's is treated as a CPU."""
    return LIMITS.get(device.type, LIMITS["cpu"])


def fits_a_pass(size: int, device: torch.device) -> bool:
    """Whether `TOGETHER` results of `size` bytes are no more than a pass holds."""
    return size * TOGETHER <= limits(device).activation_bytes


_forced: ContextVar[str | None] = ContextVar("mli_fast_engine", default=None)


@contextlib.contextmanager
def forced(engine: str) -> Iterator[None]:
    """Run every sweep in the block with this engine, "loop" or "vmap".

    Raises:
        ValueError: no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is not one of {', '.join(map(repr, ENGINES))}")
    token = _forced.set(engine)
    try:
        yield
    finally:
        _forced.reset(token)


@dataclass
class Plan:
    """What was chosen, and why; the engine may change it when the model turns out to need something else."""

    engine: str
    reason: str
    chunk: int  # points per pass of the vmap engine
    is_forced: bool = False
    compiled: bool = False
    deferred: bool = True  # loop engine: parameters are blended where they are used
    yields: bool = False  # loop engine: gives way to vmap where that can take all points in one call
    chunk_asked_for: bool = False


def choose(
    work: int, activation_bytes: int, points: int, chunk: int | str, compile_: bool, device: torch.device
) -> Plan:
    """The plan for batches of this size.

    Nothing here may depend on which points are asked for: a point's value must not.

    Args:
        work: multiply-adds of one point on one batch.
        activation_bytes: the widest activation of one point on one batch.
        points: P, an upper bound of the chunk alone.
        chunk: the caller's.
        compile_: whether the caller asks for torch.compile, which works on the vmapped function.
        device: where it runs.
    """
    asked, limit = chunk != "auto", limits(device)
    size = int(chunk) if asked else evenly(points, limit.activation_bytes // max(activation_bytes, 1))
    size = min(size, points)
    engine = _forced.get()
    if engine is not None:
        return Plan(engine, "asked for", size, is_forced=True, compiled=compile_ and engine == "vmap")
    if compile_:
        return Plan("vmap", "compile=True compiles the vmapped function", size, compiled=True)
    if work <= limit.small_work:
        return Plan(
            "vmap", f"one point is little work for a batch ({work:,} multiply-adds): many points in a call", size
        )
    filled = "the GPU" if device.type == "cuda" else "the cores"
    reason = f"one point fills {filled} ({work:,} multiply-adds a batch): its activations stay in cache"
    return Plan("loop", reason, size, yields=True, chunk_asked_for=asked)


def evenly(points: int, most: int) -> int:
    """The size of the fewest chunks of at most `most` points that are as equal as can be."""
    chunks = -(-points // max(most, 1))
    return max(1, -(-points // max(chunks, 1)))


class OneChain(Exception):
    """What the loop engine found at the first point: the network is one chain of linear layers.

    Args:
        points: how many are to be evaluated.
        output_bytes: of one point on one batch.
    """

    def __init__(self, points: int, output_bytes: int) -> None:
        super().__init__()
        # on the CPU one call does it all, and its result is all that is stored
        self.chunk = min(points, max(1, LIMITS["cpu"].activation_bytes // max(output_bytes, 1)))


_BEYOND_VMAP = ("vmap", "atching rule", "functorch", "Batched", "have storage", "data pointer")
_BEYOND_DEFERRAL = ("__torch_function__", "BlendedTensor", "Pending", "have storage", "data pointer")


def another_plan(plan: Plan, error: Exception, batch: Any, index: int, device: torch.device) -> Plan | None:
    """What to try after `error`; None where the error is the model's, the data's or a metric's own.

    Raises:
        RuntimeError: memory ran out at a single point.
    """
    if isinstance(error, OneChain):
        chunk = plan.chunk if plan.chunk_asked_for or device.type == "cuda" else error.chunk
        return Plan("vmap", "linear layers alone: one call takes all points", chunk)
    if out_of_memory(error):
        if plan.engine == "vmap" and plan.chunk > 1:
            return replace(plan, chunk=plan.chunk // 2)
        raise RuntimeError(
            f"batch {index}: memory ran out with a single point at a time; a batch of shapes {shapes(batch)} needs all "
            f"anchors, one blended layer and one point's activations at once. Use smaller batches. ({error})"
        ) from error
    if plan.engine == "vmap" and not plan.is_forced and (isinstance(error, CannotDefer) or _says(error, _BEYOND_VMAP)):
        return Plan("loop", f"vmap cannot run this model: {first_line(error)}", plan.chunk)
    if plan.engine == "loop" and plan.deferred and (isinstance(error, CannotDefer) or _says(error, _BEYOND_DEFERRAL)):
        reason = f"{plan.reason}; values blended before each forward pass: {first_line(error)}"
        return replace(plan, deferred=False, yields=False, reason=reason)
    return None


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return isinstance(error, (RuntimeError, TypeError, NotImplementedError)) and any(w in str(error) for w in words)
