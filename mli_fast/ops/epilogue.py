"""What follows a product before it is stored: scale, shift, residual, activation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Epilogue(NamedTuple):
    """activation(product * scale + shift + residual), the vectors along the product's channels.

    With P points every tensor has a leading dimension [P, ...]; without, none has.
    """

    scale: Tensor | None = None  # [P, N]
    shift: Tensor | None = None  # [P, N]
    residual: Tensor | None = None  # the product's shape
    activation: str = "none"

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self != Epilogue()

    def stacked(self) -> Epilogue:
        """The epilogue of one point as that of P = 1 points."""
        scale, shift, residual = (None if t is None else t[None] for t in self[:3])
        return Epilogue(scale, shift, residual, self.activation)

    def point(self, p: int) -> Epilogue:
        """The epilogue of point p alone."""
        scale, shift, residual = (None if t is None else t[p] for t in self[:3])
        return Epilogue(scale, shift, residual, self.activation)


def apply(product: Tensor, epilogue: Epilogue, channel: int) -> Tensor:
    """The epilogue of one point in plain PyTorch, on `product` with its channels in dimension `channel`."""
    shape = [1] * product.ndim
    shape[channel] = -1
    scale, shift = (None if v is None else v.to(product.dtype).reshape(shape) for v in epilogue[:2])
    if scale is not None and shift is not None:
        product = torch.addcmul(shift, product, scale)
    elif scale is not None:
        product = product * scale
    elif shift is not None:
        product = product + shift
    if epilogue.residual is not None:
        product = product + epilogue.residual
    return ACTIVATIONS[epilogue.activation](product)
