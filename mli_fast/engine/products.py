"""The calls that compute a program's products at given points, with their weights, scales and shifts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mli_fast.engine import calls
from mli_fast.engine.network import Network
from mli_fast.engine.points import ONE, Points
from mli_fast.ops import conv as conv_ops
from mli_fast.ops import linear as linear_ops
from mli_fast.ops.norm import fold_batch_norm
from mli_fast.program import Program
from mli_fast.rewrites.parts import Part
from mli_fast.rewrites.products import Norm, Product

TABLE_BYTES = 2**26  # of the tabulated vectors of a block of points


class Tables:
    """Scales and shifts of all points, computed for a block of points at a time."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self._makers: list[tuple[Norm | None, Part | None]] = []  # a batch norm, a bias
        self._at: dict[Any, tuple[int | None, int | None]] = {}
        self._count = self._first = self._last = 0
        self._rows: list[Tensor] = []

    def tails(self, product: Product) -> tuple[int | None, int | None]:
        """The numbers of the tables of a product's scale and shift."""
        key = product.norm, product.bias
        if key == (None, None):
            return None, None
        if key not in self._at:
            self._makers.append(key)
            self._last = 0
            scale = None if product.norm is None else self._count
            self._count += 1 if product.norm is None else 2
            self._at[key] = scale, self._count - 1
        return self._at[key]

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """The tables' rows of points start..stop-1, [points, N] each."""
        if not (self._first <= start and stop <= self._last):
            names = dict.fromkeys(name for maker in self._makers for name in _names(*maker))
            width = sum(self._points.bytes_of(name) for name in names)
            size = max(stop - start, min(self._points.count, TABLE_BYTES // max(width, 1)))
            self._first, self._last = start, min(start + size, self._points.count)
            vectors = self._points.vectors(names, self._first, self._last)
            self._rows = [t.contiguous() for norm, bias in self._makers for t in _tail(norm, bias, vectors)]
        return [t[start - self._first : stop - self._first] for t in self._rows]


def _names(norm: Norm | None, bias: Part | None) -> Iterator[str]:
    """The parameters of a batch norm and a bias."""
    every = (norm.mean, norm.variance, norm.weight, norm.bias) if norm is not None else ()
    yield from (name for name in every if name is not None)
    if bias is not None:
        yield bias.name


def _tail(norm: Norm | None, bias: Part | None, vectors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The shift, or the scale and the shift, at all points."""
    added = None if bias is None else vectors[bias.name]
    if bias is not None and bias.steps:
        added = torch.stack([bias.of(value) for value in vectors[bias.name]])
    if norm is None:
        assert added is not None
        return (added,)
    weight, shift = (None if n is None else vectors[n] for n in (norm.weight, norm.bias))
    mean = vectors[norm.mean] if added is None else vectors[norm.mean] - added
    return fold_batch_norm(mean, vectors[norm.variance], weight, shift, norm.eps)


class Products:
    """Makes calls.

    Args:
        program: whose products they are.
        points: the points.
        network: where they are computed; PyTorch's own convolutions read its memory.
    """

    def __init__(self, program: Program, points: Points, network: Network) -> None:
        self._program, self._points, self._network = program, points, network
        self.tables = Tables(points)
        self._on_cpu = network.device.type == "cpu"

    def anchors(self, product: Product) -> list[Tensor]:
        """A weight's anchors as its kernel wants them."""
        anchors = self._points.anchors[product.weight.name]
        if product.kind == "linear":
            return [self._laid_out(a, product.weight.steps, product.weight.of) for a in anchors]
        if not self._compiled(product):
            return list(anchors)
        return [self._laid_out(a, "channels last", lambda a: a.movedim(1, -1)) for a in anchors]

    def _laid_out(self, anchor: Tensor, layout: Hashable, view: Callable[[Tensor], Tensor]) -> Tensor:
        """A view of an anchor as kernels want it, copied at most once however many paths it lies on."""
        known, key = self._network.layouts, (id(anchor), layout)
        if key not in known:
            known[key] = anchor, view(anchor).contiguous()
        return known[key][1]

    def _compiled(self, product: Product) -> bool:
        return self._on_cpu and product.kernel == "native"

    def call(self, product: Product, of_products: bool) -> calls.Call:
        """The call of a product.

        Args:
            product: one of the program's.
            of_products: whether it gets the products of a shared input instead of an input.
        """
        if product.kernel == calls.TORCH:
            return calls.TorchConv(product)
        if product.before:
            anchors = [self.anchors(p) for p in (*product.before, product)]
            if self._compiled(product):
                return calls.NativeChain(product, anchors, of_products)
            return calls.DispatchedChain(product, anchors, of_products, self._points.dtype_of(product.weight.name))
        if of_products:
            if self._compiled(product) or product.kernel == calls.COMBINED:
                return calls.NativeCombine(product, product.shape[1 if product.kind == "conv" else -1])
            return calls.DispatchedCombine(product, self._points.dtype_of(product.weight.name))
        return self._one(product, self.anchors(product))

    def _one(self, product: Product, anchors: Sequence[Tensor]) -> calls.Call:
        if product.kind == "linear":
            return (calls.NativeLinear if self._compiled(product) else calls.DispatchedLinear)(product, anchors)
        if self._compiled(product):
            return calls.NativeConv(product, anchors, tuple(self._program.shape[product.x.number]))
        return calls.DispatchedConv(product, anchors)

    def of_shared(self, product: Product) -> Callable[[Tensor], list[Tensor]]:
        """What makes the R products of a shared input: each what the call gives at a point that is its anchor alone."""
        anchors = self.anchors(product)
        move = product.move
        if product.kernel == calls.COMBINED:
            return calls.TorchProducts(product, anchors)
        if not self._compiled(product):
            if move is None:
                return lambda x: linear_ops.products(x, anchors)
            return lambda x: conv_ops.products(x, anchors, move)
        bare = dataclasses.replace(product, residual=None, activation="none", before=[])
        each = [self._one(bare, [a]) for a in anchors]

        def products(x: Tensor) -> list[Tensor]:
            found = [call(x, None, 1, ONE, None, None) for call in each]
            return [
                (f if move is None else f.movedim(1, -1)).reshape(-1, f.shape[-1 if move is None else 1]) for f in found
            ]

        return products

    def alone(self, product: Product) -> Callable[[Tensor, Tensor | None], Tensor]:
        """A product all of whose parameters are the same at all points, (x, residual) -> result."""
        combined = product.kernel == calls.COMBINED
        call, products = self.call(product, of_products=combined), self.of_shared(product) if combined else None
        layers = [*product.before, product]

        def compute(x: Tensor, residual: Tensor | None) -> Tensor:
            rows = self.tables.rows(0, 1)
            tails = [[None if at is None else rows[at] for at in self.tables.tails(p)] for p in layers]
            if product.kernel == calls.TORCH:
                memory, (scale, shift) = self._network.memory[product.weight.name], tails[0]
                return call(x, residual, 1, memory if scale is None else scaled(memory, scale), None, shift)
            if product.before:
                scales, shifts = zip(*tails, strict=True)
                return call(x, residual, 1, [ONE] * len(layers), scales, shifts)  # type: ignore[arg-type]
            x = x if products is None else products(x)  # type: ignore[assignment]
            return call(x, residual, 1, self._points.coefficients(product.weight.name)[:1], *tails[0])

        for p in layers:
            self.tables.tails(p)
        return compute


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """A convolution's weight times a row of scales [1, N]."""
    return weight * scale.view(-1, *[1] * (weight.ndim - 1))
