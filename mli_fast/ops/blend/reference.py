"""The blend in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ONE = torch.ones(1, 1, dtype=torch.float64)  # the coefficients [P, R] of one point with one anchor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any operand is float64, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def weighted_sum(terms: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """sum_r weights[r] * terms[r] in `dtype`; terms of weight exactly 0 are never touched."""
    total: Tensor | None = None
    for term, weight in zip(terms, weights, strict=True):
        if weight == 0.0:
            continue
        term = term.to(dtype)
        if total is None:
            total = term * weight
        else:
            total = torch.add(total, term, alpha=weight)
    return torch.zeros_like(terms[0], dtype=dtype) if total is None else total


def blend(anchors: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """See `mli_fast.ops.blend.blend`."""
    wide = accumulation_dtype(dtype, anchors[0].dtype)
    rows = [weighted_sum(anchors, row, wide).to(dtype) for row in coefficients.tolist()]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)
