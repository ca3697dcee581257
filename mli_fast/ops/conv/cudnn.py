"""cuDNN's fused convolution: weights blended with the batch norm folded in; bias, residual, ReLU in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mli_fast.ops.conv.reference import blended
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.memory import channels_last, stack

if TYPE_CHECKING:
    from mli_fast.ops.conv import Geometry


def takes(x: Tensor, epilogue: Epilogue) -> bool:
    """Whether cuDNN has this in one call: 2-D, with ReLU at the end."""
    return x.is_cuda and x.ndim == 5 and epilogue.activation == "relu"


def conv(
    x: Tensor,  # [P, B, C, H, W]
    weights: Sequence[Tensor],  # R x [N, C / groups, kh, kw]
    coefficients: Tensor,  # [P, R]
    geometry: Geometry,
    epilogue: Epilogue,
) -> Tensor:  # [P, B, N, OH, OW]
    """relu(conv(x, W(p) * scale) + shift + residual), a call per point, channels innermost."""
    points = blended(weights, coefficients, x.dtype, epilogue.scale)
    return stack([_call(x[p], weight, geometry, epilogue.point(p)) for p, weight in points])


def _call(x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    x, shift = channels_last(x), epilogue.shift
    bias = x.new_zeros(len(weight)) if shift is None else shift.to(x.dtype)
    move = (list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups)
    if epilogue.residual is None:
        return channels_last(torch.cudnn_convolution_relu(x, weight, bias, *move))
    residual = channels_last(epilogue.residual)
    return channels_last(torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *move))
