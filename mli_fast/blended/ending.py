"""The last product of a network, left to the loss, which need not store its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mli_fast.blended.products import LinearProduct
from mli_fast.blended.tensors import Pending, resolved
from mli_fast.ops.cross_entropy import fuses


@dataclass(frozen=True)
class LastProduct:
    """x W^T + shift, not computed; at one point or, with A in front of all but the weights, at A."""

    x: Tensor  # [*rows, K]
    coefficients: Tensor  # [R]
    shift: Tensor | None  # [V]
    weights: Sequence[Tensor]  # R x [V, K]

    def of_points(self) -> LastProduct:
        """That of one point as that of A = 1 points."""
        shift = None if self.shift is None else self.shift[None]
        return replace(self, x=self.x[None], coefficients=self.coefficients[None], shift=shift)

    def point(self) -> Tensor:
        """What the logits of one of A points look like: their shape and dtype, no values."""
        return torch.empty(*self.x.shape[1:-1], self.weights[0].shape[0], dtype=self.x.dtype, device="meta")


def last_product(outputs: Any) -> LastProduct | None:
    """The outputs of one point as a product left to the loss; None where they are anything else."""
    if not isinstance(outputs, Pending) or outputs.value is not None or type(outputs.product) is not LinearProduct:
        return None
    following, weight = outputs.following, outputs.product.weight
    if following.norm is not None or following.residual is not None or following.activation != "none":
        return None
    if not fuses(outputs.product.x, weight.anchors):
        return None
    return LastProduct(resolved(outputs.product.x), weight.coefficients, resolved(following.bias), weight.anchors)
