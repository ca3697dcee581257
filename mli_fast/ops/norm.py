"""Eval-mode batch norm as scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_batch_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Eval-mode batch norm as x * scale + shift along the channels.

    scale = weight / sqrt(variance + eps), shift = bias - mean * scale; exact to rounding. What folds it into the
    preceding product is that product's epilogue.
    """
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    return scale, shift
