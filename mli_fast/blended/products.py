"""The products a blended parameter takes part in, described before they are computed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mli_fast.blended.memo import current
from mli_fast.blended.tensors import BlendedTensor, Pending, Shared, resolved
from mli_fast.ops import conv, embedding, linear
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.combine import combine_at
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear.chain import Layer, chain_at, chains, takes_all_points

ONE_OWNER = 2  # what sys.getrefcount says of an attribute that nobody else holds: the attribute, and the call itself


@dataclass(frozen=True, eq=False)
class Product:
    """One product: an input x and, but for `Affine`, a blended weight."""

    x: Tensor  # plain, or Shared where it is the same at every point

    @property
    def dtype(self) -> torch.dtype:
        """The result's dtype."""
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        """The result's device."""
        return self.x.device

    @property
    def constant(self) -> bool:
        """Whether all of it but x is the same at every point."""
        return True

    def key(self) -> tuple[Any, ...]:
        """What tells it from other products of the same x."""
        raise TypeError(f"{type(self).__name__} is not a product")

    def _products(self, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor] | None:
        """The R products of an input that is shared, made once per batch; None for any other input."""
        memo = current()
        if memo is None or not isinstance(self.x, Shared) or self.x.entry is None:
            return None
        entry = self.x.entry
        return memo.products((id(entry), self.key()), lambda: compute(entry.value()))

    def _shared(
        self, weight: BlendedTensor, compute: Callable[[Tensor], list[Tensor]], epilogue: Epilogue, channel: int
    ) -> Tensor | None:
        """The shared-input route: R products per batch, combined at each point; None where x is not shared."""
        terms = self._products(compute)
        return None if terms is None else combine_at(terms, weight.coefficients, epilogue, channel, self.dtype)

    def _value(self) -> Tensor:
        return self.x.resolve() if isinstance(self.x, Shared) else self.x


@dataclass(frozen=True, eq=False)
class LinearProduct(Product):
    """x W^T; x may be pending itself, then the layers are computed together."""

    weight: BlendedTensor  # [N, K]

    @property
    def shape(self) -> tuple[int, ...]:
        """[*rows, N]."""
        return (*self.x.shape[:-1], self.weight.shape[0])

    @property
    def constant(self) -> bool:
        return self.weight.constant

    def key(self) -> tuple[Any, ...]:
        return ("linear", *map(id, self.weight.anchors))

    def compute(self, epilogue: Epilogue) -> Tensor:
        """The value with what follows, of this layer and of those before it that nobody else looks at."""
        before = self.before()
        first: LinearProduct = before[0].product if before else self
        layers = [Layer(p.product.weight.anchors, p.product.weight.coefficients, p.checked_epilogue()) for p in before]
        layers.append(Layer(self.weight.anchors, self.weight.coefficients, epilogue))
        products = first.shared_products()
        source = resolved(first.x) if products is None else None
        if len(layers) > 1:
            return chain_at(source, products, layers, self.dtype)
        if products is not None:
            return combine_at(products, self.weight.coefficients, epilogue, -1, self.dtype)
        assert source is not None
        return linear.linear_at(source, self.weight.anchors, self.weight.coefficients, epilogue)

    def before(self) -> list[Pending]:
        """The layers that are computed together with this one, from the first on."""
        found: list[Pending] = []
        product: LinearProduct = self
        weights: list[Tensor] = []
        while isinstance(product.x, Pending):
            weights.append(product.weight.anchors[0])
            taken = product.x.value is not None or sys.getrefcount(product.x) > ONE_OWNER
            if taken or not chains(weights, product.x.dtype):
                break
            found.insert(0, product.x)
            product = product.x.product
        return found

    def shared_products(self) -> list[Tensor] | None:
        """The R products of a shared input, made once per batch; None for any other input."""
        weights = self.weight.anchors
        return self._products(lambda x: linear.products(x, weights))


@dataclass(frozen=True, eq=False)
class ConvProduct(Product):
    """conv(x, W)."""

    weight: BlendedTensor  # [N, C / groups, *kernel]
    geometry: conv.Geometry

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, N, *spatial]."""
        return self.geometry.output_shape(self.x.shape, self.weight.shape)

    @property
    def constant(self) -> bool:
        return self.weight.constant

    def key(self) -> tuple[Any, ...]:
        return ("conv", self.geometry, *map(id, self.weight.anchors))

    def compute(self, epilogue: Epilogue) -> Tensor:
        """The value with what follows."""
        weights, g = self.weight.anchors, self.geometry
        value = self._shared(self.weight, lambda x: conv.products(x, weights, g), epilogue, 1)
        return conv.conv_at(self._value(), weights, self.weight.coefficients, g, epilogue) if value is None else value


@dataclass(frozen=True, eq=False)
class EmbeddingProduct(Product):
    """Rows of a blended table; x holds the indices."""

    weight: BlendedTensor  # [V, D]

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[*shape, D]."""
        return (*self.x.shape, self.weight.shape[1])

    @property
    def constant(self) -> bool:
        return self.weight.constant

    def key(self) -> tuple[Any, ...]:
        return ("embedding", *map(id, self.weight.anchors))

    def compute(self, epilogue: Epilogue) -> Tensor:
        """The value with what follows."""
        tables = self.weight.anchors
        value = self._shared(self.weight, lambda x: embedding.products(x, tables), epilogue, -1)
        if value is not None:
            return value
        terms = embedding.products(self._value(), tables)
        return combine_at(terms, self.weight.coefficients, epilogue, -1, self.dtype)


@dataclass(frozen=True, eq=False)
class Affine(Product):
    """x itself: a batch norm with no product before it to be folded into."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of x."""
        return tuple(self.x.shape)

    def key(self) -> tuple[Any, ...]:
        return ("affine",)

    def compute(self, epilogue: Epilogue) -> Tensor:
        """The value with what follows."""
        return combine_at([self._value()], ONE[0], epilogue, 1, self.dtype)


def layers_together(x: Tensor) -> int:
    """How many linear layers one call of the chain kernel takes from the batch to `x`; 0 if there is more to do."""
    if not isinstance(x, Pending) or x.value is not None or not isinstance(x.product, LinearProduct):
        return 0
    before = x.product.before()
    if not before or not isinstance(before[0].product.x, Shared) or not takes_all_points(x.product.weight.anchors):
        return 0
    return len(before) + 1
