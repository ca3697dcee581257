"""A record as a program: nodes assigned once where that is safe, and what of it depends on given parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mli_fast.capture.record import Exit, Op, Record, Ref, numbers_in

aten = torch.ops.aten

# In-place operators that are their functional form where one name alone exists for what they write to
_FUNCTIONAL = {
    getattr(getattr(aten, f"{name}_"), overload): getattr(getattr(aten, name), overload)
    for name, overloads in {
        "add": ("Tensor", "Scalar"),
        "sub": ("Tensor", "Scalar"),
        "mul": ("Tensor", "Scalar"),
        "div": ("Tensor", "Scalar"),
        "clamp": ("default",),
        "clamp_min": ("default",),
        "elu": ("default",),
        "hardsigmoid": ("default",),
        "hardswish": ("default",),
        "hardtanh": ("default",),
        "leaky_relu": ("default",),
        "masked_fill": ("Scalar",),
        "mish": ("default",),
        "relu": ("default",),
        "sigmoid": ("default",),
        "silu": ("default",),
        "tanh": ("default",),
    }.items()
    for overload in overloads
}
IN_PLACE = {functional: in_place for in_place, functional in _FUNCTIONAL.items()}
VIEWS = frozenset({aten.view.default, aten._unsafe_view.default, aten.reshape.default})
# Operators that see how a value lies in memory: with one of them no value may lie otherwise than in the record
LAYOUT_SEEN = frozenset(
    {
        "as_strided",
        "as_strided_",
        "as_strided_copy",
        "as_strided_scatter",
        "_reshape_alias",
        "view_as_complex",
        "set_",
        "resize_",
        "resize_as_",
    }
)


class Unfit(Exception):
    """A record that may not be replayed, and why."""


@dataclass(eq=False)
class Node:
    """One step: an operator call, or what a rewrite made of several."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[int | None]
    single: bool
    ops: list[int]  # the record's operators that it stands for
    stable: bool = False  # all that it touches is assigned once
    product: Any = None  # of `rewrites.products`, in place of the operator call
    over: Node | None = None  # whose result's memory this one's may take
    position: float = 0
    inputs: list[int] = field(default_factory=list)

    @property
    def out(self) -> int:
        """The number of its first output."""
        assert self.outs[0] is not None
        return self.outs[0]

    def find_inputs(self) -> list[int]:
        """The numbers of the values that it reads."""
        if self.product is not None:
            return list(self.product.inputs())
        return list(numbers_in((self.args, self.kwargs)))


