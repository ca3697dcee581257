"""How each batch is computed: by a plan of a record, or by plain PyTorch and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mli_fast.capture.passes import Captured
from mli_fast.capture.record import Exit, OtherAnswer, Record
from mli_fast.engine.batches import Unreadable, kind
from mli_fast.engine.checking import difference
from mli_fast.engine.guard import first_line, noting, out_of_memory
from mli_fast.engine.kernels import Measured
from mli_fast.engine.modes import PLAIN, PLANNED, REPLAY, mode
from mli_fast.engine.passes import Passes, same_results
from mli_fast.engine.plan import Plan
from mli_fast.engine.points import Points
from mli_fast.engine.shared import Shared, SharedCache
from mli_fast.ops.backend import current
from mli_fast.program import Unfit, same_program
from mli_fast.rewrites import REWRITES, rewritten
from mli_fast.trees import as_tensor, bytes_in, copied, tensors_in

KINDS = 64  # of batches that are recorded in a sweep; what is recorded never depends on the points
CACHED_BYTES = 2**26  # of a check's results that the sweep needs too, of all plans together
WAYS = 4  # records of one kind of batch, where numbers that leave PyTorch take it different ways


@dataclass
class Recorded:
    """A record and the results at the points where it was made.

    Attributes:
        references: batch, point, the tensors of its result.
        of: the batch that it was made of, while it holds tensors made from Python data that were not yet compared with
            another batch's; else None.
    """

    record: Record
    references: list[tuple[Any, int, list[Tensor]]]
    of: Any = None


@dataclass
class Route:
    """How a batch is computed at the points of one work."""

    plan: Plan | None
    shared: Shared | None = None
    kind: str = PLAIN


@dataclass
class Planner:
    """Records kinds of batches once for all works, and plans them for each.

    Args:
        passes: runs the model.
        device: where the work is done.
        check: of the options.
        compile: whether plans are compiled by torch.compile.
        scoring: the caller's own criterion and metrics.

    Attributes:
        reasons: why batches were computed by plain PyTorch, in the order in which that was found.
        used: the ways in which batches were computed.
    """

    passes: Passes
    device: torch.device
    check: bool | str
    compile: bool = False
    scoring: Sequence[Callable[[Any, Any], Any]] = ()
    reasons: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    differing: str | None = None
    _records: dict[Any, list[Recorded]] = field(default_factory=dict)
    _refused: dict[Any, str] = field(default_factory=dict)
    _plans: dict[tuple[int, int], Plan | None] = field(default_factory=dict)
    plain_only: str | None = None
    _last: tuple[Plan, Any, Shared] | None = None

    def route(self, points: Points, batch: Any, following: Any, cache: SharedCache | None) -> Route:
        """How this batch is computed.

        Args:
            points: those of a work.
            batch: on the device.
            following: another batch that is at hand, None if there is none.
            cache: what other works computed of the batch.
        """
        self.passes.network.check_loading(points)
        why = self._why_plain()
        if why is None:
            try:
                key = kind(batch)
            except Unreadable as unreadable:
                why = str(unreadable)
        if why is not None:
            with noting("in a pass that is looked at"):
                self.passes.check_state(points, batch, following)
            return self._plainly(why)
        found = self._known(points, batch, key, cache)
        if found is None and key not in self._refused:
            self._record(points, batch, following, key)
            found = self._known(points, batch, key, cache)
        return self._plainly(self._refused.get(key, "a batch that takes yet another way")) if found is None else found

    def _why_plain(self) -> str | None:
        if self.plain_only is not None:
            return self.plain_only
        if mode() == PLAIN:
            return "asked for"
        if not self.passes.network.loads_as_written:
            return "the model's load_state_dict or eval() does more than copy values"
        return None

    def _plainly(self, why: str) -> Route:
        self.reasons[why] = None
        self.used.add(PLAIN)
        return Route(None)

    def _known(self, points: Points, batch: Any, key: Any, cache: SharedCache | None) -> Route | None:
        """By the first record whose numbers the batch gives too."""
        for recorded in self._records.get(key, ()):
            plan = self._plan(points, recorded)
            if plan is None:
                self._refused.setdefault(key, next(reversed(self.reasons), "no plan"))
                return None
            try:
                shared = self._shared(plan, batch) if cache is None else plan.shared(list(tensors_in(batch)), cache)
            except OtherAnswer:
                continue
            except Exception as error:  # the batch's own, which plain PyTorch raises too, or the plan's
                if out_of_memory(error):
                    raise
                self.aside(error)
                return Route(None)
            why = self._why_not_of(points, batch, recorded)
            if why is not None:
                self._refused[key] = why
                return None
            self._last = None
            way = PLANNED if plan.rewritten else REPLAY
            self.used.add(way)
            return Route(plan, shared, way)
        return None

    # ---- recording
    def _why_not_of(self, points: Points, batch: Any, recorded: Recorded) -> str | None:
        """Why a record is not this batch's: its tensors of Python data are compared with another batch's once."""
        if recorded.of is None or recorded.of is batch:
            return None
        two = self._pass(points, batch, 0)
        why = two.reason if two.record is None else same_program(recorded.record, two.record)
        recorded.of = recorded.of if why else None
        return why

    def _record(self, points: Points, batch: Any, following: Any, key: Any) -> None:
        if len(self._records) >= KINDS or len(self._records.get(key, ())) >= WAYS:
            self._refused[key] = "too many kinds of batches to record each"
            return
        why: str | None = None
        first, second = points.count // 2, points.count - 1 if points.count > 1 else 0
        others = [(batch, second)]
        if following is not None and _of_kind(following, key):
            others.insert(0, (following, second))
        one = self._pass(points, batch, first, other=others[0])
        scores = self._scores(one.result)
        if not same_results(scores, self._scores(one.result)):
            raise ValueError(
                "the criterion or a metric gives other values for the same outputs and targets when it is called "
                "again: it carries state or draws random numbers, so that values would depend on the order of points "
                "and batches; make it a function of its arguments alone (a generator seeded in each call)"
            )
        if one.record is None:
            self._refused[key] = one.reason
            return
        if any(isinstance(op.func, Exit) for op in one.record.ops):
            others.append((batch, first))  # another point may take another way: each number that leaves is compared
        for other, p in others:
            two = self._pass(points, other, p)
            if not same_results(scores, self._scores(one.result)):
                self.plain_only = "the criterion or a metric reads what a forward pass leaves behind"
                self._refused[key] = self.plain_only
                return
            why = two.reason if two.record is None else same_program(one.record, two.record)
            if why is None:
                references = [(batch, first, list(tensors_in(one.result))), (other, p, list(tensors_in(two.result)))]
                alone = batch if one.record.literals and other is batch else None
                self._records.setdefault(key, []).append(Recorded(one.record, references, alone))
                return
        self.passes.check_repeatable(points, batch, first, one.result)
        self._refused[key] = why or ""

    def _scores(self, result: tuple[Any, Any]) -> list[Tensor]:
        """What the caller's own criterion and metrics give; nothing where they raise, which is told when they count."""
        try:
            return [as_tensor(score(*copied(result))).detach().clone() for score in self.scoring]
        except Exception:  # noqa: BLE001 - whatever a caller's function raises
            return []

    def _pass(self, points: Points, batch: Any, p: int, other: tuple[Any, int] | None = None) -> Captured:
        with noting(f"in a pass at point {p} of {points.count} that is recorded"):
            return self.passes.record(points, batch, p, other)

    # ---- planning
    def _plan(self, points: Points, recorded: Recorded) -> Plan | None:
        key = id(points), id(recorded)
        if key not in self._plans:
            self._plans[key] = self._made(points, recorded)
        return self._plans[key]

    def _made(self, points: Points, recorded: Recorded) -> Plan | None:
        """A plan that gives what the record's own passes gave: rewritten if that does, else a replay."""
        network = self.passes.network
        backend = current().backend
        which = () if mode() == REPLAY or self.compile else tuple(REWRITES)
        kernels = Measured(points, self.device, plain=backend == "reference")
        attempts: list[tuple[str, ...]] = [which, ()] if which else [()]
        for attempt in attempts:
            try:
                program = rewritten(recorded.record, kernels, attempt)
                plan = Plan(program, points, network)
                if self.compile:
                    plan.compile()
                why = self._first_difference(points, recorded, plan)
            except Unfit as unfit:
                self.reasons[str(unfit)] = None
                return None
            except Exception as error:
                if out_of_memory(error):
                    raise
                why = f"{type(error).__name__}: {first_line(error)}"
            else:
                if why is None:
                    return plan
                if plan.rewritten or self.check:
                    self.differing = why
            self.reasons[f"a plan was given up: {why}"] = None
        return None

    def _first_difference(self, points: Points, recorded: Recorded, plan: Plan) -> str | None:
        if self.check is False or not recorded.references:
            return None
        for batch, p, plain in recorded.references:
            if p >= points.count:
                continue
            if not plan.rewritten and not self.compile:  # bit for bit: while a pass is recorded last bits may be others
                plain = list(tensors_in(self.passes.plain(points, batch, p)))
            try:
                why = self.differs(plan, self._shared(plan, batch), p, plain, batch)
            except OtherAnswer:
                why = None  # this point of other points takes another way
            if why is not None:
                return why
        recorded.references = []  # they are the first work's
        return None

    def aside(self, error: Exception) -> None:
        """Note why a batch is computed by plain PyTorch at a point: its plan went another way there, or raised."""
        self.used.add(PLAIN)
        why = "numbers that leave PyTorch took another way"
        if not isinstance(error, OtherAnswer):
            why = f"a plan raised {type(error).__name__}: {first_line(error)}"
        self.reasons[f"at some points {why}"] = None

    def _shared(self, plan: Plan, batch: Any) -> Shared:
        """What a batch's points share; that of the last batch is cached while its plan is made."""
        if self._last is None or self._last[0] is not plan or self._last[1] is not batch:
            self._last = plan, batch, plan.shared(list(tensors_in(batch)))
        return self._last[2]

    def differs(self, plan: Plan, shared: Shared, p: int, plain: list[Tensor], ahead: Any = None) -> str | None:
        """What differs between a plan's result of a batch at point p and plain PyTorch's tensors.

        Args:
            plan: the plan.
            shared: what the batch's points share.
            p: the point.
            plain: the tensors of PyTorch's result.
            ahead: the batch, if the sweep needs the plan's result too; else None.
        """
        result = plan.result(plan.prepare(p, p + 1), shared)
        if ahead is not None:
            plans = [plan, *(other for other in self._plans.values() if other is not None)]
            taken = sum(bytes_in(r) for other in plans for r in other.cached.values())
            plan.cache(ahead, p, result, CACHED_BYTES - taken)
        ours = [*(t[0] for t in tensors_in(result[0])), *tensors_in(result[1])]
        in_double = all(d is torch.float64 for d in self.passes.network.dtypes.values() if d.is_floating_point)
        return difference(ours, plain, exact=not plan.rewritten and not self.compile, in_double=in_double)


def _of_kind(batch: Any, key: Any) -> bool:
    try:
        return bool(kind(batch) == key)
    except Unreadable:
        return False
