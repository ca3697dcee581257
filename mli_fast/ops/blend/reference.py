"""The blend in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.ops import memory

ONE = torch.ones(1, 1, dtype=torch.float64, device="cpu")  # the coefficients [P, R] of one point with one anchor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any operand is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def weighted_sum(terms: Sequence[Tensor], weights: Tensor, dtype: torch.dtype) -> Tensor:
    """sum_r weights[r] * terms[r] in `dtype`; what a term of weight exactly 0 holds does not matter.

    Args:
        terms: R tensors of one shape.
        weights: float64 [R]; on the CPU, where they are read, or on the terms' device, where they are not.
        dtype: the dtype of the sum.
    """
    if memory.asynchronous(weights):
        return _weighted_sum_unseen(terms, weights.to(dtype), dtype)
    total: Tensor | None = None
    for term, weight in zip(terms, weights.tolist(), strict=True):
        if weight == 0.0:
            continue
        term = term.to(dtype)
        total = term * weight if total is None else torch.add(total, term, alpha=weight)
    return torch.zeros_like(terms[0], dtype=dtype) if total is None else total


def _weighted_sum_unseen(terms: Sequence[Tensor], weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The same without reading the weights, which would synchronise."""
    nothing = torch.zeros((), dtype=dtype, device=terms[0].device)
    total = torch.where(weights[0] == 0, nothing, terms[0].to(dtype) * weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = torch.where(weight == 0, total, torch.addcmul(total, term.to(dtype), weight))
    return total


def blend(anchors: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """See `mli_fast.ops.blend.blend`."""
    wide = accumulation_dtype(dtype, anchors[0].dtype)
    rows = [weighted_sum(anchors, row, wide) for row in coefficients]
    if scale is not None:
        along = (-1, *[1] * (anchors[0].ndim - 1))
        rows = [row * factor.to(wide).view(along) for row, factor in zip(rows, scale, strict=True)]
    rows = [row.to(dtype) for row in rows]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)
