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
from mli_fast.ops.points import aligned
from mli_fast.ops.precision import widened


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T with both rounded to the compute dtype, accumulated and returned in float32 or wider."""
    return F.linear(aligned(widened(x)), aligned(widened(weight.to(x.dtype))))


def linear(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue) -> Tensor:
    """See `mli_fast.ops.linear.linear`."""
    rows = [
        combine(
            [product(x[p], blend(weights, coefficients[p : p + 1], x.dtype)[0])],
            ONE,
            epilogue.point(p).stacked(),
            -1,
            x.dtype,
        )
        for p in range(len(x))
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
