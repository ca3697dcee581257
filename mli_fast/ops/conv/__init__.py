"""conv: 1-D, 2-D and 3-D convolution with W(p) = sum_r c[p, r] W_r, and what follows, at P points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import native_serves, weight_channels_last
from mli_fast.ops.combine import combine
from mli_fast.ops.conv import reference
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.points import as_operator, channels_last, per_point, stack


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
        epilogue: what follows, for P points; its vectors are [P, N].
    """
    if _native(x[0], weights, geometry, *epilogue[:3]):
        return stack(
            [_call(x[p], weights, coefficients[p : p + 1], geometry, epilogue.point(p)) for p in range(len(x))]
        )
    return reference.conv(x, weights, coefficients, geometry, epilogue)


def products(x: Tensor, weights: Sequence[Tensor], geometry: Geometry) -> list[Tensor]:
    """The R convolutions of an input [B, C, *spatial] that is the same at every point, for `combine`.

    Each is what `conv` computes at a point with the one-hot coefficients of its anchor, bit for bit.
    """
    if _native(x, weights, geometry):
        one = torch.ones(1, 1, dtype=torch.float64)
        return [_call(x, [w], one, geometry, Epilogue()) for w in weights]
    return [reference.product(x, w, geometry) for w in weights]


def _call(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    return native.conv(
        channels_last(x),
        [weight_channels_last(w) for w in weights],
        coefficients.contiguous(),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        scale=None if epilogue.scale is None else epilogue.scale.contiguous(),
        shift=None if epilogue.shift is None else epilogue.shift.contiguous(),
        residual=None if epilogue.residual is None else channels_last(epilogue.residual),
        activation=epilogue.activation,
        algorithm="winograd" if _winograd(x.shape, weights[0].shape, geometry) else "direct",
    )


def _winograd(x: torch.Size, weight: torch.Size, geometry: Geometry) -> bool:
    """Whether F(2x2, 3x3) wins: 2.25 times fewer multiplications, if the image is more than a few of its 2x2 tiles."""
    return (
        weight[2:] == (3, 3)
        and geometry.stride == geometry.dilation == (1, 1)
        and weight[1] >= 8
        and math.prod(geometry.output_shape(x, weight)[2:]) >= 16
    )


def _native(x: Tensor, weights: Sequence[Tensor], geometry: Geometry, *others: Tensor | None) -> bool:
    # wide enough channels fill the registers; elsewhere the vendor's convolution is faster
    wins = x.ndim == 4 and weights[0].shape[0] >= 16 and weights[0].shape[1] >= 8
    return geometry.groups == 1 and native_serves("conv", x, *weights, *others, wins=wins)


def conv_at(
    x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, geometry: Geometry, epilogue: Epilogue
) -> Tensor:
    """`conv` at one point, coefficients [R]; may be called under vmap and torch.compile."""
    if as_operator():
        return conv_op(x, list(weights), coefficients, *geometry, *epilogue)
    return conv(x[None], weights, coefficients[None], geometry, epilogue.stacked())[0]


@torch.library.custom_op("mli_fast::conv", mutates_args=())
def conv_op(
    x: Tensor,
    weights: Sequence[Tensor],
    coefficients: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """`conv` at one point as a PyTorch operator; under vmap an unbatched input takes R convolutions."""
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    epilogue = Epilogue(scale, shift, residual, activation).stacked()
    return conv(x[None], weights, coefficients[None], geometry, epilogue)[0].contiguous()


@conv_op.register_fake
def _(x, weights, coefficients, stride, padding, dilation, groups, scale, shift, residual, activation):  # type: ignore[no-untyped-def]
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    return x.new_empty(geometry.output_shape(x.shape, weights[0].shape))


@conv_op.register_vmap
def _(info, in_dims, x, weights, coefficients, stride, padding, dilation, groups, scale, shift, residual, activation):  # type: ignore[no-untyped-def]
    size = info.batch_size
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    coefficients, scale, shift, residual = (
        per_point(t, in_dims[i], size)
        for i, t in zip((2, 7, 8, 9), (coefficients, scale, shift, residual), strict=True)
    )
    epilogue = Epilogue(scale, shift, residual, activation)
    if in_dims[0] is None:
        return combine(products(x, weights, geometry), coefficients, epilogue, 1, x.dtype), 0
    return conv(x.movedim(in_dims[0], 0), weights, coefficients, geometry, epilogue), 0
