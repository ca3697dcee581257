"""A batch at all points, pass by pass; passes are recorded where that was measured to pay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mli_fast.blended import Memo
from mli_fast.engine.evaluators import LoopEngine, Outputs, VmapEngine
from mli_fast.engine.graphs import Recorder, Recording, Score, kind
from mli_fast.engine.guard import Noise, first_line
from mli_fast.engine.points import Points
from mli_fast.reducers import Values

WARM = 2  # passes until compilers, workspaces and caches have settled
LAUNCHING = 0.8  # the share of a pass's time that goes into launching it from which on recording pays
WORTH = 4  # passes that have to be left: recording takes about two


class Passes:
    """Evaluates batches.

    Args:
        engine: what evaluates points.
        points: the points.
        score: what is kept of a pass.
        recorder: None where passes are never recorded.
    """

    def __init__(
        self, engine: LoopEngine | VmapEngine, points: Points, score: Score, recorder: Recorder | None = None
    ) -> None:
        self.batches_left = 0  # after the one at hand, as far as anybody knows
        self.recording = "off" if recorder is None else "not tried: too few passes"
        self._engine, self._points, self._score, self._recorder = engine, points, score, recorder
        self._recordings: dict[Any, Recording] = {}
        self._seen: set[Any] = set()
        self._warm = 0
        self._noise = Noise()

    def over(self, batch: Any, start: int, stop: int, memo: Memo | None = None) -> Iterator[tuple[int, Values]]:
        """(first point, what is kept) of points start..stop-1, a pass at a time.

        Args:
            batch: on the device.
            start: the first point; 0 begins a batch.
            stop: the point after the last; for the vmap engine it is one pass.
            memo: of this batch, where other points than these share what it holds.
        """
        size = 1 if isinstance(self._engine, LoopEngine) else stop - start
        key = None if self._recorder is None else kind(batch, size)
        if key is not None and self.recording == "yes" and key in self._seen - self._recordings.keys():
            self._record(key, batch, size)
        if key in self._recordings:
            yield from self._replayed(self._recordings[key], batch, start, stop, size)
            return
        self._seen.add(key)
        if start == 0:
            self._noise = Noise()
        eager = self._engine.evaluate(batch, start, stop, memo)
        for at in range(start, stop, size):
            trial = key is not None and self._warm == WARM
            yield self._timed(eager, size) if trial else self._next(eager)
            self._warm += 1
            if trial and self.recording == "worth it" and self._record(key, batch, size):
                yield from self._replayed(self._recordings[key], batch, at + size, stop, size)
                return

    def _next(self, eager: Iterator[Outputs]) -> tuple[int, Values]:
        self.noise_again()
        first, outputs, targets = next(eager)
        return first, self._score(outputs, targets, first == 0)

    def noise_again(self) -> None:
        """Every pass over a batch draws the same noise, whichever others were asked for."""
        self._noise.again()

    def _timed(self, eager: Iterator[Outputs], size: int) -> tuple[int, Values]:
        """The next pass, after which it is known whether launching is what takes the time."""
        assert self._recorder is not None
        count = self._points.count
        (first, values), launched, done = self._recorder.timed(lambda: self._next(eager))
        left = (count - first) // size - 1 + self.batches_left * (count // size)
        if not self._noise.unchanged():
            self.recording = "no: the model draws random numbers"
        elif launched < LAUNCHING * done:
            self.recording = f"no: launching a pass took {launched:.1e} s of its {done:.1e} s"
        elif left < WORTH:
            self.recording = "no: too few passes"
        else:
            self.recording = "worth it"
        return first, values

    def _record(self, key: Any, batch: Any, size: int) -> bool:
        assert self._recorder is not None
        try:
            self._recordings[key] = Recording(batch, self._points, size, self._engine, self._score, self._recorder)
        except Exception as error:  # noqa: BLE001 - a model that cannot be recorded runs as it is
            self.recording = f"no: {first_line(error)}"
            return False
        self.recording = "yes"
        return True

    def _replayed(
        self, recording: Recording, batch: Any, start: int, stop: int, size: int
    ) -> Iterator[tuple[int, Values]]:
        recording.load(batch)
        for at in range(start, stop, size):
            yield at, recording.values(at, at + size, again=at > start)
