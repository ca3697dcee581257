"""Running statistics of every batch norm at every point, taken over calibration data that is read once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mli_fast.batch_norm import (
    IN_BATCHES,
    Moments,
    batch_norms,
    keepers,
    names_of,
    normalising_by,
    sees_batches,
    updating,
)
from mli_fast.checkpoints.values import same_bits
from mli_fast.engine.batches import examples
from mli_fast.engine.guard import RngSnapshot, noting, random_state_kept
from mli_fast.engine.network import Network
from mli_fast.engine.passes import same_results
from mli_fast.engine.points import Points
from mli_fast.trees import copied, mapped, tensors_in

MERGED_BYTES = 2**30  # the widest input of a batch norm, for batches that go through the network together

Tables = dict[str, Tensor]  # name of a running statistic, or of another buffer -> [P, *shape]


class Forwards:
    """Plain forward passes at single points, for what is seen on the way.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
    """

    def __init__(self, network: Network, points: Points) -> None:
        self.network, self.points, self._rng = network, points, RngSnapshot()

    @contextlib.contextmanager
    def at(self, p: int) -> Iterator[None]:
        """Within the block the network is at point p; what changes in it is put back. Each draws the same noise."""
        self._rng.restore()
        self.network.load(self.points, p)
        try:
            yield
        finally:
            self.network.state.restore()
            self.network.forget()

    def run(self, batch: Any, p: int) -> None:
        """A pass of `batch`, which is on the device, at point p."""
        with self.at(p):
            self.network.run(copied(batch))


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
    rule = RULES[policy]
    every = range(points.count)
    with random_state_kept(), noting("while batch norm was calibrated"):
        tables = rule(Forwards(network, points), kept, every)
    return points.with_tables(tables)


def missed(policy: str, network: Network, points: Points, batch: Any) -> list[str]:
    """The modules whose running statistics a pass reads though a policy did not set them.

    Frozen batch norms, instance norms, and modules of the caller's that call batch norm's functional.

    Args:
        policy: "batch" or one of `batch_norm.CALIBRATED`, in force.
        network: the network.
        points: with what the policy gave them.
        batch: a first one, on the device.
    """
    left = {n: module for n, module in keepers(network.model).items() if names_of(n)[1] in network.own}
    if policy in IN_BATCHES:
        left = {n: module for n, module in left.items() if names_of(n)[1] not in points.tables}
    forwards, called = Forwards(network, points), set()

    def result(changed: tuple[Tensor, ...] = ()) -> Any:
        with forwards.at(0):
            for statistic in changed:
                statistic.mul_(2).add_(1)
            return network.run(copied(batch))

    def reads(module: nn.Module) -> bool:
        return not same_results(given, result(tuple(module.get_buffer(kept) for kept in names_of(""))))

    with random_state_kept(), noting("in batch 0, while it was looked for what batch_norm= does not reach"):
        if not left:
            return []
        hooks = [module.register_forward_pre_hook(lambda m, _: called.add(m)) for module in left.values()]
        try:
            given = result()
        finally:
            for hook in hooks:
                hook.remove()
        set_here = called.intersection(batch_norms(network.model).values()) if policy not in IN_BATCHES else ()
        return [name for name, module in left.items() if module not in set_here and reads(module)]


def recalibrated(forwards: Forwards, batches: list[Any], which: Iterable[int]) -> Tables:
    """The exact mean and unbiased variance of each batch norm's input over all the data, at every point.

    The statistics of a layer are those under the recalibrated layers before it. Batches go through the network
    together as far as memory allows (a model that looks across a batch otherwise than by batch norm sees them so);
    where there are several, each waits at a batch norm until all have been there.

    Raises:
        ValueError: a batch norm that is called twice in a pass or not by every batch.
    """
    points, tables, widest = forwards.points, _interpolated(forwards), _Widest()
    with normalising_by(forwards.network.model, widest.visit):
        forwards.run(batches[0], 0)
    most = max(1, MERGED_BYTES // max(widest.size // examples(batches[0]), 1))
    merged = batches
    if not sees_batches(forwards.network.model):
        merged = _merged([part for batch in batches for part in _cut(batch, most)], most)
    for p in which:
        pooled = _Pooled(len(merged))
        with noting(f"while the statistics of point {p} of {points.count} were recalibrated"):
            _pool(forwards, pooled, merged, p)
        for name, (mean, variance) in pooled.known.items():
            for table, values in zip(names_of(name), (mean, variance), strict=True):
                tables[table][p] = values
    return tables


def _pool(forwards: Forwards, pooled: _Pooled, batches: list[Any], p: int) -> None:
    waiting: dict[int, str | None] = dict.fromkeys(range(len(batches)))  # batch -> the batch norm it waits at
    while waiting:
        ready = [b for b, name in waiting.items() if name is None or name in pooled.known]
        if not ready:
            raise ValueError(f"batch norm {next(iter(waiting.values()))!r} is not called for every calibration batch")
        for b in ready:
            try:
                with normalising_by(forwards.network.model, pooled.visitor(b)):
                    forwards.run(batches[b], p)
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


def updated(policy: str, forwards: Forwards, batches: list[Any], which: Iterable[int]) -> Tables:
    """What a pass in training mode leaves of reset statistics, at every point; `batch_norm.updating` says how.

    PyTorch's own modules do it, point after point from the model as given. Every floating buffer that is written is
    kept: those of instance norms too, where they train. Noise, such as that of dropout under "update-bn", goes on from
    batch to batch and begins at the caller's random state, so it is the same at every point.

    Args:
        policy: "recalibrate-ema" or "update-bn".
        forwards: has the network and the points.
        batches: the calibration data.
        which: the points.
    """
    network, points = forwards.network, forwards.points
    tables: Tables = {}
    if not any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        return tables  # then update_bn runs nothing either
    for p in which:
        with forwards.at(p):
            before = {n: (id(b), b._version, b.clone()) for n, b in _buffers(network).items()}
            with updating(policy, network.model):
                for index, batch in enumerate(batches):
                    where = f"while calibration batch {index} updated the statistics of point {p} of {points.count}"
                    with noting(where):
                        network.run(copied(batch))
            for name, buffer in _buffers(network).items():
                *same, value = before[name]
                # PyTorch's batch norm writes to running statistics without a new version
                if same != [id(buffer), buffer._version] or not same_bits(value, buffer):
                    if name not in tables:
                        tables[name] = points.table(name)
                    tables[name][p] = buffer
    return tables


def _buffers(network: Network) -> dict[str, Tensor]:
    """The floating buffers that points have values of."""
    return {
        name: buffer
        for name, buffer in network.model.named_buffers()
        if name in network.own and buffer.is_floating_point()
    }


RULES: dict[str, Callable[[Forwards, list[Any], Iterable[int]], Tables]] = {
    "recalibrate": recalibrated,
    "recalibrate-ema": partial(updated, "recalibrate-ema"),
    "update-bn": partial(updated, "update-bn"),
}


def _interpolated(forwards: Forwards) -> Tables:
    """The statistics at every point as they are before, to be written over."""
    norms = batch_norms(forwards.network.model)
    return {name: forwards.points.table(name) for module in norms for name in names_of(module)}


def _cut(batch: Any, most: int) -> list[Any]:
    """A batch in parts of at most `most` examples, where it is made of tensors of examples alone."""
    if examples(batch) <= most or _form(batch) is None:
        return [batch]
    return [_filled(batch, parts) for parts in zip(*(t.split(most) for t in tensors_in(batch)), strict=True)]


def _merged(batches: list[Any], most: int) -> list[Any]:
    """The batches end to end, in parts of at most `most` examples, where their tensors fit each other."""
    parts: list[list[Any]] = []
    for batch in batches:
        last, form = parts[-1] if parts else [], _form(batch)
        if last and form is not None and form == _form(last[0]) and sum(map(examples, [*last, batch])) <= most:
            last.append(batch)
        else:
            parts.append([batch])
    return [part[0] if len(part) == 1 else _joined(part) for part in parts]


def _form(batch: Any) -> Any:
    """The structure of a batch and its examples' shapes; None where it is not made of tensors of examples alone."""
    count, odd = examples(batch), []

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count:
            return tuple(leaf.shape[1:]), leaf.dtype
        odd.append(leaf)
        return None

    form = mapped(shape, batch)
    return None if odd else form


def _joined(batches: list[Any]) -> Any:
    return _filled(batches[0], [torch.cat(column) for column in zip(*map(tensors_in, batches), strict=True)])


def _filled(batch: Any, tensors: Iterable[Tensor]) -> Any:
    """A batch with other tensors in the places of its own."""
    given = iter(tensors)
    return mapped(lambda _: next(given), batch)
