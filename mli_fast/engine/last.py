"""The product that gives a network's outputs, where a kernel takes it and its loss together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mli_fast.engine.products import Products
from mli_fast.ops.cross_entropy import Unmultiplied, fuses
from mli_fast.program import VIEWS, Node, Program
from mli_fast.rewrites.products import Product


@dataclass(frozen=True)
class Last:
    """A product that a loss may take unmultiplied.

    Attributes:
        nodes: the product and what views its result.
        x: the number of its input.
        weight: the parameter.
        anchors: its anchors, as the kernel wants them.
        shift: the number of the table of its bias.
        shape: of the outputs of one point.
    """

    nodes: tuple[Node, Node]
    x: int
    weight: str
    anchors: list[Tensor]
    shift: int | None
    shape: tuple[int, ...]

    def result(self, x: Tensor, coefficients: Tensor, rows: Sequence[Tensor], is_shared: bool) -> Unmultiplied:
        """The outputs of a pass.

        Args:
            x: the input: [M, K] if all points share it, else [P * M, K]; any number of dimensions in place of M.
            coefficients: [P, R].
            rows: of the tables, [P, N] each.
            is_shared: whether they do.
        """
        count = len(coefficients)
        shift = None if self.shift is None else rows[self.shift]
        inputs = x.expand(count, *x.shape) if is_shared else x.reshape(count, -1, x.shape[-1])
        return Unmultiplied(inputs, self.anchors, coefficients, shift, torch.Size((count, *self.shape)))


def last_product(program: Program, products: Products, is_alone: bool) -> Last | None:
    """The product that gives the outputs, if nothing else reads it and a kernel takes it and its loss together.

    As everything that a value's last bits depend on, it is seen from the record: not from which parameters move.

    Args:
        program: rewritten.
        products: its calls.
        is_alone: whether the outputs are one tensor.
    """
    out = program.outputs[0] if is_alone else None
    maker = None if out is None or program.readers[out] else program.maker.get(out)
    if out is None or maker is None or isinstance(program.record.tree[0], (tuple, list, Mapping)):
        return None
    viewed = maker.product is None and maker.stable and maker.func in VIEWS
    node = program.maker.get(maker.inputs[0]) if viewed else maker
    if node is None or node.product is None:
        return None
    product: Product = node.product
    bare = (product.residual, product.norm, product.activation, product.before) == (None, None, "none", [])
    alone = node is maker or (len(program.readers[node.out]) == 1 and node.out not in program.outputs)
    before = program.maker.get(product.x.number)
    of_data = before is None or program.depends.isdisjoint(before.ops)
    if not bare or not alone or product.kind != "linear" or of_data:
        return None
    anchors = products.anchors(product)
    if not fuses(torch.empty(0, dtype=program.dtype[product.x.number], device=anchors[0].device), anchors):
        return None
    shift = products.tables.tails(product)[1]
    return Last((node, maker), product.x.number, product.weight.name, anchors, shift, tuple(program.shape[out]))
