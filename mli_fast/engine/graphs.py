"""CUDA graphs: what a pass launches is recorded once and launched whole from then on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mli_fast.blended.memo import copied, mapped, tensors_in
from mli_fast.engine.evaluators import LoopEngine, VmapEngine
from mli_fast.engine.points import Points
from mli_fast.reducers import Values

Result = TypeVar("Result")
Replay = Callable[[], None]
Score = Callable[[Any, Any, bool], Values]  # outputs, targets, whether they are the first of their batch


class Recorder(Protocol):
    """What records and replays: a GPU's, or a stand-in for tests."""

    def timed(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """The result of `work`, the seconds until all of it was launched, and until it was done."""

    def record(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """The result of `work`, not computed yet, and what computes it, again and again in the same memory."""


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory: they run one after the other, never side by side."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None

    def timed(self, work: Callable[[], Result]) -> tuple[Result, float, float]:
        """See `Recorder`."""
        torch.cuda.current_stream().synchronize()
        started = time.perf_counter()
        result = work()
        launched = time.perf_counter()
        torch.cuda.current_stream().synchronize()
        return result, launched - started, time.perf_counter() - started

    def record(self, work: Callable[[], Result]) -> tuple[Result, Replay]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # a loader's threads may go on talking to the GPU meanwhile
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._pool = graph.pool()
        return result, graph.replay


class Recording:
    """The passes over batches of one kind: the first over a batch, which computes what its points share, and the rest.

    Args:
        batch: one of them, on the device.
        points: the points.
        size: how many a pass takes.
        engine: what evaluates them.
        score: what is kept of a pass.
        recorder: what records.
    """

    def __init__(
        self, batch: Any, points: Points, size: int, engine: LoopEngine | VmapEngine, score: Score, recorder: Recorder
    ) -> None:
        self._points = points
        self._batch = copied(batch)
        self._coefficients = [c.clone() for c in points.groups(0, size)]
        memo = self._memo = engine.memo()

        def passing(first: bool) -> Values:
            return score(*engine.step(self._batch, self._coefficients, memo), first)

        self._first = recorder.record(lambda: passing(True))
        self._following = self._first if memo is None else recorder.record(lambda: passing(False))

    def load(self, batch: Any) -> None:
        """The batch that the next passes are over."""
        for mine, theirs in zip(tensors_in(self._batch), tensors_in(batch), strict=True):
            mine.copy_(theirs)

    def values(self, start: int, stop: int, again: bool) -> Values:
        """What is kept of points start..stop-1, overwritten by the next pass.

        Args:
            start: the first point.
            stop: the point after the last.
            again: whether a pass over the batch at hand has been replayed before: then what points share is there.
        """
        for mine, theirs in zip(self._coefficients, self._points.groups(start, stop), strict=True):
            mine.copy_(theirs)
        values, replay = self._following if again else self._first
        replay()
        return values


def kind(batch: Any, size: int) -> Any:
    """What batches and passes have in common that one recording serves; None for a batch that none can serve."""
    parts: list[Any] = []

    def note(leaf: Any) -> None:
        parts.append((leaf.shape, leaf.dtype, leaf.stride()) if isinstance(leaf, Tensor) else leaf)

    mapped(note, batch)
    key = (size, *parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key
