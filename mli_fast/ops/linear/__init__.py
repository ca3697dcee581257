"""linear: x W(p)^T with W(p) = sum_r c[p, r] W_r, and what follows, at P points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import native, native_chain
from mli_fast.ops.backend import native_serves
from mli_fast.ops.combine import combine
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import reference
from mli_fast.ops.points import as_operator, per_point


def linear(
    x: Tensor,  # [P, *rows, K]
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R] float64
    epilogue: Epilogue,
) -> Tensor:  # [P, *rows, N]
    """activation(x W(p)^T * scale + shift + residual) for an input that differs from point to point.

    Args:
        x: one input per point, in the compute dtype, which is the result's.
        weights: R weights of one shape.
        coefficients: float64 [P, R].
        epilogue: what follows, for P points; its vectors are [P, N].
    """
    if _native(x, weights, *epilogue[:3]):
        residual = (
            None
            if epilogue.residual is None
            else epilogue.residual.reshape(len(x), -1, weights[0].shape[0]).contiguous()
        )
        out = native.linear(
            x.reshape(len(x), -1, x.shape[-1]).contiguous(),
            weights,
            coefficients.contiguous(),
            scale=_packed(epilogue.scale),
            shift=_packed(epilogue.shift),
            residual=residual,
            activation=epilogue.activation,
        )
        return out.view(*x.shape[:-1], out.shape[-1])
    return reference.linear(x, weights, coefficients, epilogue)


def products(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The R products x W_r^T of an input that is the same at every point, for `combine`.

    Args:
        x: [*rows, K].
        weights: R x [N, K].

    Returns:
        R tensors [*rows, N] in the dtype in which they are to be summed. Each is what `linear` computes at a point
        with the one-hot coefficients of its anchor, bit for bit, so an endpoint does not depend on the route.
    """
    if _native(x, weights):
        one = torch.ones(1, 1, dtype=torch.float64)
        rows = x.reshape(1, -1, x.shape[-1]).contiguous()
        return [native.linear(rows, [w], one).view(*x.shape[:-1], w.shape[0]) for w in weights]
    return [reference.product(x, w) for w in weights]


def _packed(vectors: Tensor | None) -> Tensor | None:
    return None if vectors is None else vectors.contiguous()


class Layer(NamedTuple):
    """One blended linear layer of a chain, at one point."""

    weights: Sequence[Tensor]  # R x [N, K]
    coefficients: Tensor  # [R] float64
    epilogue: Epilogue


def chains(layers: Sequence[Layer], dtype: torch.dtype) -> bool:
    """Whether one more layer before these still makes a chain: the blended weights of all have to stay in cache."""
    size = sum(layer.weights[0].numel() for layer in layers) * dtype.itemsize
    return size <= native_chain.CHAIN_WEIGHT_BYTES // 2


def chain_at(
    x: Tensor | None,  # [*rows, K]
    products: Sequence[Tensor] | None,  # R x [*rows, N] of the first layer
    layers: Sequence[Layer],
) -> Tensor | None:  # [*rows, N of the last layer]
    """Linear layers one after the other at one point, from an input or from the first layer's shared products.

    Bit for bit what `combine_at` and `linear_at` give one by one; None where the compiled kernel does not serve.
    """
    operands = [*(() if x is None else (x,)), *(products or ())]
    for layer in layers:
        operands += [*layer.weights, *(t for t in layer.epilogue[:3] if t is not None)]
    if not all(_native(t, [t]) for t in operands):
        return None
    if not native_serves("chain"):
        return None
    parts = [
        native_chain.Blended(
            products if i == 0 and products is not None else layer.weights,
            layer.coefficients[None],
            layer.epilogue.scale,
            layer.epilogue.shift,
            layer.epilogue.activation,
        )
        for i, layer in enumerate(layers)
    ]
    first = products[0] if products is not None else x
    assert first is not None
    residual = layers[-1].epilogue.residual
    width = layers[-1].weights[0].shape[0]
    if products is None:
        source: Tensor | native_chain.Blended = first.reshape(-1, first.shape[-1]).contiguous()
    else:
        source = parts.pop(0)._replace(tensors=[t.reshape(-1, t.shape[-1]) for t in products])
    out = native_chain.chain(
        source, parts, residual=None if residual is None else residual.reshape(-1, width).contiguous()
    )
    return out.view(*first.shape[:-1], width)


def _native(x: Tensor, weights: Sequence[Tensor], *others: Tensor | None) -> bool:
    return all(w.is_contiguous() for w in weights) and native_serves("linear", x, *weights, *others)


def linear_at(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue) -> Tensor:
    """`linear` at one point, coefficients [R]; may be called under vmap and torch.compile."""
    if as_operator():
        return linear_op(x, list(weights), coefficients, *epilogue)
    return linear(x[None], weights, coefficients[None], epilogue.stacked())[0]


@torch.library.custom_op("mli_fast::linear", mutates_args=())
def linear_op(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """`linear` at one point as a PyTorch operator; under vmap an unbatched input takes R products."""
    return linear(x[None], weights, coefficients[None], Epilogue(scale, shift, residual, activation).stacked())[0]


@linear_op.register_fake
def _(x, weights, coefficients, scale, shift, residual, activation):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], weights[0].shape[0])


@linear_op.register_vmap
def _(info, in_dims, x, weights, coefficients, scale, shift, residual, activation):  # type: ignore[no-untyped-def]
    size = info.batch_size
    coefficients, scale, shift, residual = (
        per_point(t, in_dims[i], size)
        for i, t in zip((2, 3, 4, 5), (coefficients, scale, shift, residual), strict=True)
    )
    epilogue = Epilogue(scale, shift, residual, activation)
    if in_dims[0] is None:
        return combine(products(x, weights), coefficients, epilogue, -1, x.dtype), 0
    return linear(x.movedim(in_dims[0], 0), weights, coefficients, epilogue), 0
