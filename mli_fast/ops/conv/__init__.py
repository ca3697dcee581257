"""conv: 1-D, 2-D and 3-D convolution with W(p) = sum_r c[p, r] W_r, and an epilogue, at P points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import current, weight_channels_last
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.conv import cudnn, reference
from mli_fast.ops.dispatch import choose, shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.memory import channels_last, packed, placed, stack

PRODUCTS_OF_A_TILE: dict[tuple[int, ...], int] = {(1, 1): 16, (2, 2): 25}  # by stride; direct, they are 36
TRANSFORM = 3  # what transforming a number of the input or output costs, in multiplications
WEIGHTS_TRANSFORM = 3000  # what transforming a weight costs, likewise; both measured


class Geometry(NamedTuple):
    """How a kernel moves over its input; one number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_shape(self, x: torch.Size, weight: torch.Size) -> tuple[int, ...]:
        """The shape [B, N, *spatial] of the convolution of x [B, C, *spatial] with weight [N, C / groups, *kernel]."""
        spatial = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x[2:], weight[2:], self.stride, self.padding, self.dilation, strict=True)
        )
        return (x[0], weight[0], *spatial)


def conv(
    x: Tensor,  # [P, B, C, *spatial]
    weights: Sequence[Tensor],  # R x [N, C / groups, *kernel]
    coefficients: Tensor,  # [P, R] float64
    geometry: Geometry,
    epilogue: Epilogue,
) -> Tensor:  # [P, B, N, *spatial]
    """activation(conv(x, W(p)) * scale + shift + residual) for an input that differs from point to point.

    Args:
        x: one input per point, in the compute dtype, which is the result's.
        weights: R kernels of one shape.
        coefficients: float64 [P, R].
        geometry: stride, padding, dilation, groups.
        epilogue: bias, residual and activation, for P points; its vectors are [P, N].
    """
    out = _by_kernel(x, weights, coefficients, geometry, epilogue, None)
    return reference.conv(x, weights, coefficients, geometry, epilogue) if out is None else out


def products(x: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> list[Tensor]:
    """The R convolutions of an input [B, C, *spatial] that is the same at every point, for `combine`.

    Each is what `conv` computes at a point with the one-hot coefficients of its anchor, bit for bit.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    found = [_by_kernel(x[None], [w], ONE, geometry, Epilogue(), wide) for w in weights]
    return [reference.product(x, w, geometry) if p is None else p[0] for p, w in zip(found, weights, strict=True)]


def _by_kernel(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    dtype: torch.dtype | None,
) -> Tensor | None:
    """`conv` by the kernel that the table names, in `dtype` or that of x; None for PyTorch's own operations."""
    cls = shape_class("conv", x.ndim - 3, *weights[0].shape[:2])

    def fits(kernel: str) -> bool:
        if kernel == "cudnn":
            return cudnn.takes(x, epilogue)
        return geometry.groups == 1 and (kernel != "triton" or x.ndim == 5)

    kernel = choose("conv", (x, *weights, *epilogue[:3]), cls, fits)
    if kernel == "cudnn":
        return cudnn.conv(x, weights, coefficients, geometry, epilogue)
    if kernel == "triton":
        return _triton(x, weights, coefficients, geometry, epilogue, dtype)
    if kernel == "native":
        rows = range(len(x))
        return stack([_native(x[p], weights, coefficients[p : p + 1], geometry, epilogue.point(p)) for p in rows])
    return None


def _triton(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    geometry: Geometry,
    epilogue: Epilogue,
    dtype: torch.dtype | None,
) -> Tensor:
    from mli_fast.ops.conv import triton

    residual = epilogue.residual
    return triton.conv(
        points_channels_last(x),
        [weight_channels_last(w) for w in weights],
        placed(coefficients, x.device),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        scale=packed(epilogue.scale),
        shift=packed(epilogue.shift),
        residual=None if residual is None else points_channels_last(residual),
        activation=epilogue.activation,
        tf32=current().tf32,
        dtype=dtype or x.dtype,
    )


def points_channels_last(x: Tensor) -> Tensor:
    """[P, B, C, *spatial] with the channels innermost in memory; copied only if they are not."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def _native(
    x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, geometry: Geometry, epilogue: Epilogue
) -> Tensor:
    return native.conv(
        channels_last(x),
        [weight_channels_last(w) for w in weights],
        coefficients.contiguous(),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        scale=packed(epilogue.scale),
        shift=packed(epilogue.shift),
        residual=None if epilogue.residual is None else channels_last(epilogue.residual),
        activation=epilogue.activation,
        algorithm="winograd" if by_winograd(x.shape, weights[0].shape, geometry) else "direct",
    )


def by_winograd(x: torch.Size, weight: torch.Size, geometry: Geometry) -> bool:
    """Whether tiles of 2 x 2 outputs win: what the call saves has to pay for the transforms, of the weights above all.

    It depends on one point's batch, never on the points.
    """
    products = PRODUCTS_OF_A_TILE.get(geometry.stride)
    if products is None or weight[2:] != (3, 3) or geometry.dilation != (1, 1) or weight[1] < 8:
        return False
    sizes = geometry.output_shape(x, weight)[2:]
    tiles = math.prod(-(-size // 2) for size in sizes)
    columns, channels = weight[:2]
    transforms = TRANSFORM * products * (1 / columns + 1 / channels)  # of the input, of the output
    return x[0] * (9 * math.prod(sizes) - (products + transforms) * tiles) >= WEIGHTS_TRANSFORM
