"""The loop over the data: every batch is read once and evaluated at all points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mli_fast.blended.memo import mapped, tensors_in
from mli_fast.engine.evaluators import LoopEngine, VmapEngine, engine_of
from mli_fast.engine.guard import noting
from mli_fast.engine.network import Network
from mli_fast.engine.plan import Plan, another_plan, choose
from mli_fast.engine.points import Points
from mli_fast.reducers import Batch, Reducer


@dataclass
class Work:
    """One sweep: a network at its points, and what to keep of its outputs."""

    network: Network
    points: Points
    reducer: Reducer
    alphas: NDArray[Any]  # [P], for messages
    device: torch.device
    chunk: int | str = "auto"
    compile: bool = False
    plan: Plan | None = None
    engine: LoopEngine | VmapEngine | None = None


def run(work: Work, batches: Iterable[Any], progress: bool) -> None:
    """Evaluate every batch at every point.

    Raises:
        ValueError: no batches.
        Exception: what the model, the loader or a metric raises, with a note of the batch and the points.
    """
    # tqdm starts a thread of its own even where it shows nothing
    with tqdm(total=_length(batches), unit=" batches", desc="mli_fast") if progress else nullcontext() as bar:
        for index, batch in enumerate(_noted(batches)):
            batch = mapped(lambda x: x.to(work.device) if isinstance(x, Tensor) else x, batch)
            if work.plan is None:
                work.plan = _plan(work, batch)
            _evaluate(work, batch, index)
            if bar is not None:
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                speed = work.points.count * work.reducer.count / seconds
                bar.set_postfix_str(f"{speed:,.0f} points x examples/s", refresh=False)
                bar.update()
    if work.reducer.batches == 0:
        raise ValueError("the loader is empty: there is nothing to evaluate")


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
    rows = max((len(t) for t in tensors_in(batch) if t.ndim), default=1)
    shapes = [a[0].shape for a in work.points.anchors.values()]
    weights = sum(s.numel() for s in shapes)
    widest = max((s[0] for s in shapes if len(s)), default=1)
    return choose(rows * weights, 4 * rows * widest, work.points.count, work.chunk, work.compile)


def _evaluate(work: Work, batch: Any, index: int) -> None:
    """One batch at all points; again from its first point where the way it was done does not work for this model."""
    while True:
        scores = work.reducer.batch()
        try:
            _pass(work, batch, index, scores)
        except Exception as error:
            assert work.plan is not None
            other = another_plan(work.plan, error, batch, index)
            if other is None:
                raise
            work.plan, work.engine = other, None
            continue
        scores.close()
        return


def _pass(work: Work, batch: Any, index: int, scores: Batch) -> None:
    plan, count = work.plan, work.points.count
    assert plan is not None
    if work.engine is None:
        work.engine = engine_of(plan, work.network, work.points)
    chunk = plan.chunk if plan.engine == "vmap" else count
    for start in range(0, count, chunk):
        _chunk(work, batch, index, scores, start, min(start + chunk, count))


def _chunk(work: Work, batch: Any, index: int, scores: Batch, start: int, stop: int) -> None:
    assert work.engine is not None
    assert work.plan is not None
    at = start
    try:
        for p, outputs, targets in work.engine.evaluate(batch, start, stop):
            at = p
            scores.add(p, outputs, targets)
            at = min(p + 1, stop - 1)
    except Exception as error:
        first, last = (start, stop - 1) if work.plan.engine == "vmap" else (at, at)
        alphas = f"{work.alphas[first]:g}" if first == last else f"{work.alphas[first]:g} to {work.alphas[last]:g}"
        error.add_note(
            f"mli_fast: in batch {index}, points {first}..{last} of {work.points.count} (alpha {alphas}), "
            f"engine {work.plan.engine!r}"
        )
        raise
