"""A plan: a program for given points; what a batch shares is computed once, the rest by one function per pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mli_fast.capture.record import Ref
from mli_fast.engine.bindings import DIRECT
from mli_fast.engine.calls import TORCH
from mli_fast.engine.last import last_product
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.engine.products import Products, scaled
from mli_fast.engine.shared import Shared, SharedCache, SharedPart
from mli_fast.engine.together import folds
from mli_fast.program import IN_PLACE, VIEWS, Node, Program, dependent
from mli_fast.rewrites.products import Product
from mli_fast.trees import bytes_in, filled, laid_out, leaves_of, mapped, same_geometry

aten = torch.ops.aten


@dataclass
class Pass:
    """What a pass over points start..start+count-1 is given besides the batch."""

    start: int
    count: int
    coefficients: list[Tensor]  # [count, R] each
    rows: list[Tensor]  # [count, N] each
    weights: list[Tensor]  # with a batch norm folded in


class Plan:
    """A program, and where its parameters' values come from.

    Args:
        program: rewritten or not.
        points: the points.
        network: whose memory holds the parameters that are read as they are.

    Attributes:
        most: the most points that a pass takes; 1 unless points may be taken together.
        targets_shared: whether the targets are the same at all points.
        cached: (id of a batch at hand, point) -> its result.
        source: the function's Python source.
    """

    def __init__(self, program: Program, points: Points, network: Network) -> None:
        self.program, self.points, self.network = program, points, network
        ops = dependent(program.record, points.moving)
        self.per_point = {id(node) for node in program.nodes if not ops.isdisjoint(node.ops)}
        self.rewritten = program.rewritten
        self._targets_from = len(leaves_of(program.record.tree[0]))
        self.together, self.most = folds(program, self._is_per_point, network.device)
        made = {n for node in program.nodes if self._is_per_point(node) for n in node.outs} | set(program.name_of)
        self.targets_shared = all(n not in made for n in program.outputs[self._targets_from :])
        if not self.targets_shared or any(n in program.name_of for n in program.outputs if n is not None):
            self.together, self.most = False, 1  # targets have no points in front, and a parameter has one point's
        self.cached: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._scope: dict[str, Any] = {"torch": torch, "same_geometry": same_geometry, "laid_out": laid_out}
        self._coefficients: list[Tensor] = []
        self._weights: list[tuple[str, int]] = []  # (name, table of its scale)
        self._products = Products(program, points, network)
        self._last = last_product(program, self._products, self._targets_from == 1)
        self._shared_inputs: dict[str, Node] = {}  # what the source calls the products -> the node
        names: list[str] = []
        self._point: Callable[..., list[Tensor]]
        self._write(names)
        self._names = tuple(dict.fromkeys(names))

    def _is_per_point(self, node: Node) -> bool:
        return id(node) in self.per_point

    def shares_input(self, product: Product) -> bool:
        """Whether the anchors' products of its input are made once a batch and combined at the points."""
        number = product.first.x.number
        maker = self.program.maker.get(number)
        is_shared = number not in self.program.name_of and (maker is None or not self._is_per_point(maker))
        return is_shared and product.kernel != TORCH

    # ---- running
    def shared(self, batch: Sequence[Tensor], cache: SharedCache | None = None) -> Shared:
        """What all points of a batch share; see `SharedPart`."""
        return self._shared(batch, cache)

    def prepare(self, start: int, stop: int) -> Pass:
        """What a pass over points start..stop-1 needs whatever the batch; overwritten by the next call."""
        if self._names:
            self.network.load(self.points, start, self._names)
        rows = self._products.tables.rows(start, stop)
        weights = [scaled(self.network.memory[name], rows[at]) for name, at in self._weights]
        return Pass(start, stop - start, [c[start:stop] for c in self._coefficients], rows, weights)

    def result(self, given: Pass, shared: Shared, multiplied_later: int = 0) -> tuple[Any, Any]:
        """(outputs, targets) at the points of a pass; every tensor of the outputs has them in dimension 0.

        Args:
            given: the pass.
            shared: what its points share.
            multiplied_later: outputs of so many dimensions at a point may be `Unmultiplied`.

        Raises:
            OtherAnswer: a number that leaves PyTorch is not what it was in the record.
        """
        outputs, targets = self.program.record.tree
        literals = [*leaves_of(outputs), *leaves_of(targets)]
        made = iter(self._point(given.count, given.coefficients, given.rows, given.weights, *shared.values))
        leaves: list[Any] = []
        for i, (n, literal) in enumerate(zip(self.program.outputs, literals, strict=True)):
            if self._last is not None and i == 0:
                is_shared = self._last.x in shared.outputs
                x = shared.outputs[self._last.x] if is_shared else next(made)
                coefficients = self.points.coefficients(self._last.weight)[given.start : given.start + given.count]
                last = self._last.result(x, coefficients, given.rows, is_shared)
                leaves.append(last if len(last.shape) == multiplied_later + 1 else last.multiplied())
            elif n is None:
                leaves.append(literal)
            elif i >= self._targets_from:
                leaves.append(shared.outputs[n] if n in shared.outputs else next(made))
            elif n in shared.outputs:
                leaves.append(shared.outputs[n].expand(given.count, *shared.outputs[n].shape))
            else:
                out = next(made)
                leaves.append(out.reshape(given.count, *self.program.shape[n]) if self.together else out[None])
        return filled(outputs, leaves[: self._targets_from]), filled(targets, leaves[self._targets_from :])

    def cache(self, batch: Any, p: int, result: tuple[Any, Any], room: int) -> None:
        """Cache a result of at most `room` bytes until the batch is evaluated, where points are taken one by one."""
        if self.most == 1 and self._last is None and bytes_in(result) <= room:
            self.cached[id(batch), p] = mapped(lambda x: x.clone() if isinstance(x, Tensor) else x, result)

    def compile(self) -> None:
        """Run the function through torch.compile."""
        self._point = torch.compile(self._point, dynamic=False)

    # ---- writing the function
    def _write(self, names: list[str]) -> None:
        program = self.program
        apart = () if self._last is None else self._last.nodes
        nodes = [n for n in program.nodes if self._is_per_point(n) and n not in apart]
        results = [*program.outputs]
        if self._last is not None:
            results[0] = self._last.x
        given = sorted({n for n in program.outputs if n in program.name_of})
        made = {n for node in nodes for n in node.outs if n is not None} | set(given)
        copied_for_all, copied = self._written(nodes)
        lines = [f"{_listed(numbers)} = same_geometry([{_listed(numbers)}])" for numbers in copied]
        lines += [f"v{n} = {self._text(Ref(n), names)}.clone()" for n in given]
        last = {n: i for i, node in enumerate(nodes) for n in (*node.inputs, *(o for o in node.outs if o is not None))}
        wanted = {n for numbers in copied for n in numbers}
        for i, node in enumerate(nodes):
            lines.append(self._line(node, names))
            read = self._read(node)
            wanted |= {n for n in read if n not in made and n not in program.name_of}
            dead = {n for n in (*node.inputs, *node.outs) if n in made and last[n] == i and n not in results}
            if dead:
                lines.append("del " + _listed(sorted(dead)).rstrip(","))
        across = sorted(wanted)
        outs = [n for n in results if n in made]
        head = ", ".join(["P", "c", "t", "w", *(f"v{n}" for n in across), *self._shared_inputs])
        body = "".join(f"    {line}\n" for line in (*lines, f"return [{_listed(outs)}]"))  # type: ignore[arg-type]
        self.source = f"def point({head}):\n{body}"
        exec(compile(self.source, "<mli_fast plan>", "exec"), self._scope)
        self._point = self._scope["point"]
        self._shared = SharedPart(
            program,
            [n for n in program.nodes if not self._is_per_point(n) and n not in apart],
            self._shared_inputs,
            across,
            {n for n in results if n is not None and n not in made},
            self._products,
            self.network,
            self.points,
            copied_for_all,
        )

    def _read(self, node: Node) -> list[int]:
        """The values that a node's line reads: not the input whose products are made beforehand."""
        if f"p{node.out if node.outs and node.outs[0] is not None else ''}" in self._shared_inputs:
            residual = node.product.residual
            return [] if residual is None else [residual.number]
        return node.inputs

    def _written(self, nodes: list[Node]) -> tuple[list[list[int]], list[list[int]]]:
        """Given tensors whose memory the program writes to, by storage: those copied for each batch, for each pass."""
        record = self.program.record
        written = record.written()
        per_point = {s for node in nodes for i in node.ops for s in record.ops[i].writes}
        groups: dict[int, list[int]] = {}
        for n in (*record.batch, *record.constants):
            if record.storage[n] in written or (self.program.layout_seen and n in record.batch):
                groups.setdefault(record.storage[n], []).append(n)
        return list(groups.values()), [numbers for s, numbers in groups.items() if s in per_point]

    def _constant(self, value: Any) -> str:
        name = f"k{len(self._scope)}"
        self._scope[name] = value
        return name

    def _text(self, a: Any, names: list[str], reader: Node | None = None) -> str:
        if type(a) is Ref:
            if a.number not in self.program.name_of:
                stride = None if reader is None else self.program.layout_for(reader, a.number)
                return f"v{a.number}" if stride is None else f"laid_out(v{a.number}, {stride})"
            name = self.program.name_of[a.number]
            names.append(name)
            return self._constant(self.network.memory[name])
        if isinstance(a, (list, tuple)):
            inner = "".join(self._text(x, names, reader) + ", " for x in a)
            return f"[{inner}]" if isinstance(a, list) else f"({inner})"
        if isinstance(a, (int, bool, str, type(None))) or (isinstance(a, float) and math.isfinite(a)):
            return repr(a)
        return self._constant(a)

    def _line(self, node: Node, names: list[str]) -> str:
        if node.product is not None:
            return f"v{node.out} = {self._product(node, names)}"
        func = node.func
        if node.over is not None and self._is_per_point(node.over):
            func = IN_PLACE[func]
        called = self._constant(DIRECT.get(func, func))
        args = [self._text(a, names, node) for a in node.args]
        if node.stable and func in VIEWS:
            called = "torch.reshape"
            if self.together:
                first, *rest = self.program.shape[node.out]
                args[1] = f"(P * {first}, {''.join(f'{d}, ' for d in rest)})"
        call = f"{called}({', '.join([*args, *(f'{k}={self._text(v, names, node)}' for k, v in node.kwargs.items())])})"
        if all(n is None for n in node.outs):
            return call
        if node.single:
            return f"v{node.out} = {call}"
        return "".join("_, " if n is None else f"v{n}, " for n in node.outs) + f"= {call}"

    def _product(self, node: Node, names: list[str]) -> str:
        product: Product = node.product
        residual = "None" if product.residual is None else self._text(product.residual, names)
        is_shared = self.shares_input(product)
        call = self._constant(self._products.call(product, is_shared))
        if is_shared:
            source = f"p{node.out}"
            self._shared_inputs[source] = node
        else:
            source = self._text(product.first.x, names)
        parts = [self._part(p, names) for p in (*product.before, product)]
        if product.before:
            parts = [tuple(f"({''.join(x + ', ' for x in column)})" for column in zip(*parts, strict=True))]  # type: ignore[list-item]
        return f"{call}({source}, {residual}, P, {', '.join(parts[0])})"

    def _part(self, product: Product, names: list[str]) -> tuple[str, str, str]:
        """What a product's call takes as coefficients (or weight), scale and shift."""
        scale, shift = ("None" if at is None else f"t[{at}]" for at in self._products.tables.tails(product))
        if product.kernel != TORCH:
            return f"c[{self._index(self.points.coefficients(product.weight.name))}]", scale, shift
        names.append(product.weight.name)
        if scale == "None":
            return self._constant(self.network.memory[product.weight.name]), "None", shift
        self._weights.append((product.weight.name, int(scale[2:-1])))
        return f"w[{len(self._weights) - 1}]", "None", shift

    def _index(self, coefficients: Tensor) -> int:
        for i, known in enumerate(self._coefficients):
            if known is coefficients:
                return i
        self._coefficients.append(coefficients)
        return len(self._coefficients) - 1


def _listed(numbers: Sequence[int]) -> str:
    return "".join(f"v{n}, " for n in numbers).removesuffix(", ") if len(numbers) != 1 else f"v{numbers[0]},"
