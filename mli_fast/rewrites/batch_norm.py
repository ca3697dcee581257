"""Eval-mode batch norm into the product before it.

Condition: the product's only reader is the batch norm, whose statistics and affine parameters are whole parameters.
"""

from __future__ import annotations

import torch

from mli_fast.program import Node, Program
from mli_fast.rewrites.products import Kernels, Norm, vector

aten = torch.ops.aten


def rewrite(program: Program, kernels: Kernels) -> None:
    """Fold what can be folded."""
    for node in program.nodes.copy():
        if node.product is not None and node.product.norm is None:
            reader = program.only_reader(node)
            norm = None if reader is None else _norm(program, node, reader)
            if reader is not None and norm is not None:
                node.product.norm = norm
                take_over(program, node, reader)


def take_over(program: Program, node: Node, reader: Node) -> None:
    """The node gives what its only reader gave, where that one stood: all its inputs are assigned once."""
    program.remove(reader, into=node)
    node.outs, node.position, node.single = [reader.out], reader.position, True
    program.changed(node)


def _norm(program: Program, node: Node, reader: Node) -> Norm | None:
    if reader.func is not aten.native_batch_norm.default or reader.args[5] is not False:
        return None
    if reader.args[0].number != node.out or any(program.readers[n] for n in reader.outs[1:] if n is not None):
        return None
    if any(n in program.outputs for n in reader.outs[1:]) or node.product.kind != "conv":
        return None
    fits, parts = zip(*(vector(program, a, program.shape[node.out][1]) for a in reader.args[1:5]), strict=True)
    if not all(fits) or parts[2] is None or parts[3] is None or any(p is not None and p.steps for p in parts):
        return None
    weight, bias = (None if p is None else p.name for p in parts[:2])
    return Norm(weight, bias, parts[2].name, parts[3].name, reader.args[7])
