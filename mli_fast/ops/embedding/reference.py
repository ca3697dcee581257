"""The blended embedding in plain PyTorch: the contract as code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.blend import blend


def lookup(indices: Tensor, table: Tensor) -> Tensor:
    """The rows of one table."""
    return F.embedding(indices, table)


def embedding(indices: Tensor, tables: list[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """Blend the whole table at each point, then look up."""
    tables_at = blend(tables, coefficients, dtype)
    return torch.stack([lookup(i, t) for i, t in zip(indices, tables_at, strict=True)])
