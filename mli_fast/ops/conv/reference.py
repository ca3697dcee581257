"""The blended convolution in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.backend import weight_channels_last
from mli_fast.ops.blend import blend
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.combine import combine
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.memory import aligned, blended_together, channels_last, stack
from mli_fast.ops.precision import widened

if TYPE_CHECKING:
    from mli_fast.ops.conv import Geometry

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def product(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """conv(x, W) with both rounded to the compute dtype, accumulated in float32 or wider.

    Returned in the dtype it was accumulated in, but for half precisions on a GPU, whose products round to theirs.
    """
    x, weight = widened(x), widened(weight.to(x.dtype))
    if x.ndim == 4:  # the vendor's fast layout
        x, weight = _said_channels_last(x), _said_channels_last(weight)
    x, weight = aligned(x), aligned(weight)
    return channels_last(CONVOLUTIONS[x.ndim - 2](x, weight, None, *geometry))  # the layout that `combine` works on


def _said_channels_last(tensor: Tensor) -> Tensor:
    """[B, C, H, W] with the channels innermost, also by its strides: one channel alone looks like the other layout."""
    _, channels, height, width = tensor.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return channels_last(tensor).as_strided(tensor.shape, strides)


def conv(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """See `mli_fast.ops.conv.conv`."""
    rows = []
    for p, weight in blended(weights, coefficients, x.dtype):
        y = product(x[p], weight, geometry)
        rows.append(combine([y], ONE, epilogue.point(p).stacked(), 1, x.dtype)[0])
    return stack(rows)


def blended(
    weights: Sequence[Tensor],  # R x [N, C / groups, *kernel]
    coefficients: Tensor,  # [P, R]
    dtype: torch.dtype,
    scale: Tensor | None = None,  # [P, N]
) -> Iterator[tuple[int, Tensor]]:
    """Every point's weight, times `scale`; on a GPU a few in one blend, with their channels innermost."""
    on_gpu = weights[0].is_cuda
    together = blended_together(weights[0], dtype)
    anchors = [weight_channels_last(w).movedim(1, -1) for w in weights] if on_gpu else weights
    for start in range(0, len(coefficients), together):
        part = slice(start, start + together)
        values = blend(anchors, coefficients[part], dtype, None if scale is None else scale[part])
        yield from enumerate(values.movedim(-1, 2) if on_gpu else values, start)