class Program:
    """The nodes of a record, with an index of who makes and who reads each value.

    Args:
        record: a pass.
        assigned_once: False keeps every operator as it is: a replay is then the pass bit for bit.

    Raises:
        Unfit: an operator writes to a parameter.
    """

    def __init__(self, record: Record, assigned_once: bool = True) -> None:
        self.record = record
        self.name_of = {number: name for name, number in record.parameters.items()}
        self.shape = {n: g.shape for n, g in enumerate(record.geometry)}
        self.dtype = {n: g.dtype for n, g in enumerate(record.geometry)}
        self.stride = {n: g.stride for n, g in enumerate(record.geometry)}
        self.outputs = list(record.outputs)
        self.notes: list[str] = []  # what rewrites did
        written = record.written()
        for name, number in record.parameters.items():
            if record.storage[number] in written:
                raise Unfit(f"the model writes to {name!r}")
        self._own = record.given
        self.nodes = self._assigned_once() if assigned_once else self._as_recorded()
        self.index()
        self.depends = dependent(record, record.parameters)
        self.rewritten = assigned_once
        self.exact = any(isinstance(record.ops[i].func, Exit) for i in self.depends)
        self.layout_seen = any(_sees_layout(record, op) for op in record.ops)

    def _as_recorded(self) -> list[Node]:
        ops = self.record.ops
        return [Node(o.func, o.args, o.kwargs, list(o.outs), o.single, [i], position=i) for i, o in enumerate(ops)]

    def _assigned_once(self) -> list[Node]:
        """An in-place operator becomes a function with a new value where, so far, one number alone names the storage.

        Views made later are then views of the new value. Storages with any other write stay as they are, and so does
        everything that touches them.
        """
        record, unstable = self.record, self._unstable()
        now: dict[int, int] = {}
        nodes: list[Node] = []
        for i, op in enumerate(record.ops):
            if _is_same_view(record, op):
                was = op.args[0].number
                now[op.outs[0]] = now.get(was, was)  # type: ignore[index]
                continue
            args, kwargs = (_renamed(op.args, now), _renamed(op.kwargs, now)) if now else (op.args, op.kwargs)
            func, outs = op.func, list(op.outs)
            touched = op.reads | op.writes | {record.storage[n] for n in op.outs if n is not None}
            if op.writes and op.func in _FUNCTIONAL and not op.writes & unstable:
                func, value = _FUNCTIONAL[op.func], len(self.shape)
                was = op.args[0].number
                self.shape[value], self.stride[value] = self.shape[was], self.stride[was]
                self.dtype[value] = self.dtype[was]
                now[was] = value
                outs = [value]
            nodes.append(Node(func, args, kwargs, outs, op.single, [i], not touched & unstable, position=i))
        self.outputs = [None if n is None else now.get(n, n) for n in self.outputs]
        return nodes

    def _unstable(self) -> set[int]:
        record, seen, unstable = self.record, defaultdict(set), set()
        for op in record.ops:
            for n in (*numbers_in((op.args, op.kwargs)), *(n for n in op.outs if n is not None)):
                seen[record.storage[n]].add(n)
            for storage in () if _is_same_view(record, op) else op.writes:
                if len(seen[storage]) > 1 or storage in self._own or not self._has_functional_form(op):
                    unstable.add(storage)
        return unstable

    def _has_functional_form(self, op: Op) -> bool:
        if op.func not in _FUNCTIONAL or not isinstance(op.args[0], Ref) or op.outs[0] != op.args[0].number:
            return False
        geometry = self.record.geometry
        mine = geometry[op.args[0].number]
        others = [geometry[n] for n in numbers_in((op.args[1:], op.kwargs))]
        if any(o.dtype != mine.dtype and o.dtype != torch.bool for o in others):
            return False
        return torch.broadcast_shapes(mine.shape, *(o.shape for o in others)) == torch.Size(mine.shape)

    # ---- the index
    def index(self) -> None:
        """Who makes and who reads each value; `changed` and `remove` keep it."""
        self.nodes.sort(key=lambda n: n.position)
        self.maker: dict[int, Node] = {}
        self.readers: dict[int, list[Node]] = defaultdict(list)
        for node in self.nodes:
            self._enter(node)

    def _enter(self, node: Node) -> None:
        node.inputs = node.find_inputs()
        for n in set(node.inputs):
            self.readers[n].append(node)
        for out in node.outs:
            if out is not None:
                self.maker[out] = node

    def changed(self, node: Node) -> None:
        """The node's arguments or outputs are others now."""
        for n in set(node.inputs):
            self.readers[n].remove(node)
        self._enter(node)

    def remove(self, node: Node, into: Node | None = None) -> None:
        """Take a node out; `into` stands for its operators from now on."""
        for n in set(node.inputs):
            self.readers[n].remove(node)
        self.nodes.remove(node)
        if into is not None:
            into.ops += node.ops

    def only_reader(self, node: Node) -> Node | None:
        """The node that alone reads the first output, once, where nothing else of it is seen."""
        readers = self.readers[node.out]
        if len(readers) != 1 or node.out in self.outputs or not readers[0].stable or readers[0].product is not None:
            return None
        return readers[0] if readers[0].inputs.count(node.out) == 1 else None

    def remove_unread(self) -> None:
        """Take out operators without effect whose results have no reader."""
        for node in reversed(self.nodes.copy()):
            seen = any(n is not None and (self.readers[n] or n in self.outputs) for n in node.outs)
            only_checks = all(n is None for n in node.outs)  # an error that it may raise is what it is for
            if node.stable and not seen and not only_checks and not self.record.ops[node.ops[0]].writes:
                self.remove(node)

    # ---- values
    def layout_for(self, node: Node, number: int) -> tuple[int, ...] | None:
        """The strides of the record that a node must be given a value with; None where it takes any.

        Memory that is written to is seen through views, and those are made of the strides of the record. Group norm
        takes a format from the strides and then insists on it, those of sizes 1 included; `F.group_norm` sees to that
        before the operator, of which the record has nothing where there was nothing to do.
        """
        maker = self.maker.get(number)
        takes_any = node.stable and node.func is not aten.native_group_norm.default
        if takes_any or not self.rewritten or maker is None or not maker.stable or len(self.shape[number]) < 2:
            return None
        stride = self.stride.get(number)
        overlaps = stride is None or any(s == 0 < n - 1 for n, s in zip(self.shape[number], stride, strict=True))
        return None if overlaps else stride

    def numel(self, number: int) -> int:
        """How many elements a value has."""
        return math.prod(self.shape[number])


