"""Plain passes: the model itself on a copy of a batch, with one point's values in its memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mli_fast.capture.passes import Captured, captured
from mli_fast.capture.record import Record
from mli_fast.checkpoints.values import same_bits
from mli_fast.engine.batches import shapes
from mli_fast.engine.guard import RngSnapshot, first_line, out_of_memory
from mli_fast.engine.network import Network, Streams
from mli_fast.engine.points import Points
from mli_fast.trees import copied, leaves_of

PER_BATCH = "per-batch"
LAST_BITS = 1e-6  # of the largest number of a result
CHECKS = 8  # at batches whose passes are not recorded
STATES = (None, PER_BATCH)


class Passes:
    """Runs the model, and puts back what a pass leaves behind.

    Args:
        network: the private copy of the model.
        state: None, or "per-batch" where each batch may start from the model as it was given.

    Attributes:
        rng: the random state that every pass over the batch at hand starts from.
    """

    def __init__(self, network: Network, state: str | None) -> None:
        self.network, self._state, self.rng = network, state, RngSnapshot()
        self._checked: dict[str, Any] = {}  # sizes of batches -> one that waits for another to be looked at with
        self._asides = 0
        self._written = False  # whether passes change parameters where no version tells
        self._earlier: tuple[_Given, list[str]] | None = None  # of another kind, and what it left behind

    def plain(self, points: Points, batch: Any, p: int) -> Any:
        """(outputs, targets) at point p."""
        self.network.load(points, p)
        self.rng.restore()
        return self._run(batch)

    def _run(self, batch: Any) -> Any:
        versions = self._versions()
        try:
            return self.network.run(copied(batch))
        finally:
            self._put_back(versions)

    def record(self, points: Points, batch: Any, p: int, other: tuple[Any, int] | None = None) -> Captured:
        """The same, recorded.

        Args:
            points: the points.
            batch: the batch.
            p: the point.
            other: another batch and point, to see if the model carries state from one pass to the next; None not to
                look.

        Raises:
            ValueError: it does.
        """
        network, own = self.network, copied(batch)
        network.load(points, p)
        self.rng.restore()
        versions, streams = self._versions(), Streams()
        try:
            try:
                found = captured(network.run, own, network.own, network.twins)
            except Exception as error:
                if out_of_memory(error):
                    raise
                why = f"a pass raises {type(error).__name__} while it is recorded: {first_line(error)}"
                found = Captured(None, None, why, twins_seen=True)  # unknown: it may have been about to
            if found.twins_seen:
                network.borrow()
                network.state.restore()
                network.load(points, p)
                self.rng.restore()
                found = Captured(network.run(copied(batch)), None, found.reason, True)
            if other is not None and self._state != PER_BATCH:
                written = self._changed(points, p, found.record)
                self._written |= bool(written)
                written += _outside(found.record)
                given = _Given(points, batch, p), _Given(points, *other)
                self._check_carried(*given, written, versions, streams)
                if found.record is None:
                    self._put_back(versions)
                    self.check_repeatable(points, batch, p, found.result)
            return found
        finally:
            self._put_back(versions)

    def check_state(self, points: Points, batch: Any, following: Any) -> None:
        """Check what a model reaches and carries over where its passes are not recorded: with two batches of a size."""
        sizes = str(shapes(batch))
        if sizes not in self._checked and len(self._checked) < CHECKS:
            self._checked[sizes] = batch if following is None else None
            self.record(points, batch, points.count // 2, (batch if following is None else following, 0))
        elif self._checked.get(sizes) is not None:
            self.record(points, batch, points.count // 2, (self._checked.pop(sizes), 0))
            self._checked[sizes] = None

    def check_repeatable(self, points: Points, batch: Any, p: int, result: Any) -> None:
        """Check that a pass without a record is repeatable, and equal to a fresh copy's at another point.

        On the CPU: a GPU's kernels need not be repeatable.

        Raises:
            ValueError: it does not: something is cached out of reach.
        """
        if self._state == PER_BATCH or self.network.device.type != "cpu":
            return
        # what is computed while a pass is recorded may differ in its last bits, and least squares do from call to call
        again = self.plain(points, batch, p)
        if not same_results(result, again) and not same_results(again, self.plain(points, batch, p), LAST_BITS):
            raise ValueError(
                "the same batch at the same point gives something else the second time: the model carries state that "
                "it does not hold itself (a global, a class attribute, a generator of its own), so that a value would "
                "depend on the order of batches and points; reset it in forward, or pass state='per-batch' at your own "
                "risk"
            )
        if points.count > 1:
            self._check_fresh_copy(points, batch, points.count - 1 if p == 0 else 0)

    def check_aside(self, points: Points, batch: Any, p: int) -> None:
        """The same checks at a point that goes another way than its record."""
        if self._asides < CHECKS and self._state != PER_BATCH and self.network.device.type == "cpu":
            self._asides += 1
            self.record(points, batch, p, (batch, p))
            self._check_fresh_copy(points, batch, p)

    def _check_fresh_copy(self, points: Points, batch: Any, p: int) -> None:
        if self.network.changed_on_purpose:
            return
        found = self.plain(points, batch, p)
        other = Passes(self.network.fresh(), PER_BATCH)
        other.rng = self.rng
        other.network.check_loading(points)
        if not same_results(found, other.plain(points, batch, p), LAST_BITS):
            raise ValueError(
                "a fresh copy of the model gives something else: something is counted, or computed of the parameters "
                "once, and cached out of reach (an lru_cache, a global, a generator of its own), so that a value "
                "would depend on the points and batches before it; do it in forward, or pass state='per-batch' at your "
                "own risk"
            )

    def _versions(self) -> list[int]:
        return [t._version for t in self.network.own.values()]

    def _put_back(self, versions: list[int]) -> None:
        network = self.network
        network.put_back()
        if not network.state.unchanged():
            network.state.restore()
        if self._written or versions != self._versions():
            network.forget()

    def _changed(self, points: Points, p: int, record: Record | None) -> list[str]:
        """The parameters that a pass left otherwise than they were given to it, whether or not a version tells."""
        if record is not None:
            written = record.written()
            return [name for name, n in record.parameters.items() if record.storage[n] in written]
        memory, values = self.network.memory, points.values(p)
        if not self.network.loads_as_written:
            return []
        return [n for n, v in values.items() if v.layout is torch.strided and not same_bits(memory[n], v)]

    def _check_carried(
        self, given: _Given, other: _Given, written: list[str], versions: list[int], streams: Streams
    ) -> None:
        """Where a pass changed something, another one has to give the same all the same.

        So have a pass at another point, and batches of another kind before and after.

        Raises:
            ValueError: it does not: what is carried on depends on the order of batches and points.
        """
        network = self.network
        names = list(network.own)
        suspects = network.state.replaced()
        moved = {names[i] for i, (a, b) in enumerate(zip(versions, self._versions(), strict=True)) if a != b}
        suspects += [*written, *(n for n in names if n in moved.difference(written))]
        suspects += [] if streams.unchanged() else ["NumPy's or Python's random stream"]
        left = bool(suspects) or not network.state.unchanged()
        counted: list[str] = []
        carried = False
        if left:
            before = network.state.numbers()
            self.rng.restore()
            again = network.run(copied(given.batch))
            now = network.state.numbers()
            counted = [n for n, v in now.items() if n in before and (v != before[n]) and n in suspects]
            suspects = suspects or network.state.differing() or ["what the model keeps"]
            self._put_back(versions)
            carried = bool(counted) or not same_results(self.plain(*given), again)
            carried = carried or self._depends(other, given) or self._depends(given, other)
        if self._earlier is None:
            self._earlier = given, suspects
        elif not carried and (suspects or self._earlier[1]):
            suspects = suspects or self._earlier[1]
            carried = self._depends(given, self._earlier[0]) or self._depends(self._earlier[0], given)
        if carried:
            names = counted or suspects
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(
                f"the model carries state from one pass to the next ({shown}), so that a value would depend on the "
                "order of batches and points; reset it in forward, or pass state='per-batch' if each batch may start "
                "from the model as it is given"
            )

    def _depends(self, given: _Given, before: _Given) -> bool:
        """Whether a pass gives something else where another one came before it, at another point or at its own."""
        expected = self.plain(*given)
        at_its_own = before._replace(points=given.points, p=given.p)
        return any(not same_results(expected, self._after(one, given)) for one in (before, at_its_own))

    def _after(self, before: _Given, given: _Given) -> Any:
        """What a pass gives after another one, between which there is what a loop does there."""
        self.network.load(before.points, before.p)
        self.rng.restore()
        versions = self._versions()
        try:
            self.network.run(copied(before.batch))
            self.network.forget()
            if before.p != given.p or before.points is not given.points:
                self.network.load_next(given.points, given.p)
            self.rng.restore()
            return self.network.run(copied(given.batch))
        finally:
            self._put_back(versions)


def _outside(record: Record | None) -> list[str]:
    """What a pass writes to that is neither the model's parameters and buffers nor made within it."""
    if record is None:
        return []
    written = record.written()
    found = [n for n in record.constants if record.storage[n] in written and n not in record.literals]
    return ["a tensor that was there before"] if found else []


class _Given(NamedTuple):
    """What a pass is of."""

    points: Points
    batch: Any
    p: int


def same_results(a: Any, b: Any, within: float = 0.0) -> bool:
    """Whether two results hold the same numbers, or such that differ by no more than this share of the largest."""
    ours, theirs = leaves_of(a), leaves_of(b)
    if len(ours) != len(theirs):
        return False
    for x, y in zip(ours, theirs, strict=True):
        if isinstance(x, torch.Tensor) and (x.layout is not torch.strided or x.is_nested):
            continue  # PyTorch has no comparison of such
        if isinstance(x, torch.Tensor) and (
            not isinstance(y, torch.Tensor)
            or x.shape != y.shape
            or not torch.allclose(x, y, rtol=0, atol=_share(y, within), equal_nan=True)
        ):
            return False
    return True


def _share(x: torch.Tensor, within: float) -> float:
    finite = x[x.isfinite()] if within and (x.is_floating_point() or x.is_complex()) else x.flatten()[:0]
    return within * float(finite.abs().max()) if finite.numel() else 0.0
