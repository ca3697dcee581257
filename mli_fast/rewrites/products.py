"""Products whose weight is a parameter: our kernels take its anchors and coefficients, so that it is never blended.

Condition: the weight is a whole parameter or its transpose, the bias a whole vector or none, everything that the
operator touches is assigned once, and a kernel was measured to win on such a product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from mli_fast.capture.record import Ref
from mli_fast.ops.conv import Geometry
from mli_fast.program import Node, Program

aten = torch.ops.aten


class Kernels(Protocol):
    """What computes products."""

    def linear(self, weight: str, rows: int) -> str | None:
        """The kernel for `rows` rows by this weight; None where PyTorch's own operator wins."""

    def conv(self, weight: str, x: tuple[int, ...], move: Geometry, of_data: bool) -> str | None:
        """Likewise for a convolution of x [B, C, *spatial], which may depend on no parameter at all."""

    def chains(self, kernel: str, weights: list[str]) -> bool:
        """Whether layers of these weights, each by that kernel, are computed in one call."""


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
        weight: a parameter's name.
        turned: the weight is [K, N], not [N, K].
        bias: a parameter's name.
        shape: of the result.
        before: linear products of one reader each that are computed in the same call, in order.
    """

    kind: str
    kernel: str
    x: Ref
    weight: str
    turned: bool
    bias: str | None
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
            yield from (n for n in (product.weight, product.bias, *norm) if n is not None)


def rewrite(program: Program, kernels: Kernels) -> None:
    """Turn operators into products."""
    for node in program.nodes:
        if node.stable and node.product is None:
            found = _linear(program, node, kernels) or _conv(program, node, kernels)
            if found is not None:
                node.product = found
                program.changed(node)


def vector(program: Program, argument: Any, length: int) -> tuple[bool, str | None]:
    """Whether an argument is None or a parameter [length], and that one's name."""
    if argument is None:
        return True, None
    if not isinstance(argument, Ref) or tuple(program.shape[argument.number]) != (length,):
        return False, None
    name = program.name_of.get(argument.number)
    return name is not None, name


def _linear(program: Program, node: Node, kernels: Kernels) -> Product | None:
    if node.kwargs or node.func not in (aten.addmm.default, aten.mm.default):
        return None
    bias, x, w = (None, *node.args[:2]) if node.func is aten.mm.default else node.args[:3]
    fits, bias = vector(program, bias, program.shape[node.out][-1])
    weight = _weight(program, w)
    if not fits or weight is None or not _alike(program, node, x) or program.name_of.get(x.number) is not None:
        return None
    name, turned = weight
    kernel = kernels.linear(name, program.shape[x.number][0])
    if kernel is None:
        return None
    return Product("linear", kernel, x, name, turned, bias, tuple(program.shape[node.out]))


def _weight(program: Program, argument: Any) -> tuple[str, bool] | None:
    """(name, whether it is [K, N]) of the right factor of a product that is a parameter or its transpose."""
    if not isinstance(argument, Ref):
        return None
    if argument.number in program.name_of:
        return program.name_of[argument.number], True
    maker = program.maker.get(argument.number)
    if maker is None or not maker.stable or maker.product is not None:
        return None
    turns = maker.func is aten.t.default or (
        maker.func is aten.transpose.int and set(maker.args[1:]) in ({0, 1}, {-1, -2})
    )
    if not turns or maker.args[0].number not in program.name_of:
        return None
    return program.name_of[maker.args[0].number], False


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
    return Product("conv", kernel, x, name, False, bias, tuple(program.shape[node.out]), move)


def _alike(program: Program, node: Node, x: Any) -> bool:
    """Whether the input is of the result's dtype."""
    return isinstance(x, Ref) and program.dtype[x.number] == program.dtype[node.out]
