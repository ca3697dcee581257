"""The two engines: one point at a time on deferred values, or a chunk of points under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mli_fast.blended import CannotDefer, LastProduct, Memo, evaluated, last_product, remembering
from mli_fast.blended.memo import copied, mapped, tensors_in
from mli_fast.blended.products import layers_together
from mli_fast.engine.guard import Noise, vmap_fallback_unmentioned
from mli_fast.engine.network import Network
from mli_fast.engine.plan import OneChain, Plan, another_plan, fits_a_pass
from mli_fast.engine.points import Points
from mli_fast.ops.points import asynchronous

Outputs = tuple[int, Any, Any]  # first point, outputs with the points in dimension 0, targets


class LoopEngine:
    """One point at a time; what is the same at every point of a batch is computed at the first and remembered.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
        deferred: False computes every value before the forward pass, for models that deferred ones do not survive.
        yields: whether it gives way to the vmap engine where that can take all points in one call.
        ending: whether a last product is left to the loss where a kernel takes the two together.
    """

    def __init__(
        self, network: Network, points: Points, deferred: bool = True, yields: bool = False, ending: bool = False
    ) -> None:
        self._network, self._points, self._deferred, self._yields = network, points, deferred, yields
        self._ending = ending
        self._nan_checked = False

    def evaluate(self, batch: Any, start: int, stop: int, memo: Memo | None = None) -> Iterator[Outputs]:
        """Outputs and targets of points start..stop-1.

        Args:
            batch: on the device.
            start: the first point.
            stop: the point after the last.
            memo: of this batch, if others have one; else it gets its own.

        Raises:
            OneChain: the engine yields.
        """
        memo = memo if memo is not None and self._deferred else self.memo()
        for p in range(start, stop):
            outputs, targets = self._forward(batch, self._values(p), memo, stop - start if p == start else 0)
            if memo is not None and p == start and self._nan_is_unexplained(outputs):
                self._check_nan(p, batch)
            yield p, _alone(outputs), targets

    def memo(self) -> Memo | None:
        """For what all points of one batch share."""
        return Memo() if self._deferred else None

    def _values(self, p: int) -> Mapping[str, Tensor]:
        return self._points.deferred(p) if self._deferred else self._points.computed(p)

    def pass_through(self, batch: Any, p: int, memo: Memo | None) -> None:
        """A forward pass at point p, for what others see of it on the way."""
        self._forward(batch, self._values(p), memo if self._deferred else None, 0)

    def step(self, batch: Any, coefficients: Sequence[Tensor], memo: Memo | None) -> tuple[Any, Any]:
        """Outputs and targets at one point, with coefficients [1, R] for each group of names.

        Args:
            batch: on the device.
            coefficients: those of `Points.groups`.
            memo: the one of this batch, of `memo`.
        """
        rows = [c[0] for c in coefficients]
        values = self._points.computed_with(rows) if memo is None else self._points.deferred_with(rows)
        outputs, targets = self._forward(batch, values, memo, 0)
        return _alone(outputs), targets

    def _forward(self, batch: Any, values: Mapping[str, Tensor], memo: Memo | None, points: int) -> tuple[Any, Any]:
        if memo is None:
            return self._network.evaluate(values, copied(batch))
        inputs = mapped(lambda x: memo.share(x) if isinstance(x, Tensor) else x, batch)
        with remembering(memo):
            outputs, targets = self._network.evaluate(values, inputs)
            if self._yields and points:
                self._check_chain(outputs, points)
            left = last_product(outputs) if self._ending else None
            return (evaluated(outputs) if left is None else left), evaluated(targets)

    def _check_chain(self, outputs: Any, points: int) -> None:
        """Nothing has been computed yet, so nothing is lost by giving way.

        Raises:
            OneChain: all that the points compute is one chain of linear layers, with small results.
        """
        leaves = list(tensors_in(outputs))
        if len(leaves) == 1 and layers_together(leaves[0]) == self._points.matrices:
            size = leaves[0].numel() * leaves[0].element_size()
            if fits_a_pass(size, leaves[0].device):
                raise OneChain(points, size)

    def _nan_is_unexplained(self, outputs: Any) -> bool:
        """Whether there is NaN in the outputs; asked of a GPU only once a sweep."""
        found = list(tensors_in(outputs.x if isinstance(outputs, LastProduct) else outputs))
        if self._nan_checked and any(asynchronous(t) for t in found):
            return False
        self._nan_checked = True
        return _has_nan(found)

    def _check_nan(self, p: int, batch: Any) -> None:
        """NaN may be the model's; it is not if it goes away on computed values.

        Raises:
            CannotDefer: code outside PyTorch read a deferred tensor's storage, which holds NaN for this purpose.
        """
        outputs, _ = self._network.evaluate(self._points.computed(p), copied(batch))
        if not _has_nan(tensors_in(outputs)):
            raise CannotDefer("compiled code reads parameters or activations without going through PyTorch's functions")


class VmapEngine:
    """A chunk of points in one call of `torch.func.vmap` over their coefficients.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
        compiled: whether torch.compile compiles the call.
        ending: whether a last product is left to the loss where a kernel takes the two together.
    """

    def __init__(self, network: Network, points: Points, compiled: bool = False, ending: bool = False) -> None:
        self._network, self._points, self._ending = network, points, ending and not compiled
        self._call: Callable[..., Any] = self._vmapped
        if compiled:
            self._call = torch.compile(self._vmapped, dynamic=False)

    def evaluate(self, batch: Any, start: int, stop: int, memo: Memo | None = None) -> Iterator[Outputs]:
        """Outputs and targets of points start..stop-1; nothing is remembered."""
        yield start, *self.step(batch, self._points.groups(start, stop), None)

    def memo(self) -> Memo | None:
        """None: nothing is remembered from one chunk to the next."""
        return None

    def step(self, batch: Any, coefficients: Sequence[Tensor], memo: Memo | None) -> tuple[Any, Any]:
        """Outputs and targets at A points, with coefficients [A, R] for each group of names."""
        outputs, targets = self._call(copied(batch), *coefficients)
        return outputs, targets

    def _vmapped(self, batch: Any, *groups: Tensor) -> tuple[Any, Any]:
        kept: list[Any] = []
        endings: list[LastProduct] = []

        def one(*coefficients: Tensor) -> Any:
            outputs, targets = self._network.evaluate(self._points.batched(coefficients), batch)
            kept.append(evaluated(targets))
            left = last_product(outputs) if self._ending else None
            if left is None:
                return evaluated(outputs)
            endings.append(left)
            return [t for t in (left.x, left.coefficients, left.shift) if t is not None]

        with vmap_fallback_unmentioned():
            outputs = torch.vmap(one, randomness="same")(*groups)
        if any(torch._C._functorch.is_batchedtensor(t) for t in tensors_in(kept[0])):
            raise CannotDefer("the targets depend on the point")
        if endings:
            x, coefficients, *shift = outputs
            outputs = LastProduct(x, coefficients, shift[0] if shift else None, endings[0].weights)
        return outputs, kept[0]


class Forwards:
    """Forward passes at single points, for what is seen on the way.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
        deferred: False computes every value before each pass; that is also what happens where deferral fails.
    """

    def __init__(self, network: Network, points: Points, deferred: bool = True) -> None:
        self.network, self.points = network, points
        self._plan, self._noise = Plan("loop", "one point at a time", 1, deferred=deferred), Noise()
        self._engine = LoopEngine(network, points, deferred)

    def memo(self) -> Memo | None:
        """For what all points of one batch share."""
        return self._engine.memo()

    def run(self, batch: Any, p: int, memo: Memo | None) -> None:
        """A forward pass of `batch`, which is on the device, at point p; each draws the same noise."""
        self._noise.again()
        try:
            self._engine.pass_through(batch, p, memo)
        except Exception as error:
            device = next((t.device for t in tensors_in(batch)), torch.device("cpu"))
            other = another_plan(self._plan, error, batch, 0, device)
            if other is None:
                raise
            self._plan, self._engine = other, LoopEngine(self.network, self.points, other.deferred)
            self._noise.again()
            self._engine.pass_through(batch, p, memo)


def engine_of(plan: Plan, network: Network, points: Points, ending: bool) -> LoopEngine | VmapEngine:
    """The engine that the plan names; `ending`: whether what scores the outputs takes a `LastProduct`."""
    if plan.engine == "vmap":
        return VmapEngine(network, points, plan.compiled, ending)
    return LoopEngine(network, points, plan.deferred, plan.yields, ending)


def _alone(outputs: Any) -> Any:
    """One point's outputs as those of A = 1 points."""
    if isinstance(outputs, LastProduct):
        return outputs.of_points()
    return mapped(lambda x: x[None] if isinstance(x, Tensor) else x, outputs)


def _has_nan(found: Any) -> bool:
    return any(t.is_floating_point() and bool(t.isnan().any()) for t in found)
