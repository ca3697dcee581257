"""The combination of shared products in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.ops import memory
from mli_fast.ops.blend.reference import accumulation_dtype, weighted_sum
from mli_fast.ops.epilogue import Epilogue, apply
from mli_fast.ops.memory import stack


def combine(
    products: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue, channel: int, dtype: torch.dtype
) -> Tensor:
    """See `mli_fast.ops.combine.combine`."""
    wide = accumulation_dtype(dtype, products[0].dtype)
    rows = []
    for p, row in enumerate(coefficients):
        alone = len(products) == 1 and not memory.asynchronous(row) and row.item() == 1.0
        value = products[0] if alone and epilogue else weighted_sum(products, row, wide)
        if products[0].dtype == dtype:  # half precision on a GPU: the epilogue rounds as PyTorch's own layers do
            value = value.to(dtype)
        rows.append(apply(value, epilogue.point(p), channel).to(dtype))
    return stack(rows)