def dependent(record: Record, names: Iterable[str]) -> set[int]:
    """The operators that depend on these parameters, by index.

    A fixed point over storages: what reads or touches a dependent storage is dependent, and so is all that it touches.
    A write that is the same at all points but stands after a dependent reader makes its storage dependent: it may not
    be done before that reader.
    """
    storages = {record.storage[record.parameters[name]] for name in names}
    last_write: dict[int, int] = {}
    touched = []
    for i, op in enumerate(record.ops):
        touched.append({record.storage[n] for n in op.outs if n is not None} | op.writes)
        for storage in op.writes:
            last_write[storage] = i
    found: set[int] = set()
    while True:
        before = len(found), len(storages)
        for i, op in enumerate(record.ops):
            if op.reads & storages or touched[i] & storages:
                found.add(i)
                storages |= touched[i]
                storages |= {s for s in op.reads - storages if last_write.get(s, -1) > i}
        if before == (len(found), len(storages)):
            return found


def _sees_layout(record: Record, op: Op) -> bool:
    """Whether an operator shows how a value lies in memory: by strides, as other numbers, by resizing what it fills."""
    if _is_same_view(record, op):
        return False
    given = set(numbers_in((op.args, op.kwargs)))
    resized = any(n is not None and n not in given and record.storage[n] in op.writes for n in op.outs)
    return resized or _name(op) in LAYOUT_SEEN or op.func is aten.view.dtype


def _is_same_view(record: Record, op: Op) -> bool:
    """Whether an operator changes nothing but the strides of dimensions of size 1, as average pooling to 1 x 1 does."""
    if op.func is not aten.as_strided_.default or type(op.args[0]) is not Ref:
        return False
    before, after = record.geometry[op.args[0].number], record.geometry[op.outs[0]]  # type: ignore[index]
    if (before.shape, before.offset) != (after.shape, after.offset):
        return False
    return all(n == 1 or a == b for n, a, b in zip(before.shape, before.stride, after.stride, strict=True))


def _name(op: Op) -> str:
    return "" if isinstance(op.func, Exit) else op.func._schema.name.split("::")[1]


def _renamed(thing: Any, now: dict[int, int]) -> Any:
    """Arguments with values under their present numbers."""
    if type(thing) is Ref:
        return Ref(now[thing.number]) if thing.number in now else thing
    if type(thing) in (list, tuple):
        return type(thing)([_renamed(item, now) for item in thing])
    if type(thing) is dict:
        return {k: _renamed(v, now) for k, v in thing.items()}
    return thing


def same_program(a: Record, b: Record) -> str | None:
    """Why two records are not of the same program with the same constants; None if they are."""
    if len(a.ops) != len(b.ops):
        return f"{len(a.ops)} operators at one point and batch, {len(b.ops)} at another"
    for p, q in zip(a.ops, b.ops, strict=True):
        if p.func != q.func and not (
            isinstance(p.func, Exit) and isinstance(q.func, Exit) and p.func.kind == q.func.kind
        ):
            return f"{p.func} at one point and batch, {q.func} at another"
        if repr(p.args) != repr(q.args) or repr(p.kwargs) != repr(q.kwargs) or p.outs != q.outs:
            return f"{p.func} has other arguments at another point and batch"
    if a.geometry != b.geometry:
        return "values have other shapes at another point and batch"
    if a.outputs != b.outputs or repr(a.tree) != repr(b.tree):
        return "other outputs at another point and batch"
    for n, tensor in a.constants.items():
        other = b.constants.get(n)
        if other is None or not _same_constant(tensor, other, n in a.literals):
            return "a tensor that no operator made is another one at another point and batch"
    return None


def _same_constant(a: torch.Tensor, b: torch.Tensor, literal: bool) -> bool:
    if a is b:
        return True
    if not literal and a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    return a.shape == b.shape and a.dtype == b.dtype and _bits_equal(a, b)


def _bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def shown(program: Program) -> Iterator[str]:
    """The operators of a program, a line each."""
    for node in program.nodes:
        yield f"{node.func} {node.inputs} -> {node.outs}"
