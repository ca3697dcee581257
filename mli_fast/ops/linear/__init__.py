"""linear: x W(p)^T with W(p) = sum_r c[p, r] W_r, and what follows, at P points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import native_serves, native_takes
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
    """One blended linear layer of a chain, at one point or, with P in front, at P."""

    weights: Sequence[Tensor]  # R x [N, K]
    coefficients: Tensor  # [R] float64
    epilogue: Epilogue


def chains(weights: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether one more layer before these still makes a chain: the blended weights of all have to stay in cache."""
    return sum(w.numel() for w in weights) * dtype.itemsize <= native.CHAIN_WEIGHT_BYTES // 2


def chain_serves(weights: Sequence[Tensor]) -> bool:
    """Whether the compiled chain takes such weights."""
    return all(w.is_contiguous() for w in weights) and native_takes(*weights)


def chain(
    x: Tensor | None,  # [P, *rows, K]
    products: Sequence[Tensor] | None,  # R x [*rows, N] of the first layer
    layers: Sequence[Layer],  # for P points
) -> Tensor:  # [P, *rows, N of the last layer]
    """Linear layers one after the other at P points, from inputs or from the first layer's shared products.

    Bit for bit what `combine` and `linear` give one by one. Needs the compiled kernels.
    """
    parts = [
        native.Blended(
            products if i == 0 and products is not None else layer.weights,
            layer.coefficients.contiguous(),
            _packed(layer.epilogue.scale),
            _packed(layer.epilogue.shift),
            layer.epilogue.activation,
        )
        for i, layer in enumerate(layers)
    ]
    points, width = len(layers[0].coefficients), layers[-1].weights[0].shape[0]
    source: Tensor | native.Blended
    if products is None:
        assert x is not None
        rows = x.shape[1:-1]
        source = x.reshape(points, -1, x.shape[-1]).contiguous()
    else:
        rows = products[0].shape[:-1]
        source = parts.pop(0)._replace(tensors=[t.reshape(-1, t.shape[-1]) for t in products])
    residual = layers[-1].epilogue.residual
    if residual is not None:
        residual = residual.reshape(points, -1, width).contiguous()
    return native.chain(source, parts, residual=residual).view(points, *rows, width)


def chain_at(
    x: Tensor | None,  # [*rows, K]
    products: Sequence[Tensor] | None,  # R x [*rows, N] of the first layer
    layers: Sequence[Layer],
) -> Tensor | None:  # [*rows, N of the last layer]
    """`chain` at one point; may be called under vmap. None where the compiled kernel does not serve."""
    operands = [*(() if x is None else (x,)), *(products or ())]
    for layer in layers:
        operands += [*layer.weights, *(t for t in layer.epilogue[:3] if t is not None)]
    if not all(w.is_contiguous() for layer in layers for w in layer.weights) or not native_serves("chain", *operands):
        return None
    if as_operator():
        assert x is not None
        return _chain_under_vmap(x, layers)
    stacked = [Layer(layer.weights, layer.coefficients[None], layer.epilogue.stacked()) for layer in layers]
    return chain(None if x is None else x[None], products, stacked)[0]


def _chain_under_vmap(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    return chain_op(
        x,
        [w for layer in layers for w in layer.weights],
        [len(layer.weights) for layer in layers],
        [layer.coefficients for layer in layers],
        [layer.epilogue.scale for layer in layers],
        [layer.epilogue.shift for layer in layers],
        layers[-1].epilogue.residual,
        ",".join(layer.epilogue.activation for layer in layers),
    )


def _layers(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    coefficients: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    residual: Tensor | None,
    activations: str,
) -> list[Layer]:
    """The arguments of `chain_op`, with P points in front, as those of `chain`."""
    ends = list(accumulate(counts))
    parts = zip(counts, ends, coefficients, scales, shifts, activations.split(","), strict=True)
    layers = [Layer(weights[end - n : end], c, Epilogue(s, t, None, a)) for n, end, c, s, t, a in parts]
    layers[-1] = layers[-1]._replace(epilogue=layers[-1].epilogue._replace(residual=residual))
    return layers


@torch.library.custom_op("mli_fast::chain", mutates_args=())
def chain_op(
    x: Tensor,
    weights: Sequence[Tensor],  # of all layers, one after the other
    counts: Sequence[int],  # anchors of each layer
    coefficients: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    residual: Tensor | None,
    activations: str,  # separated by commas
) -> Tensor:
    """`chain` at one point as a PyTorch operator; under vmap an unbatched input takes R products."""
    layers = _layers(weights, counts, coefficients, scales, shifts, residual, activations)
    stacked = [Layer(layer.weights, layer.coefficients[None], layer.epilogue.stacked()) for layer in layers]
    return chain(x[None], None, stacked)[0]


@chain_op.register_fake
def _(x, weights, counts, coefficients, scales, shifts, residual, activations):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], weights[-1].shape[0])


@chain_op.register_vmap
def _(info, in_dims, x, weights, counts, coefficients, scales, shifts, residual, activations):  # type: ignore[no-untyped-def]
    size = info.batch_size
    coefficients, scales, shifts = (
        [per_point(t, d, size) for t, d in zip(tensors, dims, strict=True)]
        for tensors, dims in zip((coefficients, scales, shifts), in_dims[3:6], strict=True)
    )
    residual = per_point(residual, in_dims[6], size)
    layers = _layers(weights, counts, coefficients, scales, shifts, residual, activations)
    if in_dims[0] is None:
        return chain(None, products(x, layers[0].weights), layers), 0
    return chain(x.movedim(in_dims[0], 0), None, layers), 0


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
