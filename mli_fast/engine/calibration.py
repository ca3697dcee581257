"""Running statistics of every batch norm at every point, taken over calibration data that is read once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mli_fast.batch_norm import Moments, Visit, names_of, normalising_by, running_statistics
from mli_fast.blended.memo import mapped, tensors_in
from mli_fast.engine.batches import examples
from mli_fast.engine.evaluators import Forwards
from mli_fast.engine.guard import noting
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points

MERGED_BYTES = 2**30  # the widest input of a batch norm, for batches that go through the network together

Tables = dict[str, Tensor]  # name of a running statistic -> [P, C]


def calibrated(policy: str, network: Network, points: Points, batches: Iterable[Any]) -> Points:
    """The points with the running statistics that a policy of `batch_norm.CALIBRATED` gives them.

    Args:
        policy: its name.
        network: the network.
        points: with interpolated statistics.
        batches: on the device; read once.

    Raises:
        ValueError: no data, or a network whose statistics cannot be told.
    """
    kept = list(batches)
    if not kept:
        raise ValueError("calibration is empty: there is nothing to take statistics over")
    rule = recalibrated if policy == "recalibrate" else recalibrated_ema
    tables = rule(Forwards(network, points), kept)
    if any(bool(table.isnan().any()) for table in tables.values()):  # the model's own, or a deferred tensor misread
        tables = rule(Forwards(network, points, deferred=False), kept)
    return points.with_tables(tables)


def recalibrated(forwards: Forwards, batches: list[Any]) -> Tables:
    """The exact mean and unbiased variance of each batch norm's input over all the data, at every point.

    The statistics of a layer are those under the recalibrated layers before it. Batches go through the network
    together as far as memory allows; where there are several, each waits at a batch norm until all have been there.

    Raises:
        ValueError: a batch norm that is called twice in a pass or not by every batch.
    """
    points, tables, widest = forwards.points, _interpolated(forwards), _Widest()
    with normalising_by(forwards.network.model, widest.visit):
        forwards.run(batches[0], 0, forwards.memo())
    merged = _merged(batches, max(1, MERGED_BYTES // max(widest.size // examples(batches[0]), 1)))
    memo = forwards.memo() if len(merged) == 1 else None
    for p in range(points.count):
        pooled = _Pooled(len(merged))
        with noting(f"while the statistics of point {p} of {points.count} were recalibrated"):
            _pool(forwards, pooled, merged, p, memo)
        for name, (mean, variance) in pooled.known.items():
            for table, values in zip(names_of(name), (mean, variance), strict=True):
                tables[table][p] = values
    return tables


def _pool(forwards: Forwards, pooled: _Pooled, batches: list[Any], p: int, memo: Any) -> None:
    waiting: dict[int, str | None] = dict.fromkeys(range(len(batches)))  # batch -> the batch norm it waits at
    while waiting:
        ready = [b for b, name in waiting.items() if name is None or name in pooled.known]
        if not ready:
            raise ValueError(f"batch norm {next(iter(waiting.values()))!r} is not called for every calibration batch")
        for b in ready:
            try:
                with normalising_by(forwards.network.model, pooled.visitor(b)):
                    forwards.run(batches[b], p, forwards.memo() if memo is None else memo)
            except _Waits as wait:
                waiting[b] = wait.name
            else:
                del waiting[b]


class _Waits(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Pooled:
    """The statistics of one point, batch norm by batch norm as all batches have been there."""

    def __init__(self, batches: int) -> None:
        self.known: dict[str, tuple[Tensor, Tensor]] = {}
        self._batches = batches
        self._seen: dict[str, set[int]] = {}
        self._moments: dict[str, Moments] = {}

    def visitor(self, batch: int) -> Any:
        """What a batch's pass through the network calls."""
        visited: set[str] = set()

        def visit(name: str, module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
            if name in visited:
                raise ValueError(f"batch norm {name!r} is called twice in a forward pass: it has no one distribution")
            visited.add(name)
            if name not in self.known:
                self._add(name, batch, x)
            return self.known[name]

        return visit

    def _add(self, name: str, batch: int, x: Tensor) -> None:
        seen = self._seen.setdefault(name, set())
        if batch not in seen:
            seen.add(batch)
            own = Moments.of(x)
            self._moments[name] = self._moments[name].merged(own) if name in self._moments else own
        if len(seen) < self._batches:
            raise _Waits(name)
        pooled = self._moments.pop(name)
        self.known[name] = pooled.mean.to(x.dtype), pooled.unbiased(name).to(x.dtype)


class _Widest:
    """Takes a batch's own statistics and the size of the largest input."""

    def __init__(self) -> None:
        self.size = 0

    def visit(self, name: str, module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        self.size = max(self.size, x.numel() * x.element_size())
        _, mean, variance = Moments.of(x)
        return mean, variance


def recalibrated_ema(forwards: Forwards, batches: list[Any]) -> Tables:
    """What a pass in training mode leaves: exponential averages from the interpolated statistics on, at every point.

    Each batch norm normalises by its batch's statistics and moves its running ones by its own momentum (None: the
    average over the batches so far), as PyTorch's does; all else is in eval mode. Every batch is read once.
    """
    points, tables = forwards.points, _interpolated(forwards)
    for count, batch in enumerate(batches, 1):
        memo = forwards.memo()
        for p in range(points.count):
            visit = _moving(tables, p, count)
            where = f"while the statistics of point {p} of {points.count} were moved by calibration batch {count - 1}"
            with noting(where), normalising_by(forwards.network.model, visit):
                forwards.run(batch, p, memo)
    return tables


def _moving(tables: Tables, p: int, count: int) -> Visit:
    """Takes the batch's statistics, and moves point p's running ones towards them as batch `count` does."""

    def visit(name: str, module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        moments = Moments.of(x)
        factor = 1.0 / count if module.momentum is None else module.momentum
        for table, values in zip(names_of(name), (moments.mean, moments.unbiased(name)), strict=True):
            tables[table][p].lerp_(values.to(x.dtype), factor)
        return moments.mean, moments.variance

    return visit


def _interpolated(forwards: Forwards) -> Tables:
    """The statistics at every point as they are before, to be written over."""
    return {name: forwards.points.table(name) for name in running_statistics(forwards.network.model)}


def _merged(batches: list[Any], most: int) -> list[Any]:
    """The batches end to end, in parts of at most `most` examples, where their tensors fit each other."""
    parts: list[list[Any]] = []
    for batch in batches:
        last = parts[-1] if parts else []
        if last and _alike(last[0], batch) and sum(map(examples, last)) + examples(batch) <= most:
            last.append(batch)
        else:
            parts.append([batch])
    return [part[0] if len(part) == 1 else _joined(part) for part in parts]


def _alike(a: Any, b: Any) -> bool:
    """Whether two batches have the same structure, with nothing but tensors of examples in it."""
    kinds = [mapped(lambda x: tuple(x.shape[1:]) if isinstance(x, Tensor) and x.ndim else object(), c) for c in (a, b)]
    return kinds[0] == kinds[1]


def _joined(batches: list[Any]) -> Any:
    columns = iter([torch.cat(column) for column in zip(*map(tensors_in, batches), strict=True)])
    return mapped(lambda _: next(columns), batches[0])
