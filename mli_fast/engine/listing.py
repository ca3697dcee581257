"""A plan in words: what is shared, what is a product with blended weights and by which kernel, what PyTorch does."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mli_fast.capture.record import Exit, Ref
from mli_fast.engine.plan import Plan
from mli_fast.program import VIEWS, Node, Program
from mli_fast.rewrites.parts import part
from mli_fast.rewrites.products import Product

aten = torch.ops.aten
_PRODUCTS = frozenset(
    {aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}
    | {aten.mv.default, aten.addmv.default, aten.native_batch_norm.default}
)
_QUIET = VIEWS | {aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.detach.default}


def listing(plan: Plan) -> Iterator[str]:
    """The lines of a plan's description."""
    program = plan.program
    shared = [n for n in program.nodes if id(n) not in plan.per_point]
    own = [n for n in program.nodes if id(n) in plan.per_point]
    recorded = len(program.record.ops)
    yield f"{recorded} operators were recorded; {len(shared)} steps once a batch, {len(own)} at each point"
    if not program.rewritten:
        reason = "numbers that leave PyTorch depend on the parameters" if program.exact else "no rewrites"
        yield f"replayed as recorded, bit for bit plain PyTorch: {reason}"
    yield f"points per pass: {'up to ' + str(plan.most) if plan.together else 1}"
    yield "once a batch:"
    yield from (f"  {line}" for node in shared if (line := _said(program, node, plan, at_points=False)))
    yield "at each point:"
    yield from (f"  {line}" for node in own if (line := _said(program, node, plan, at_points=True)))


def _said(program: Program, node: Node, plan: Plan, at_points: bool) -> str | None:
    if node.product is not None:
        layers = [*node.product.before, node.product]
        shared_input = at_points and plan.shares_input(node.product)
        return ", then ".join(_product(p, at_points, shared_input and p is layers[0]) for p in layers)
    if isinstance(node.func, Exit):
        return f"compare {node.func.kind} {node.func.answer!r}, which leaves PyTorch"
    if node.func in _QUIET:
        return None
    name = node.func._schema.name.removeprefix("aten::")
    shapes = ", ".join(_shape(program.shape[n]) for n in node.outs if n is not None)
    parameters = [program.name_of[n] for n in node.inputs if n in program.name_of]
    of = f" of {', '.join(parameters)}" if parameters else ""
    where = " in place" if node.over is not None else ""
    return f"{name}{of} {shapes}{where}: PyTorch{_why(program, node)}"


def _product(product: Product, at_points: bool, shared_input: bool) -> str:
    extras = [f"bias {product.bias}"] if product.bias else []
    extras += ["batch norm"] if product.norm is not None else []
    extras += ["residual"] if product.residual is not None else []
    extras += [product.activation] if product.activation != "none" else []
    if product.kernel == "torch":
        kernel = "PyTorch, on the blended weight"
    elif shared_input:
        name = "PyTorch" if product.kernel == "combined" else product.kernel
        kernel = f"{name}, combined from the anchors' products of the shared input"
    else:
        kernel = f"{product.kernel}, blended within the product" if at_points else product.kernel
    return f"{product.kind} by {product.weight} {_shape(product.shape)}{''.join(' + ' + e for e in extras)}: {kernel}"


def _why(program: Program, node: Node) -> str:
    """Why a product is left to PyTorch."""
    if node.func not in _PRODUCTS or not program.rewritten:
        return ""
    if not node.stable:
        return " (its memory is written to elsewhere)"
    if node.func is aten.native_batch_norm.default:
        return " (no convolution of which it is the only reader comes before it)"
    factors = [a.number for a in node.args[:3] if isinstance(a, Ref)]
    if not any(len(program.shape[n]) > 1 and part(program, Ref(n)) is not None for n in factors):
        return " (no factor is a parameter or a part of one)"
    if program.layout_seen and node.func is aten.convolution.default:
        return " (the model reads strides)"
    return " (no kernel was measured to win on it)"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
