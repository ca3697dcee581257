"""What all points of a batch share: computed once a batch, and handed on between works that have it in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mli_fast.capture.record import Exit, Ref
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.engine.products import Products
from mli_fast.program import VIEWS, Node, Program
from mli_fast.trees import bytes_in, laid_out, same_geometry


class SharedCache:
    """Results that a work leaves to the next for the batch at hand, the last ones within a budget.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._bytes = budget, 0
        self._found: dict[Any, list[Any]] = {}

    def get(self, key: Any) -> list[Any] | None:
        """What is cached under a key."""
        return self._found.get(key)

    def put(self, key: Any, results: list[Any]) -> None:
        """Cache results; the oldest are evicted."""
        self._found[key] = results
        self._bytes += bytes_in(results)
        while self._bytes > self._budget and len(self._found) > 1:
            oldest = next(iter(self._found))
            self._bytes -= bytes_in(self._found.pop(oldest))


@dataclass
class Shared:
    """What the points of a batch share: values for a pass, and outputs by their numbers."""

    values: list[Any]
    outputs: dict[int, Tensor]


class SharedPart:
    """The nodes of a program that depend on no moving parameter.

    Args:
        program: the program.
        nodes: those nodes, in order.
        products: product nodes at points whose input is shared: their numbers -> the node.
        wanted: numbers of the values that passes over points read.
        outputs: numbers of the outputs that all points share.
        makers: makes calls.
        network: whose memory holds the parameters.
        points: the points.
    """

    def __init__(
        self,
        program: Program,
        nodes: list[Node],
        products: Mapping[str, Node],
        wanted: list[int],
        outputs: set[int],
        makers: Products,
        network: Network,
        points: Points,
        copied: list[list[int]],
    ) -> None:
        self._program, self._nodes, self._wanted, self._outputs = program, nodes, wanted, outputs
        self._network, self._points, self._copied = network, points, copied
        self._of_shared = [(node, makers.of_shared(node.product.first)) for node in products.values()]
        self._alone = {id(node): makers.alone(node.product) for node in nodes if node.product is not None}
        names = [program.name_of[n] for node in nodes for n in node.inputs if n in program.name_of]
        names += [node.product.weight.name for node in nodes if node.product is not None]
        self._names = tuple(dict.fromkeys(names))
        self._keys = self._dependences()

    def _dependences(self) -> dict[int, Any]:
        """For each node whose results may be cached: its operators and the values of the parameters it depends on."""
        program, anchors = self._program, self._points.anchors
        behind: dict[int, frozenset[Any]] = {}
        keys: dict[int, Any] = {}
        for node in self._nodes:
            names = [program.name_of[n] for n in node.inputs if n in program.name_of]
            names += list(node.product.names()) if node.product is not None else []
            own = frozenset((name, id(anchors[name][0])) for name in names if name in anchors)
            found = own.union(*(behind.get(n, frozenset()) for n in node.inputs))
            behind.update((n, found) for n in node.outs if n is not None)
            if node.stable and not isinstance(node.func, Exit):
                keys[id(node)] = (tuple(sorted(node.ops)), found)
        return keys

    def __call__(self, batch: Sequence[Tensor], cache: SharedCache | None = None) -> Shared:
        """Compute it for a batch.

        Args:
            batch: the batch's tensors, in the order of the record.
            cache: what other works computed of this batch; results are added.

        Raises:
            OtherAnswer: the batch takes another way than the record's.
            ArithmeticError: an infinite input, whose products of two signs would cancel to NaN.
        """
        if self._names:
            self._network.load(self._points, 0, self._names)
        record = self._program.record
        values: dict[int, Any] = dict(zip(record.batch, batch, strict=True))
        values |= record.constants
        for numbers in self._copied:
            values.update(zip(numbers, same_geometry([values[n] for n in numbers]), strict=True))
        needed, last = self._needed(cache)
        for node, unread in zip(needed, last, strict=True):
            key = None if cache is None else self._keys.get(id(node))
            results = None if key is None or cache is None else cache.get(key)
            if results is None:
                results = self._run(node, values)
                if key is not None and cache is not None:
                    cache.put(key, results)
            values.update((n, t) for n, t in zip(node.outs, results, strict=True) if n is not None)
            for n in unread:
                values.pop(n, None)
        found = [values[n] for n in self._wanted]
        found += [products(_finite(values[node.product.first.x.number])) for node, products in self._of_shared]
        return Shared(found, {n: values[n] for n in self._outputs})

    def _needed(self, cache: SharedCache | None) -> tuple[list[Node], list[list[int]]]:
        """The nodes to be run, in order, and after each the values that are not read any more."""
        names = self._program.name_of
        kept = {*self._wanted, *self._outputs, *(node.product.first.x.number for node, _ in self._of_shared)}
        wanted = set(kept)
        needed: list[Node] = []
        last: list[list[int]] = []
        for node in reversed(self._nodes):
            outs = [n for n in node.outs if n is not None]
            if node.stable and outs and wanted.isdisjoint(outs):
                continue
            key = self._keys.get(id(node))
            unread = [n for n in outs if n not in wanted]
            if cache is None or key is None or cache.get(key) is None:
                inputs = {n for n in node.inputs if n not in names}
                unread += [n for n in inputs if n not in wanted]
                wanted |= inputs
            needed.append(node)
            last.append(unread)
        return needed[::-1], last[::-1]

    def _run(self, node: Node, values: Mapping[int, Any]) -> list[Any]:
        if node.product is not None:
            residual = None if node.product.residual is None else values[node.product.residual.number]
            return [self._alone[id(node)](values[node.product.first.x.number], residual)]
        memory, name_of = self._network.memory, self._program.name_of

        def value(a: Any) -> Any:
            if type(a) is Ref:
                if a.number in name_of:
                    return memory[name_of[a.number]]
                stride = self._program.layout_for(node, a.number)
                return values[a.number] if stride is None else laid_out(values[a.number], stride)
            if type(a) in (list, tuple):
                return type(a)([value(x) for x in a])
            return a

        func = torch.reshape if node.stable and node.func in VIEWS else node.func
        out = func(*[value(a) for a in node.args], **{k: value(v) for k, v in node.kwargs.items()})
        if not node.outs:
            return []
        return [out] if node.single else list(out)


def _finite(x: Tensor) -> Tensor:
    """The input of products that are combined, which has to be finite; unchecked on a GPU: that would synchronise."""
    if x.device.type == "cpu" and not math.isfinite(float(x.sum(dtype=torch.float64))):
        raise ArithmeticError("an input that all points share is not finite")
    return x
