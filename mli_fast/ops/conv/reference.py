"""The blended convolution in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.blend import blend
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.combine import combine
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.points import aligned, channels_last, stack
from mli_fast.ops.precision import widened

if TYPE_CHECKING:
    from mli_fast.ops.conv import Geometry

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def product(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """conv(x, W) with both rounded to the compute dtype, accumulated and returned in float32 or wider."""
    x, weight = widened(x), widened(weight.to(x.dtype))
    if x.ndim == 4:  # the vendor's fast layout
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    x, weight = aligned(x), aligned(weight)
    return channels_last(CONVOLUTIONS[x.ndim - 2](x, weight, None, *geometry))  # the layout that `combine` works on


def conv(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """See `mli_fast.ops.conv.conv`."""
    rows = []
    for p in range(len(x)):
        y = product(x[p], blend(weights, coefficients[p : p + 1], x.dtype)[0], geometry)
        rows.append(combine([y], ONE, epilogue.point(p).stacked(), 1, x.dtype)[0])
    return stack(rows)
