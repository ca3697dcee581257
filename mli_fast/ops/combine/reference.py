"""The combination of shared products in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.ops.blend.reference import accumulation_dtype, weighted_sum
from mli_fast.ops.epilogue import Epilogue, apply
from mli_fast.ops.points import stack


def combine(
    products: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue, channel: int, dtype: torch.dtype
) -> Tensor:
    """See `mli_fast.ops.combine.combine`."""
    wide = accumulation_dtype(dtype, products[0].dtype)
    rows = [
        apply(weighted_sum(products, row, wide), epilogue.point(p), channel).to(dtype)
        for p, row in enumerate(coefficients.tolist())
    ]
    return stack(rows)
