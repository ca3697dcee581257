"""GELU written out by its tanh formula, as GPT-2 has it, as one operator.

Condition: the intermediate values have no other consumer; the constants are those of Hendrycks and Gimpel (2016).
"""

from __future__ import annotations

import math

import torch

from mli_fast.capture.record import Ref
from mli_fast.program import Node, Program
from mli_fast.rewrites.products import Kernels

aten = torch.ops.aten


def rewrite(program: Program, kernels: Kernels) -> None:
    """0.5 x (1 + tanh(c (x + 0.044715 x^3))) becomes gelu(x, approximate="tanh")."""
    for node in program.nodes.copy():
        if node.func is aten.tanh.default and node in program.nodes:
            steps = _steps(program, node)
            if steps is not None:
                *inner, last, x = steps
                for step in inner:
                    program.remove(step, into=last)
                last.func, last.args, last.kwargs = aten.gelu.default, (x,), {"approximate": "tanh"}
                program.changed(last)


def _steps(program: Program, tanh: Node) -> list | None:
    """The inner steps, the last one, and x; None where anything is otherwise."""
    try:
        maker, readers = program.maker, program.readers
        plus_one = readers[tanh.out][0]
        if plus_one.func not in (aten.add.Tensor, aten.add.Scalar):
            return None
        last = readers[plus_one.out][0]
        scaled = maker[tanh.args[0].number]
        total = maker[scaled.args[0].number]
        x, cubic = total.args[0], maker[total.args[1].number]
        power = maker[cubic.args[0].number]
        half = maker[next(a.number for a in last.args[:2] if a.number != plus_one.out)]
    except (KeyError, IndexError, AttributeError, StopIteration):
        return None
    inner = [power, cubic, total, scaled, tanh, plus_one, half]
    forms = (
        power.func is aten.pow.Tensor_Scalar and power.args[1] == 3,
        _times(cubic, 0.044715),
        total.func is aten.add.Tensor and not total.kwargs and total.args[0] == x,
        _times(scaled, math.sqrt(2 / math.pi)),
        not plus_one.kwargs and plus_one.args[1] == 1,
        _times(half, 0.5),
        last.func is aten.mul.Tensor,
        isinstance(x, Ref) and x == power.args[0] == half.args[0],
        all(step.stable and len(readers[step.out]) == 1 and step.out not in program.outputs for step in inner),
    )
    return [*inner, last, x] if all(forms) and last.stable else None


def _times(node: Node, factor: float) -> bool:
    """Whether a node multiplies by this number."""
    given = node.args[1] if len(node.args) > 1 else None
    return (
        node.func in (aten.mul.Tensor, aten.mul.Scalar)
        and isinstance(given, (int, float))
        and abs(given - factor) < 1e-9
    )
