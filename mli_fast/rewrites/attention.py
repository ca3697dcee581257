"""PyTorch's fused attention and encoder layers as the products, norms and sums that they are.

Condition: self-attention over a padded batch without a mask, whose weights are not asked for.
"""

from __future__ import annotations

from typing import Any

import torch

from mli_fast.capture.record import Ref
from mli_fast.program import Node, Program
from mli_fast.rewrites.products import Kernels

aten = torch.ops.aten


def rewrite(program: Program, kernels: Kernels) -> None:
    """Write out what can be."""
    for node in program.nodes.copy():
        if not node.stable:
            continue
        if node.func is aten._transformer_encoder_layer_fwd.default:
            _encoder_layer(program, node)
        elif node.func is aten._native_multi_head_attention.default:
            _attention(program, node)
    program.index()


class _Steps:
    """Nodes that take the place of one."""

    def __init__(self, program: Program, node: Node) -> None:
        self._program, self._node = program, node
        self._nodes: list[Node] = []

    def new(self, func: Any, args: tuple[Any, ...], *shapes: tuple[int, ...]) -> list[Ref]:
        """The results of a step, of these shapes."""
        outs: list[int | None] = []
        for shape in shapes:
            outs.append(len(self._program.shape))
            self._program.shape[outs[-1]] = shape  # type: ignore[index]
            self._program.dtype[outs[-1]] = self._program.dtype[self._node.out]  # type: ignore[index]
        self._nodes.append(Node(func, args, {}, outs, len(shapes) == 1, list(self._node.ops), stable=True))
        return [Ref(n) for n in outs]  # type: ignore[arg-type]

    def linear(self, x: Ref, weight: Ref, bias: Ref) -> Ref:
        """x W^T + b of x [B, T, K]."""
        *rows, k = self._program.shape[x.number]
        m, n = rows[0] * rows[1], self._program.shape[weight.number][0]
        (flat,) = self.new(aten.view.default, (x, [m, k]), (m, k))
        (turned,) = self.new(aten.t.default, (weight,), (k, n))
        (out,) = self.new(aten.addmm.default, (bias, flat, turned), (m, n))
        return self.new(aten.view.default, (out, [*rows, n]), (*rows, n))[0]

    def norm(self, x: Ref, weight: Ref, bias: Ref, eps: float) -> Ref:
        """Layer norm of x [B, T, D]."""
        shape = self._program.shape[x.number]
        one = (*shape[:-1], 1)
        return self.new(aten.native_layer_norm.default, (x, [shape[-1]], weight, bias, eps), shape, one, one)[0]

    def plus(self, a: Ref, b: Ref) -> Ref:
        """a + b."""
        return self.new(aten.add.Tensor, (a, b), self._program.shape[a.number])[0]

    def attention(self, x: Ref, heads: int, qkv: tuple[Ref, Ref], out: tuple[Ref, Ref]) -> Ref:
        """Self-attention of x [B, T, D]."""
        b, t, d = self._program.shape[x.number]
        apart, together = (b, t, heads, d // heads), (b, heads, t, d // heads)
        parts = self.new(aten.split.Tensor, (self.linear(x, *qkv), d, -1), *[(b, t, d)] * 3)
        turned = []
        for part in parts:
            (viewed,) = self.new(aten.view.default, (part, list(apart)), apart)
            turned += self.new(aten.transpose.int, (viewed, 1, 2), together)
        (mixed,) = self.new(aten.scaled_dot_product_attention.default, tuple(turned), together)
        (back,) = self.new(aten.transpose.int, (mixed, 1, 2), apart)
        (joined,) = self.new(aten.reshape.default, (back, [b, t, d]), (b, t, d))
        return self.linear(joined, *out)

    def replace(self, result: Ref) -> None:
        """Put the nodes where the one was; the last gives its result."""
        node, program = self._node, self._program
        last = self._nodes[-1]
        last.outs[last.outs.index(result.number)] = node.outs[0]
        for i, step in enumerate(self._nodes):
            step.position = node.position + (i + 1) / (len(self._nodes) + 1) - 1
        at = program.nodes.index(node)
        program.nodes[at : at + 1] = self._nodes


def _serves(program: Program, x: Any, mask: Any) -> bool:
    if mask is not None or not isinstance(x, Ref):
        return False
    shape = program.shape[x.number]
    return len(shape) == 3 and 0 not in shape


def _encoder_layer(program: Program, node: Node) -> None:
    args = [*node.args, None, None]
    x, heads, use_gelu, norm_first, eps = args[0], args[2], args[7], args[8], args[9]
    if not _serves(program, x, args[18]) or node.kwargs:
        return
    qkv, out, hidden, last = tuple(args[3:5]), tuple(args[5:7]), args[14:16], args[16:18]
    steps = _Steps(program, node)

    def feed_forward(x: Ref) -> Ref:
        inner = steps.linear(x, *hidden)
        activation = aten.gelu.default if use_gelu else aten.relu.default
        (inner,) = steps.new(activation, (inner,), program.shape[inner.number])
        return steps.linear(inner, *last)

    if norm_first:
        x = steps.plus(steps.attention(steps.norm(x, args[10], args[11], eps), heads, qkv, out), x)
        result = steps.plus(feed_forward(steps.norm(x, args[12], args[13], eps)), x)
    else:
        x = steps.norm(steps.plus(steps.attention(x, heads, qkv, out), x), args[10], args[11], eps)
        result = steps.norm(steps.plus(feed_forward(x), x), args[12], args[13], eps)
    steps.replace(result)


def _attention(program: Program, node: Node) -> None:
    q, k, v, _, heads, *weights = node.args[:9]
    need_weights = node.args[10] if len(node.args) > 10 else True
    mask = node.args[9] if len(node.args) > 9 else None
    if not (q == k == v) or need_weights or node.kwargs or not _serves(program, q, mask):
        return
    if any(n is not None and (program.readers[n] or n in program.outputs) for n in node.outs[1:]):
        return
    steps = _Steps(program, node)
    steps.replace(steps.attention(q, heads, tuple(weights[:2]), tuple(weights[2:])))
