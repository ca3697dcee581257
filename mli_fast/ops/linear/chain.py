"""Blended linear layers one after the other, with as little as possible stored between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import current
from mli_fast.ops.combine import combine
from mli_fast.ops.dispatch import choose, shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import linear
from mli_fast.ops.memory import packed, placed


class Layer(NamedTuple):
    """One blended linear layer of a chain, at one point or, with P in front, at P."""

    weights: Sequence[Tensor]  # R x [N, K]
    coefficients: Tensor  # [R] float64
    epilogue: Epilogue

    def stacked(self) -> Layer:
        """The layer at one point as that at P = 1 points."""
        return Layer(self.weights, self.coefficients[None], self.epilogue.stacked())


def chains(weights: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether layers of so many weights may be computed together.

    On the CPU their blended weights have to stay in cache together; on a GPU it costs nothing.
    """
    return device.type == "cuda" or weights * dtype.itemsize <= native.CHAIN_WEIGHT_BYTES // 2


def takes_all_points(weights: Sequence[Tensor]) -> bool:
    """Whether a chain that ends with these weights is best called for many points at once."""
    return weights[0].is_cuda or _in_one_call(weights, weights, noted=False)


def chain(
    x: Tensor | None,  # [P, *rows, K]
    products: Sequence[Tensor] | None,  # R x [*rows, N] of the first layer
    layers: Sequence[Layer],  # for P points
    dtype: torch.dtype,
) -> Tensor:  # [P, *rows, N of the last layer]
    """Linear layers one after the other at P points, from inputs or from the first layer's shared products.

    Bit for bit what `combine` and `linear` give one by one.

    Args:
        x: the input, None where `products` are given.
        products: what `mli_fast.ops.linear.products` gives, None where `x` is given.
        layers: the first one's weights are not used where `products` are given.
        dtype: that of x and of the result.
    """
    weights = [w for layer in layers for w in layer.weights]
    others = [t for layer in layers for t in layer.epilogue[:3]]
    start = [x] if products is None else list(products)
    assert start[0] is not None
    rows = start[0].shape[0 if x is None else 1 : -1].numel()
    if _as_alone(layers, rows) and _in_one_call([*start, *weights, *others], weights):
        return _native(x, products, layers)
    rest = list(layers)
    if products is not None:
        first = rest.pop(0)
        x = _of_products(products, first, rest[0], dtype) if rest else None
        if x is None:
            x = combine(products, first.coefficients, first.epilogue, -1, dtype)
        else:
            rest.pop(0)
    assert x is not None
    for layer in rest:
        x = linear(x, layer.weights, layer.coefficients, layer.epilogue)
    return x


def _as_alone(layers: Sequence[Layer], rows: int) -> bool:
    """Whether each layer by itself would take the compiled kernel: the chain's values are that one's, bit for bit."""
    shapes = [layer.weights[0] for layer in layers]
    classes = [shape_class("linear", rows, *w.shape) for w in shapes]
    return all(choose("linear", (w,), cls, noted=False) == "native" for w, cls in zip(shapes, classes, strict=True))


def _in_one_call(operands: Sequence[Tensor | None], weights: Sequence[Tensor], noted: bool = True) -> bool:
    """Whether the compiled chain takes such a call."""
    if weights[0].is_cuda:
        return False
    return choose("chain", operands, fits=lambda _: all(w.is_contiguous() for w in weights), noted=noted) == "native"


def _native(x: Tensor | None, products: Sequence[Tensor] | None, layers: Sequence[Layer]) -> Tensor:
    parts = [
        native.Blended(
            products if i == 0 and products is not None else layer.weights,
            layer.coefficients.contiguous(),
            packed(layer.epilogue.scale),
            packed(layer.epilogue.shift),
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


def _of_products(products: Sequence[Tensor], first: Layer, second: Layer, dtype: torch.dtype) -> Tensor | None:
    """The second layer straight from the first one's shared products; None where no kernel does that."""
    columns, depth = second.weights[0].shape
    rows = products[0].shape[:-1]

    def fits(_: str) -> bool:
        return first.epilogue.residual is None and all(t.is_contiguous() for t in (*products, *second.weights))

    # the dtype that decides is the one products are taken in, not the one they are summed in
    probe = products[0].new_empty(0, dtype=dtype)
    operands = (probe, *products, *first.epilogue[:2], *second.weights, *second.epilogue[:3])
    cls = shape_class("linear_of_products", rows.numel(), columns, depth)
    if choose("linear_of_products", operands, cls, fits) != "triton":
        return None
    from mli_fast.ops.linear import triton

    device, residual = products[0].device, second.epilogue.residual
    points = len(first.coefficients)
    out = triton.linear_of_products(
        [t.reshape(-1, depth) for t in products],
        placed(first.coefficients, device),
        packed(first.epilogue.scale),
        packed(first.epilogue.shift),
        first.epilogue.activation,
        second.weights,
        placed(second.coefficients, device),
        scale=packed(second.epilogue.scale),
        shift=packed(second.epilogue.shift),
        residual=None if residual is None else residual.reshape(points, -1, columns).contiguous(),
        activation=second.epilogue.activation,
        tf32=current().tf32,
        dtype=dtype,
    )
    return out.view(points, *rows, columns)
