"""The loop over the data: batches are read once, in groups, and evaluated at all points."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mli_fast.caller import caller
from mli_fast.engine.batches import check_readable, shapes
from mli_fast.engine.feeding import fed
from mli_fast.engine.gathering import Gathered
from mli_fast.engine.guard import RngSnapshot, noting, out_of_memory
from mli_fast.engine.limits import limits
from mli_fast.engine.plan import Pass, Plan
from mli_fast.engine.planner import Planner, Route
from mli_fast.engine.points import Points
from mli_fast.engine.shared import SharedCache
from mli_fast.engine.slopes import Slopes
from mli_fast.interrupts import safe
from mli_fast.ops.memory import is_aligned
from mli_fast.reducers import Batch, Reducer
from mli_fast.trees import bytes_in, copied, mapped, tensors_in

CHECKING = 0.03  # the share of the time that comparisons with plain PyTorch may take
CACHED = 4  # activations of a pass that one work leaves to the next, where works share a cache


@dataclass
class Work:
    """One sweep: points, and what to keep of the outputs there."""

    points: Points
    reducer: Reducer
    places: NDArray[Any]  # [P] or [P, axes], for messages
    axes: tuple[str, ...] = ("alpha",)
    slopes: Slopes | None = None  # where the reducer wants them
    chunk: int | None = None  # the most points of a pass, where the caller says so
    passes: int = 0  # the most points that a pass took

    def called(self, p: int) -> str:
        """Point p as messages name it."""
        coordinates = self.places[p].reshape(-1)
        return ", ".join(f"{axis} {value:g}" for axis, value in zip(self.axes, coordinates, strict=True))


class PlanWarning(UserWarning, RuntimeWarning):
    """A plan gave something else than plain PyTorch."""


class Differs(Exception):
    """A plan gave something else than plain PyTorch at a point of a batch."""


@dataclass
class _One:
    """A batch of a group."""

    index: int
    batch: Any
    rng: RngSnapshot | None  # what passes over it draw from; None: where the first pass over the batch before it ends
    cache: SharedCache | None


def evaluate_all(
    works: Sequence[Work], planner: Planner, batches: Iterable[Any], progress: bool, share_cache: bool
) -> None:
    """Evaluate every batch at every point of every work.

    Args:
        works: one or more of one network.
        planner: how batches are computed.
        batches: read once; again from the start where a plan turns out to differ from plain PyTorch.
        progress: whether a bar is shown.
        share_cache: the works have values in common: what all points of one share is cached for the others.

    Raises:
        ValueError: no batches, or one that cannot be scored.
        RuntimeError: a plan differs from plain PyTorch, and the batches cannot be read again.
        Exception: what the model, the loader or a metric raises, with a note of the batch and the points.
    """
    rereadable = not isinstance(batches, Iterator)
    loop = _Loop(works, planner, share_cache)
    try:
        loop.run(batches, progress)
    except Differs as found:
        seen = str(found)
        if not rereadable:
            raise RuntimeError(
                f"{seen}; the data is a generator and cannot be read again for plain PyTorch's values: pass a loader "
                "that can, or check=False at your own risk"
            ) from None
        warnings.warn(f"{seen}; all values are plain PyTorch's now", PlanWarning, stacklevel=caller())
        planner.plain_only = seen
        for work in works:
            work.reducer.reset()
        _Loop(works, planner, share_cache).run(batches, progress)


class _Loop:
    def __init__(self, works: Sequence[Work], planner: Planner, share_cache: bool) -> None:
        self._works, self._planner, self._share_cache = works, planner, share_cache
        self._passes, self._device = planner.passes, planner.device
        self._started, self._checking, self._turn = time.perf_counter(), 0.0, 0
        self._budget = limits(self._device).group_bytes
        self._alone = share_cache or any(work.reducer.keeps_outputs for work in works)

    def run(self, batches: Iterable[Any], progress: bool) -> None:
        length = _length(batches)
        # tqdm starts a thread of its own even where it shows nothing
        with tqdm(total=length, unit=" batches", desc="mli_fast") if progress else nullcontext() as bar:
            is_stable = isinstance(batches, (list, tuple)) or self._device.type == "cuda"
            for group in self._groups(fed(_noted(batches), self._device), is_stable):
                for work in self._works:
                    self._group(work, group)
                if bar is not None:
                    seconds = max(bar.format_dict["elapsed"], 1e-9)
                    speed = sum(work.points.count * work.reducer.count for work in self._works) / seconds
                    bar.set_postfix_str(f"{speed:,.0f} points x examples/s", refresh=False)
                    bar.update(len(group))
        for work in self._works:
            if work.reducer.batches == 0:
                raise ValueError("the loader is empty: there is nothing to evaluate")
            if work.reducer.count == 0:
                raise ValueError("no batch of the loader holds an example: there is nothing to evaluate")
            work.reducer.finish()

    def _groups(self, batches: Iterable[Any], is_stable: bool) -> Iterator[list[_One]]:
        """Batches that are evaluated together, so that a point's weights are blended once for all of them.

        Args:
            batches: on the device.
            is_stable: a batch is not written to when the next one is asked for, as by a loader that reuses its memory.
        """
        group: list[_One] = []
        size = 0
        for index, batch in enumerate(batches):
            cache = SharedCache(CACHED * limits(self._device).activation_bytes) if self._share_cache else None
            # the vendor's products round differently where memory starts otherwise
            if not is_stable or not all(map(is_aligned, tensors_in(batch))):
                batch = copied(batch)
            group.append(_One(index, batch, None, cache))
            size += 4 * bytes_in(batch)  # what its points share is of that order
            if size >= self._budget or self._alone:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _group(self, work: Work, group: list[_One]) -> None:
        while True:
            try:
                self._evaluate(work, group)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if work.passes <= 1:
                    raise RuntimeError(
                        f"batch {group[0].index}: memory ran out with a single point at a time; a batch of shapes "
                        f"{shapes(group[0].batch)} needs all anchors, one blended layer and one point's activations at "
                        f"once. Use smaller batches. ({error})"
                    ) from error
                work.chunk = work.passes // 2
            else:
                return
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # of what did not fit; out here, where the error no longer holds on to it

    def _evaluate(self, work: Work, group: list[_One]) -> None:
        scores = [Batch(work.reducer, one.index) for one in group]
        work.passes = 1
        if group[0].rng is None:
            group[0].rng = RngSnapshot()
        routes = self._routes(work, group)
        for plan in {id(r.plan): r.plan for r in routes}.values():
            members = [i for i, route in enumerate(routes) if route.plan is plan]
            if plan is None:
                for p in range(work.points.count):
                    for i in members:
                        self._plain(work, group[i], scores[i], p)
            else:
                self._planned(work, plan, [(group[i], routes[i], scores[i]) for i in members])
        if work.slopes is not None:
            for one, score in zip(group, scores, strict=True):
                self._add_slopes(work, work.slopes, one, score)
        for score in scores:
            score.close()
        self._check(work, group, routes)

    def _routes(self, work: Work, group: list[_One]) -> list[Route]:
        routes = []
        for i, one in enumerate(group):
            following = group[(i + 1) % len(group)].batch if len(group) > 1 else None
            self._passes.rng = one.rng or self._passes.rng
            now = time.perf_counter()
            with noting(f"in batch {one.index}, while it was planned"):
                routes.append(self._planner.route(work.points, one.batch, following, one.cache))
            self._checking += time.perf_counter() - now  # plans are compared when they are made
            if self._planner.differing is not None and self._planner.plain_only is None:
                raise Differs(f"batch {one.index}: the plan differs from plain PyTorch ({self._planner.differing})")
        return routes

    def _planned(self, work: Work, plan: Plan, members: Sequence[tuple[_One, Route, Batch]]) -> None:
        count = work.points.count
        size = _evenly(count, plan.most if work.chunk is None else min(plan.most, work.chunk))
        work.passes = size
        gathered = [Gathered(work.reducer, score, plan.targets_shared) for _, _, score in members]
        for start in range(0, count, size):
            stop = min(start + size, count)
            given: Pass | None = None
            aside: list[tuple[_One, Batch]] = []
            for (one, route, score), scored in zip(members, gathered, strict=True):
                safe()
                with self._noting(work, one, start, stop - 1, "planned"):
                    assert route.shared is not None
                    try:
                        found = plan.cached.pop((id(one.batch), start), None) if size == 1 else None
                        if found is None:
                            given = given or plan.prepare(start, stop)
                            found = plan.result(given, route.shared, work.reducer.multiplies)
                    except Exception as error:
                        if out_of_memory(error):
                            raise
                        self._planner.aside(error)
                        aside.append((one, score))
                        continue
                    scored.put(start, stop - start, *found)
            for one, score in aside:
                for p in range(start, stop):
                    self._plain(work, one, score, p)
                    self._passes.check_aside(work.points, one.batch, p)
        plan.cached.clear()  # batches to come may have the ids of these
        for (one, _, _), scored in zip(members, gathered, strict=True):
            with self._noting(work, one, 0, count - 1, "planned"):
                scored.flush()

    def _plain(self, work: Work, one: _One, score: Batch, p: int) -> None:
        if one.rng is None:
            one.rng = RngSnapshot()
        self._passes.rng = one.rng
        with self._noting(work, one, p, p, "plain"):
            outputs, targets = self._passes.plain(work.points, one.batch, p)
            check_readable((outputs, targets), "a tensor that the model returned")
            outputs = mapped(lambda x: x[None] if isinstance(x, torch.Tensor) else x, outputs)
            score.put(p, work.reducer.values(outputs, targets, p == 0, one.index))

    def _add_slopes(self, work: Work, slopes: Slopes, one: _One, score: Batch) -> None:
        for p in range(work.points.count):
            (one.rng or self._passes.rng).restore()
            with noting(f"in batch {one.index}, the slope at point {p} of {work.points.count} ({work.called(p)})"):
                score.put_slope(p, *slopes.at(one.batch, p))

    def _noting(self, work: Work, one: _One, first: int, last: int, how: str) -> Any:
        where = work.called(first) if first == last else f"{work.called(first)} to {work.called(last)}"
        return noting(f"in batch {one.index}, points {first}..{last} of {work.points.count} ({where}), {how}")

    def _check(self, work: Work, group: list[_One], routes: list[Route]) -> None:
        """Compare with plain PyTorch: one point of each batch in turn as the time allows, or every one.

        Raises:
            Differs: something differs.
        """
        check = self._planner.check
        if check is False:
            return
        for one, route in zip(group, routes, strict=True):
            if route.plan is None or route.shared is None:
                continue
            every = check == "all"
            turn = range(work.points.count) if every else [self._turn % work.points.count]
            for p in turn:
                now = time.perf_counter()
                if not every and self._checking > CHECKING * (now - self._started):
                    return
                self._turn += 7
                self._passes.rng = one.rng or self._passes.rng
                plain = list(tensors_in(self._passes.plain(work.points, one.batch, p)))
                try:
                    why = self._planner.differs(route.plan, route.shared, p, plain)
                except Exception as error:  # as where it is evaluated: that point is plain PyTorch's
                    if out_of_memory(error):
                        raise
                    why = None
                self._checking += time.perf_counter() - now
                if why is not None:
                    raise Differs(f"batch {one.index}, {work.called(p)}: the plan differs from plain PyTorch ({why})")


def _evenly(points: int, most: int) -> int:
    """The size of the fewest chunks of at most `most` points that are as equal as can be."""
    chunks = -(-points // max(most, 1))
    return max(1, -(-points // max(chunks, 1)))


def _length(batches: Iterable[Any]) -> int | None:
    """How many batches there are, None where that is unknown beforehand."""
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
