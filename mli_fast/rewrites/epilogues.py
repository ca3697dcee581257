"""Views, a residual and an activation into the product before them.

Condition: each value on the way has one reader, and all inputs of the product are assigned once, so that it can stand
where the last of them stood.
"""

from __future__ import annotations

import torch

from mli_fast.capture.record import Ref
from mli_fast.program import VIEWS, Node, Program
from mli_fast.rewrites.batch_norm import take_over
from mli_fast.rewrites.products import Kernels

aten = torch.ops.aten
_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.gelu.default: "gelu",
}


def rewrite(program: Program, kernels: Kernels) -> None:
    """Join what can be joined."""
    for node in program.nodes.copy():
        if node.product is not None and node in program.nodes:
            while _joined(program, node):
                pass


def _joined(program: Program, node: Node) -> bool:
    reader = program.only_reader(node)
    if reader is None:
        return False
    product = node.product
    ends = product.activation != "none"  # nothing but a view may follow
    if reader.func in _ACTIVATIONS and not ends:
        name = _ACTIVATIONS[reader.func]
        product.activation = "gelu_tanh" if reader.kwargs.get("approximate") == "tanh" else name
    elif reader.func in VIEWS and product.kind == "linear" and _keeps_rows(program, reader):
        product.shape = tuple(program.shape[reader.out])
    elif reader.func is aten.add.Tensor and not ends and product.residual is None and not reader.kwargs:
        residual = _residual(program, node, reader)
        if residual is None:
            return False
        product.residual = residual
    else:
        return False
    take_over(program, node, reader)
    return True


def _keeps_rows(program: Program, reader: Node) -> bool:
    before, after = program.shape[reader.args[0].number], program.shape[reader.out]
    return bool(after) and before[-1] == after[-1]


def _residual(program: Program, node: Node, reader: Node) -> Ref | None:
    """The other summand, of the product's shape and dtype."""
    if len(reader.args) != 2 or not all(isinstance(a, Ref) for a in reader.args):
        return None
    other = reader.args[1] if reader.args[0].number == node.out else reader.args[0]
    shapes = {tuple(program.shape[n]) for n in (other.number, reader.out)}
    dtypes = {program.dtype[n] for n in (other.number, node.out, reader.out)}
    if shapes != {tuple(node.product.shape)} or len(dtypes) > 1 or other.number in program.name_of:
        return None
    return other
