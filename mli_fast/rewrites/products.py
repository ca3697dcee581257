"""Products whose weight is a parameter: our kernels take its anchors and coefficients, so that it is never blended.

Condition: the weight is a parameter or a part of one, so is the bias or there is none, everything that the operator
touches is assigned once, its parts overlap little, and a kernel was measured to win on such a product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from mli_fast.capture.record import Ref
from mli_fast.ops.conv import Geometry
from mli_fast.program import Node, Program
from mli_fast.rewrites.parts import Part, part

aten = torch.ops.aten
COPIES = 3  # times the elements of a parameter in all its parts, which may have to be copied


class Kernels(Protocol):
    """What computes products."""

    def linear(self, weight: str, rows: int, columns: int, depth: int) -> str | None:
        """The kernel for x [rows, depth] by a part of this parameter; None where PyTorch's own operator wins."""

    def conv(self, weight: str, x: tuple[int, ...], move: Geometry, of_data: bool) -> str | None:
        """Likewise for a convolution of x [B, C, *spatial], which may depend on no parameter at all."""

    def chains(self, kernel: str, weights: int) -> bool:
        """Whether layers of so many weights together, each by that kernel, are computed in one call."""


@dataclasses.dataclass(frozen=True)
class Norm:
    """An eval-mode batch norm: names of its parameters and statistics."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    eps: float


@dataclasses.dataclass(eq=False)
class Product:
    """activation(product(x, weight) * scale + shift + residual) by a kernel.

    Attributes:
        kind: "linear" or "conv".
        kernel: its name; "torch" for PyTorch's convolution with what is folded in, "combined" for PyTorch's convolution
            with each anchor of an input that depends on no parameter, combined at the points.
        x: the input.
        weight: [N, K, ...], of a parameter.
        bias: [N], of a parameter.
        shape: of the result.
        before: linear products of one reader each that are computed in the same call, in order.
    """

    kind: str
    kernel: str
    x: Ref
    weight: Part
    bias: Part | None
    shape: tuple[int, ...]
    move: Geometry | None = None
    norm: Norm | None = None
    residual: Ref | None = None
    activation: str = "none"
    before: list[Product] = dataclasses.field(default_factory=list)

    @property
    def first(self) -> Product:
        """The first product of the call."""
        return self.before[0] if self.before else self

    def inputs(self) -> Iterator[int]:
        """The numbers of the values that the call reads."""
        yield self.first.x.number
        if self.residual is not None:
            yield self.residual.number

    def names(self) -> Iterator[str]:
        """The parameters that the call takes."""
        for product in (*self.before, self):
            norm = () if product.norm is None else dataclasses.astuple(product.norm)[:4]
            yield product.weight.name
            yield from (n for n in (product.bias and product.bias.name, *norm) if n is not None)


def rewrite(program: Program, kernels: Kernels) -> None:
    """Turn operators into products."""
    taken: dict[Part, int] = {}  # elements
    for node in program.nodes:
        if node.stable and node.product is None:
            found = _linear(program, node, kernels, taken) or _conv(program, node, kernels)
            if found is not None:
                node.product = found
                program.changed(node)


def vector(program: Program, argument: Any, length: int) -> tuple[bool, Part | None]:
    """Whether an argument is None or of a parameter, [length], and that part."""
    if argument is None:
        return True, None
    if not isinstance(argument, Ref) or tuple(program.shape[argument.number]) != (length,):
        return False, None
    found = part(program, argument)
    return found is not None, found


def _linear(program: Program, node: Node, kernels: Kernels, taken: dict[Part, int]) -> Product | None:
    if node.kwargs or node.func not in (aten.addmm.default, aten.mm.default):
        return None
    bias, x, w = (None, *node.args[:2]) if node.func is aten.mm.default else node.args[:3]
    fits, bias = vector(program, bias, program.shape[node.out][-1])
    weight = part(program, w)
    if not fits or weight is None or not _alike(program, node, x) or program.name_of.get(x.number) is not None:
        return None
    (rows, depth), columns = program.shape[x.number], program.shape[node.out][1]
    kernel = kernels.linear(weight.name, rows, columns, depth)
    if kernel is None:
        return None
    others = sum(n for p, n in taken.items() if p.name == weight.name and p != weight)
    if others + columns * depth > COPIES * program.numel(program.record.parameters[weight.name]):
        return None
    taken[weight] = columns * depth
    return Product("linear", kernel, x, weight.turned, bias, tuple(program.shape[node.out]))


def _conv(program: Program, node: Node, kernels: Kernels) -> Product | None:
    if node.func is not aten.convolution.default:
        return None
    x, w, bias, stride, padding, dilation, transposed, _, groups = node.args
    fits, bias = vector(program, bias, program.shape[node.out][1])
    if not fits or transposed or not isinstance(w, Ref) or w.number not in program.name_of:
        return None
    spatial = len(program.shape[w.number]) - 2
    if not _alike(program, node, x) or len(program.shape[x.number]) != spatial + 2 or 0 in program.shape[node.out]:
        return None
    spread = lambda n: tuple(n) if len(n) == spatial else tuple(n) * spatial  # noqa: E731
    move = Geometry(spread(stride), spread(padding), spread(dilation), groups)
    name = program.name_of[w.number]
    maker = program.maker.get(x.number)
    of_data = x.number not in program.name_of and (maker is None or program.depends.isdisjoint(maker.ops))
    kernel = None if program.layout_seen else kernels.conv(name, tuple(program.shape[x.number]), move, of_data)
    if kernel is None:
        return None
    return Product("conv", kernel, x, Part(name), bias, tuple(program.shape[node.out]), move)


def _alike(program: Program, node: Node, x: Any) -> bool:
    """Whether the input is of the result's dtype."""
    return isinstance(x, Ref) and program.dtype[x.number] == program.dtype[node.out]
