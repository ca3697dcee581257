"""The two engines: one point at a time on deferred values, or a chunk of points under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mli_fast.blended import CannotDefer, Memo, evaluated, remembering
from mli_fast.blended.memo import mapped
from mli_fast.blended.products import layers_together
from mli_fast.engine.guard import vmap_fallback_unmentioned
from mli_fast.engine.network import Network
from mli_fast.engine.plan import ACTIVATION_BYTES, TOGETHER, OneChain, Plan
from mli_fast.engine.points import Points

Outputs = tuple[int, Any, Any]  # point, outputs, targets


class LoopEngine:
    """One point at a time; what is the same at every point of a batch is computed at the first and remembered.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
        deferred: False computes every value before the forward pass, for models that deferred ones do not survive.
        yields: whether it gives way to the vmap engine where that can take all points in one call.
    """

    def __init__(self, network: Network, points: Points, deferred: bool = True, yields: bool = False) -> None:
        self._network, self._points, self._deferred, self._yields = network, points, deferred, yields

    def evaluate(self, batch: Any, start: int, stop: int) -> Iterator[Outputs]:
        """Outputs and targets of points start..stop-1.

        Raises:
            OneChain: the engine yields.
        """
        memo = Memo() if self._deferred else None
        state = torch.get_rng_state()
        for p in range(start, stop):
            torch.set_rng_state(state)  # every point draws the same noise, whichever others were asked for
            if memo is None:
                outputs, targets = self._network.evaluate(self._points.computed(p), mapped(_copied, batch))
            else:
                inputs = mapped(lambda x: memo.share(x) if isinstance(x, Tensor) else x, batch)
                with remembering(memo):
                    outputs, targets = self._network.evaluate(self._points.deferred(p), inputs)
                    if self._yields and p == start:
                        self._check_chain(outputs, stop - start)
                    outputs, targets = evaluated((outputs, targets))
                if p == start and _has_nan(outputs):
                    self._check_nan(p, batch)
            yield p, outputs, targets

    def _check_chain(self, outputs: Any, points: int) -> None:
        """Nothing has been computed yet, so nothing is lost by giving way.

        Raises:
            OneChain: all that the points compute is one call of the chain kernel, with small results.
        """
        leaves = _tensors(outputs)
        if len(leaves) == 1 and layers_together(leaves[0]) == self._points.matrices:
            size = leaves[0].numel() * leaves[0].element_size()
            if size * TOGETHER <= ACTIVATION_BYTES:
                raise OneChain(points, size)

    def _check_nan(self, p: int, batch: Any) -> None:
        """NaN may be the model's; it is not if it goes away on computed values.

        Raises:
            CannotDefer: code outside PyTorch read a deferred tensor's storage, which holds NaN for this purpose.
        """
        outputs, _ = self._network.evaluate(self._points.computed(p), mapped(_copied, batch))
        if not _has_nan(outputs):
            raise CannotDefer("compiled code reads parameters or activations without going through PyTorch's functions")


class VmapEngine:
    """A chunk of points in one call of `torch.func.vmap` over their coefficients."""

    def __init__(self, network: Network, points: Points, compiled: bool) -> None:
        self._network, self._points = network, points
        self._call: Callable[..., Any] = self._vmapped
        if compiled:
            self._call = torch.compile(self._vmapped, dynamic=False)

    def evaluate(self, batch: Any, start: int, stop: int) -> Iterator[Outputs]:
        """Outputs and targets of points start..stop-1."""
        state = torch.get_rng_state()
        outputs, targets = self._call(mapped(_copied, batch), *self._points.groups(start, stop))
        torch.set_rng_state(state)
        for p in range(start, stop):
            yield p, mapped(lambda t: t[p - start] if isinstance(t, Tensor) else t, outputs), targets  # noqa: B023

    def _vmapped(self, batch: Any, *groups: Tensor) -> tuple[Any, Any]:
        kept = []

        def one(*coefficients: Tensor) -> Any:
            outputs, targets = evaluated(self._network.evaluate(self._points.batched(coefficients), batch))
            kept.append(targets)
            return outputs

        with vmap_fallback_unmentioned():
            outputs = torch.vmap(one, randomness="same")(*groups)
        if any(torch._C._functorch.is_batchedtensor(t) for t in _tensors(kept[0])):
            raise CannotDefer("the targets depend on the point")
        return outputs, kept[0]


def engine_of(plan: Plan, network: Network, points: Points) -> LoopEngine | VmapEngine:
    """The engine that the plan names."""
    if plan.engine == "vmap":
        return VmapEngine(network, points, plan.compiled)
    return LoopEngine(network, points, plan.deferred, plan.yields)


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _has_nan(x: Any) -> bool:
    return any(t.is_floating_point() and bool(t.isnan().any()) for t in _tensors(x))


def _tensors(x: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, x)
    return found
