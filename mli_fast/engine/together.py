"""Whether a pass may take several points at once: P points in the first dimension of every value."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from mli_fast.engine.limits import limits
from mli_fast.program import VIEWS, Node, Program

aten = torch.ops.aten

# Operators of one input that are exact, or done element by element in the same way wherever an element lies
_UNARY = frozenset(
    {
        aten.relu.default,
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.neg.default,
        aten.abs.default,
    }
    | {aten.add.Scalar, aten.mul.Scalar, aten.sub.Scalar, aten.div.Scalar}
)
_BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor})
# Operators that treat each image by itself
_IMAGES = frozenset({aten.max_pool2d_with_indices.default, aten.avg_pool2d.default})


def folds(program: Program, is_per_point: Callable[[Node], bool], device: torch.device) -> tuple[bool, int]:
    """Whether passes take several points, and how many at most.

    Only where every operator is known to give the same bits for a point in whatever company, and where one point is
    too little work by itself. It never depends on the points.
    """
    per_point: set[int] = set()
    widest, work, chains = 1, 0, True
    for node in program.nodes:
        if not is_per_point(node):
            continue
        if not _folds(program, node, per_point):
            return False, 1
        per_point |= {n for n in node.outs if n is not None}
        widest = max(widest, 4 * math.prod(program.shape[node.out]))
        if node.product is None or node.product.kind != "linear":
            chains = False
        if node.product is not None:
            work += _work(program, node)
    outputs = [n for n in program.outputs if n in per_point]
    limit = limits(device)
    alone = chains and sum(is_per_point(n) for n in program.nodes) == 1
    if not outputs or not (work <= limit.small_work or alone):
        return False, 1
    return True, max(1, limit.activation_bytes // widest)


def _work(program: Program, node: Node) -> int:
    """Multiply-adds of a product at one point."""
    total = 0
    for product in (*node.product.before, node.product):
        if product.kind == "conv":
            kernel = program.shape[program.record.parameters[product.weight.name]]
            depth = math.prod(kernel[1:])
        else:
            depth = program.shape[product.x.number][-1]
        total += math.prod(product.shape) * depth
    return total


def _folds(program: Program, node: Node, per_point: set[int]) -> bool:
    if node.product is not None:
        residual = node.product.residual
        if node.product.kernel == "torch" or (node.product.kind == "linear" and not node.product.shape):
            return False
        first = node.product.first
        shape = program.shape[first.x.number]
        return (
            (residual is None or residual.number in per_point)
            and bool(shape)
            and node.product.shape[0] == shape[0]
            and all(p.shape[0] == shape[0] for p in node.product.before)
        )
    if (
        not node.stable
        or any(n not in per_point for n in node.inputs)
        or (not node.single and node.func not in _IMAGES)
    ):
        return False
    if not node.inputs or not program.shape[node.inputs[0]]:
        return False
    before, after = program.shape[node.inputs[0]], program.shape[node.out]
    if node.func in _UNARY:
        return len(node.inputs) == 1
    if node.func in _BINARY:
        return len(node.inputs) == 2 and tuple(program.shape[node.inputs[0]]) == tuple(program.shape[node.inputs[1]])
    if node.func in _IMAGES:
        return len(before) == 4
    if node.func in VIEWS:
        return bool(after) and before[0] == after[0]
    if node.func is aten.slice.Tensor:
        return len(node.args) > 1 and node.args[1] > 0
    if node.func is aten.constant_pad_nd.default:
        return len(node.args[1]) <= 2 * (len(before) - 1)
    return False
