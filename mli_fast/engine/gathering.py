"""Outputs of passes over a batch, put together so that many small ones are scored in one go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mli_fast.ops.cross_entropy import Unmultiplied
from mli_fast.reducers import Batch, Reducer
from mli_fast.trees import bytes_in, filled, leaves_of

TOGETHER = 2**20  # bytes of outputs of one batch that wait for one another


class Gathered:
    """What one batch's passes give, point after point.

    Args:
        reducer: scores outputs.
        score: takes the scores.
        waits: whether outputs may wait for one another; only if the targets are the same at all points.
    """

    def __init__(self, reducer: Reducer, score: Batch, waits: bool) -> None:
        self._reducer, self._score, self._waits = reducer, score, waits
        self._buffers: list[Any] = []  # leaves of the outputs, tensors with room for more points
        self._start = self._count = self._room = 0
        self._tree: tuple[Any, Any] = None, None

    def put(self, start: int, count: int, outputs: Any, targets: Any) -> None:
        """The results at points start..start+count-1; they may be overwritten afterwards."""
        if isinstance(outputs, Unmultiplied):
            self._add(start, outputs, targets)
            return
        if self._count and (start != self._start + self._count or self._count + count > self._room):
            self.flush()
        leaves = leaves_of(outputs)
        if not self._count:
            size = bytes_in(leaves)
            self._room = min(count * (TOGETHER // max(size, 1)), self._reducer.points - start)
            if not self._waits or self._room <= count:
                self._add(start, outputs, targets)
                return
            self._start, self._tree = start, (outputs, targets)
            self._buffers = [
                torch.empty((self._room, *t.shape[1:]), dtype=t.dtype, device=t.device) if isinstance(t, Tensor) else t
                for t in leaves
            ]
        at = slice(self._count, self._count + count)
        for buffer, leaf in zip(self._buffers, leaves, strict=True):
            if isinstance(leaf, Tensor):
                buffer[at] = leaf
        self._count += count

    def flush(self) -> None:
        """Score what waits."""
        if not self._count:
            return
        outputs, targets = self._tree
        done = [b[: self._count] if isinstance(b, Tensor) else b for b in self._buffers]
        self._count = 0
        self._add(self._start, filled(outputs, done), targets)

    def _add(self, start: int, outputs: Any, targets: Any) -> None:
        self._score.put(start, self._reducer.values(outputs, targets, start == 0, self._score.index))
