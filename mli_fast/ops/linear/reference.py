"""The blended linear layer in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.blend import blend
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.combine import combine
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.memory import aligned, blended_together
from mli_fast.ops.precision import widened


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T with both rounded to the compute dtype, accumulated in float32 or wider.

    Returned in the dtype it was accumulated in, but for half precisions on a GPU, whose products round to theirs.
    """
    return F.linear(aligned(widened(x)), aligned(widened(weight.to(x.dtype))))


def linear(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue) -> Tensor:
    """See `mli_fast.ops.linear.linear`."""
    together, rows = blended_together(weights[0], x.dtype), []
    for start in range(0, len(x), together):
        for p, weight in enumerate(blended(weights, coefficients[start : start + together], x.dtype), start):
            y = product(x[p], weight)
            rows.append(combine([y], ONE, epilogue.point(p).stacked(), -1, x.dtype))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def blended(weights: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [P, N, K] at P points; transposed ones are blended as they lie in memory."""
    if weights[0].is_contiguous():
        return blend(weights, coefficients, dtype)
    return blend([w.t() for w in weights], coefficients, dtype).mT
