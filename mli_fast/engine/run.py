"""The loop over the data: every batch is read once and evaluated at all points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mli_fast.blended import Memo
from mli_fast.engine.batches import examples
from mli_fast.engine.evaluators import engine_of
from mli_fast.engine.feeding import fed
from mli_fast.engine.graphs import CudaRecorder
from mli_fast.engine.guard import Noise, noting
from mli_fast.engine.network import Network
from mli_fast.engine.passes import Passes
from mli_fast.engine.plan import Plan, another_plan, choose, limits
from mli_fast.engine.points import Points
from mli_fast.engine.slopes import Slopes
from mli_fast.reducers import Batch, Reducer, Values

KEPT = 4  # activations of a pass that one work leaves to the next, where works are alike


@dataclass
class Work:
    """One sweep: a network at its points, and what to keep of its outputs."""

    network: Network
    points: Points
    reducer: Reducer
    places: NDArray[Any]  # [P] or [P, axes], for messages
    device: torch.device
    chunk: int | str = "auto"
    compile: bool | str = "auto"
    example_bytes: int | None = None  # the widest activation of one example at one point, where that is known
    axes: tuple[str, ...] = ("alpha",)
    slopes: Slopes | None = None  # where the reducer wants them
    loops: bool = False  # the model has to see one point at a time
    plan: Plan | None = None
    passes: Passes | None = None

    def called(self, p: int) -> str:
        """Point p as messages name it."""
        coordinates = self.places[p].reshape(-1)
        return ", ".join(f"{axis} {value:g}" for axis, value in zip(self.axes, coordinates, strict=True))


def run(works: Sequence[Work], batches: Iterable[Any], progress: bool, alike: bool = False) -> None:
    """Evaluate every batch at every point of every work.

    Args:
        works: one or more of one network.
        batches: read once.
        progress: whether a bar is shown.
        alike: the works have values in common, so what one of them finds to be the same at all its points may be at
            the others' too.

    Raises:
        ValueError: no batches, or one that cannot be scored.
        Exception: what the model, the loader or a metric raises, with a note of the batch and the points.
    """
    length = _length(batches)
    # tqdm starts a thread of its own even where it shows nothing
    with tqdm(total=length, unit=" batches", desc="mli_fast") if progress else nullcontext() as bar:
        for index, batch in enumerate(fed(_noted(batches), works[0].device)):
            memo, noise = Memo(KEPT * limits(works[0].device).activation_bytes) if alike else None, Noise()
            for work in works:
                noise.again()
                if work.plan is None:
                    work.plan = _plan(work, batch)
                _evaluate(work, batch, index, 0 if length is None else length - index - 1, memo)
                if memo is not None:
                    memo.let_go()
            if bar is not None:
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                speed = sum(work.points.count * work.reducer.count for work in works) / seconds
                bar.set_postfix_str(f"{speed:,.0f} points x examples/s", refresh=False)
                bar.update()
    for work in works:
        if work.reducer.batches == 0:
            raise ValueError("the loader is empty: there is nothing to evaluate")
        work.reducer.finish()


def _length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, None where nobody knows beforehand."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a DataLoader over an iterable dataset
        return None


def _noted(batches: Iterable[Any]) -> Iterator[Any]:
    index, iterator = 0, iter(batches)
    while True:
        with noting(f"while the loader made batch {index}"):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch
        index += 1


def _plan(work: Work, batch: Any) -> Plan:
    """Estimated without running the model: every weight meets every example once."""
    rows = examples(batch)
    shapes = [a[0].shape for a in work.points.anchors.values()]
    weights = sum(s.numel() for s in shapes)
    widest = max((4 * s[0] for s in shapes if len(s)), default=4)
    if work.device.type == "cuda" and work.example_bytes is not None:
        widest = work.example_bytes
    if work.loops:
        return Plan("loop", "batch norm looks at the batch", 1)
    compiled = work.compile is True
    return choose(rows * weights, rows * widest, work.points.count, work.chunk, compiled, work.device)


def _evaluate(work: Work, batch: Any, index: int, batches_left: int, memo: Memo | None) -> None:
    """One batch at all points; again from its first point where the way it was done does not work for this model."""
    while True:
        scores = Batch(work.reducer)
        try:
            _pass(work, batch, index, batches_left, scores, memo)
        except Exception as error:
            assert work.plan is not None
            other = another_plan(work.plan, error, batch, index, work.device)
            if other is None:
                raise
            work.plan, work.passes = other, None
        else:
            if work.slopes is not None:
                _add_slopes(work, work.slopes, batch, index, scores)
            scores.close()
            return
        if work.device.type == "cuda":
            torch.cuda.empty_cache()  # of what did not fit; out here, where the error no longer holds on to it


def _add_slopes(work: Work, slopes: Slopes, batch: Any, index: int, scores: Batch) -> None:
    assert work.passes is not None
    for p in range(work.points.count):
        work.passes.noise_again()
        with noting(f"in batch {index}, the slope at point {p} of {work.points.count} ({work.called(p)})"):
            scores.put_slope(p, *slopes.at(batch, p))


def _pass(work: Work, batch: Any, index: int, batches_left: int, scores: Batch, memo: Memo | None) -> None:
    plan, count = work.plan, work.points.count
    assert plan is not None
    if work.passes is None:
        engine = engine_of(plan, work.network, work.points, work.reducer.takes_last_product)
        recorded = work.device.type == "cuda" and work.compile == "auto"
        recorder = CudaRecorder(work.device) if recorded else None
        work.passes = Passes(engine, work.points, work.reducer.values, recorder)
    work.passes.batches_left = batches_left
    chunk = plan.chunk if plan.engine == "vmap" else count
    for start in range(0, count, chunk):
        _chunk(work, index, scores, work.passes.over(batch, start, min(start + chunk, count), memo), start)


def _chunk(work: Work, index: int, scores: Batch, found: Iterator[tuple[int, Values]], start: int) -> None:
    plan, count = work.plan, work.points.count
    assert plan is not None
    first, last = start, min(start + plan.chunk, count) - 1 if plan.engine == "vmap" else start
    try:
        for p, values in found:
            scores.put(p, values)
            if plan.engine == "loop":
                first = last = min(p + 1, count - 1)
    except Exception as error:
        where = work.called(first) if first == last else f"{work.called(first)} to {work.called(last)}"
        points = f"points {first}..{last} of {count} ({where})"
        error.add_note(f"mli_fast: in batch {index}, {points}, engine {plan.engine!r}")
        raise
