"""Operators in place where the input has no later consumer.

Condition: the input was made by a node in memory of its own (no view, nothing given from outside), is read here alone,
and the result has its shape and dtype. That maker and reader are computed on the same side, both per point or both
once per batch, is seen when the plan is written: else a point would change what the next one reads.
"""

from __future__ import annotations

from mli_fast.capture.record import Exit, Ref
from mli_fast.program import IN_PLACE, Node, Program
from mli_fast.rewrites.products import Kernels


def rewrite(program: Program, kernels: Kernels) -> None:
    """Mark the operators that may be done in place."""
    for node in program.nodes:
        if node.stable and node.product is None and node.func in IN_PLACE:
            node.over = _free_maker(program, node)


def _free_maker(program: Program, node: Node) -> Node | None:
    """The maker of the first argument where its memory is free for the result."""
    first = node.args[0]
    if not isinstance(first, Ref) or first.number in program.outputs or node.inputs.count(first.number) != 1:
        return None
    maker = program.maker.get(first.number)
    if maker is None or not maker.stable or maker.outs[0] != first.number or not _fresh(maker):
        return None
    if len(program.readers[first.number]) != 1 or tuple(program.shape[node.out]) != tuple(program.shape[first.number]):
        return None
    dtypes = {program.dtype[n] for n in (*node.inputs, node.out)}
    return maker if len(dtypes) <= 1 else None


def _fresh(maker: Node) -> bool:
    """Whether the node's result has memory of its own."""
    if maker.product is not None:
        return True
    return not isinstance(maker.func, Exit) and not any(r.alias_info is not None for r in maker.func._schema.returns)
