"""Kernel calls of a plan: everything that does not change from call to call is checked and fixed beforehand.

Each call takes tensors and gives a tensor: addresses are taken within the call, so that none outlives its memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mli_fast import buffers, native
from mli_fast.interrupts import safe
from mli_fast.native.checks import ACTIVATIONS
from mli_fast.native.conv import _pixel_offsets
from mli_fast.native.loading import require
from mli_fast.ops.combine import combine
from mli_fast.ops.conv import by_winograd, conv
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import linear
from mli_fast.ops.linear.chain import Layer, chain
from mli_fast.ops.memory import channels_last
from mli_fast.rewrites.products import Product

Shape = tuple[int, ...]
TORCH = "torch"  # the kernel's name: PyTorch's convolution with the epilogue folded in
COMBINED = "combined"  # PyTorch's convolution with each anchor, once a batch, and their combination at the points


class Call(Protocol):
    """A product at P points."""

    def __call__(
        self,
        x: Any,  # [P * rows of the record, ...], or the R products of a shared input
        residual: Tensor | None,
        points: int,
        coefficients: Tensor,  # [P, R]
        scale: Tensor | None,  # [P, N]
        shift: Tensor | None,  # [P, N]
    ) -> Tensor:
        """The result of the record's shape, P times as long."""


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()


class _Native:
    """What the compiled CPU calls have in common: rows and columns of one point's result, and the epilogue."""

    def __init__(self, product: Product, anchors: Sequence[Tensor], columns: int) -> None:
        self._module = require()
        self._kept = list(anchors)
        self._anchors = [a.data_ptr() for a in anchors]
        self._shape, self._columns = product.shape, columns
        self._rows = math.prod(product.shape) // max(columns, 1)
        self._activation = ACTIVATIONS[product.activation]

    def _tail(self, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> tuple[int, ...]:
        safe()  # a pass over many points takes long: between its products
        columns = self._columns
        addresses = (_address(scale), _address(shift), _address(residual))
        return (*addresses, columns, columns, self._rows * columns, self._activation)


class NativeLinear(_Native):
    """x W(p)^T by the compiled kernel; anchors [N, K]."""

    def __init__(self, product: Product, anchors: Sequence[Tensor]) -> None:
        super().__init__(product, anchors, anchors[0].shape[0])
        self._depth = anchors[0].shape[1]

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        x = _contiguous(x)
        residual = None if residual is None else _contiguous(residual)
        out = buffers.empty((points * self._shape[0], *self._shape[1:]), torch.float32)
        self._module.product(
            False,
            out.data_ptr(),
            x.data_ptr(),
            (points, self._rows, self._columns, 1, self._depth),
            self._rows * self._depth,
            self._anchors,
            coefficients.data_ptr(),
            self._tail(scale, shift, residual),
            0,
            0,
            0,
            torch.get_num_threads(),
        )
        return out


class NativeCombine(_Native):
    """The combination of R products of a shared input; for a convolution these are [B, *spatial, N] in memory."""

    def __init__(self, product: Product, columns: int) -> None:
        super().__init__(product, (), columns)
        self._images = product.kind == "conv"

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        b, *rest = self._shape
        shape = (points * b, *rest[1:], rest[0]) if self._images else (points * b, *rest)
        if residual is not None:
            residual = channels_last(residual) if self._images else _contiguous(residual)
        out = buffers.empty(shape, torch.float32)
        self._module.combine(
            False,
            out.data_ptr(),
            [t.data_ptr() for t in x],
            coefficients.data_ptr(),
            (points, self._rows, self._columns),
            self._tail(scale, shift, residual),
            torch.get_num_threads(),
        )
        return out.movedim(-1, 1) if self._images else out


class NativeConv(_Native):
    """A convolution in channels-last memory, by Winograd's tiles or the indirect product; anchors [N, *kernel, C]."""

    def __init__(self, product: Product, anchors: Sequence[Tensor], x: Shape) -> None:
        super().__init__(product, anchors, product.shape[1])
        move = product.move
        assert move is not None
        self._batch, self._channels, *self._sizes = x
        self._image = self._channels * math.prod(self._sizes)
        kernel = anchors[0].shape[1:-1]
        weight = torch.Size((anchors[0].shape[0], self._channels, *kernel))
        self._moves = (*product.shape[2:], *move.padding, move.stride[0])
        self._offsets: Tensor | None = None
        if not by_winograd(torch.Size(x), weight, move):
            self._offsets, _ = _pixel_offsets(
                self._channels, tuple(self._sizes), tuple(kernel), move.stride, move.padding, move.dilation
            )

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        x = channels_last(x)
        residual = None if residual is None else channels_last(residual)
        n, *spatial = self._shape[1:]
        out = buffers.empty((points * self._batch, *spatial, n), torch.float32)
        tail = self._tail(scale, shift, residual)
        start = out.data_ptr(), x.data_ptr()
        apart = self._batch * self._image
        if self._offsets is None:
            sizes = (points, self._batch, *self._sizes, self._channels, n)
            weights = self._anchors, coefficients.data_ptr(), tail
            self._module.winograd(*start, sizes, self._moves, apart, *weights, torch.get_num_threads())
        else:
            self._module.product(
                False,
                *start,
                (points, self._rows, n, self._offsets.shape[1], self._channels),
                apart,
                self._anchors,
                coefficients.data_ptr(),
                tail,
                self._offsets.data_ptr(),
                math.prod(spatial),
                self._image,
                torch.get_num_threads(),
            )
        return out.movedim(-1, 1)


class NativeChain:
    """Linear layers in one call; the coefficients, scales and shifts are tuples, one for each."""

    def __init__(self, product: Product, anchors: Sequence[Sequence[Tensor]], of_products: bool) -> None:
        self._layers = [*product.before, product]
        self._anchors, self._of_products = anchors, of_products
        self._shape = product.shape
        self._depth = anchors[0][0].shape[1]

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Any, scale: Any, shift: Any
    ) -> Tensor:
        parts = [
            native.Blended(a, c, s, t, layer.activation)
            for layer, a, c, s, t in zip(self._layers, self._anchors, coefficients, scale, shift, strict=True)
        ]
        source = parts.pop(0)._replace(tensors=x) if self._of_products else _contiguous(x).view(points, -1, self._depth)
        if residual is not None:
            residual = _contiguous(residual).view(points, -1, self._shape[-1])
        out = native.chain(source, parts, residual=residual)
        return out.view(points * self._shape[0], *self._shape[1:])


class DispatchedChain:
    """`mli_fast.ops.linear.chain`, which has a kernel for two layers after shared products on a GPU."""

    def __init__(
        self, product: Product, anchors: Sequence[Sequence[Tensor]], of_products: bool, dtype: torch.dtype
    ) -> None:
        self._layers, self._shape = [*product.before, product], product.shape
        self._anchors, self._of_products, self._dtype = anchors, of_products, dtype

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Any, scale: Any, shift: Any
    ) -> Tensor:
        columns = self._shape[-1]
        residual = None if residual is None else residual.reshape(points, -1, columns)
        tails = [Epilogue(s, t, None, p.activation) for s, t, p in zip(scale, shift, self._layers, strict=True)]
        tails[-1] = tails[-1]._replace(residual=residual)
        layers = [Layer(a, c, e) for a, c, e in zip(self._anchors, coefficients, tails, strict=True)]
        if self._of_products:
            out = chain(None, [t.reshape(-1, t.shape[-1]) for t in x], layers, self._dtype)
        else:
            out = chain(x.reshape(points, -1, x.shape[-1]), None, layers, self._dtype)
        return out.reshape(points * self._shape[0], *self._shape[1:])


class TorchConv:
    """PyTorch's convolution on one point's weight, into which the scale was multiplied."""

    def __init__(self, product: Product) -> None:
        move = product.move
        assert move is not None
        self._last = list(move.padding), list(move.stride), list(move.dilation), move.groups
        self._activation = product.activation
        self._adds_bias = product.residual is None and len(product.shape) == 4

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        padding, stride, dilation, groups = self._last
        weight = coefficients  # blended beforehand
        bias = None if shift is None else shift[0]
        if self._adds_bias:  # its own activations are left alone: its relu(NaN) is 0
            pointwise = torch.ops.mkldnn._convolution_pointwise.default
            out = pointwise(channels_last(x), weight, bias, padding, stride, dilation, groups, "none", [], "")
            return _ACTIVATE[self._activation](out)
        out = torch.ops.aten.convolution.default(
            x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )
        if residual is not None:
            out += residual
        return _ACTIVATE[self._activation](out)


class TorchProducts:
    """PyTorch's convolution of one input with each anchor, [B * spatial, N] each, for `NativeCombine`."""

    def __init__(self, product: Product, anchors: Sequence[Tensor]) -> None:
        move = product.move
        assert move is not None
        self._anchors = list(anchors)
        self._move = list(move.stride), list(move.padding), list(move.dilation), False, [0] * len(move.stride)
        self._groups = move.groups

    def __call__(self, x: Tensor) -> list[Tensor]:
        x = channels_last(x)
        found = [torch.ops.aten.convolution.default(x, a, None, *self._move, self._groups) for a in self._anchors]
        return [_contiguous(f.movedim(1, -1).reshape(-1, f.shape[1])) for f in found]  # of one image it is a view


_ACTIVATE = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda x: torch.nn.functional.silu(x, inplace=True),
    "tanh": torch.tanh_,
}


class DispatchedLinear:
    """`mli_fast.ops.linear`, which chooses among the kernels of a GPU."""

    def __init__(self, product: Product, anchors: Sequence[Tensor]) -> None:
        self._anchors, self._shape, self._activation = list(anchors), product.shape, product.activation

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        columns = self._shape[-1]
        rows = x.reshape(points, -1, x.shape[-1])
        residual = None if residual is None else residual.reshape(points, -1, columns)
        out = linear(rows, self._anchors, coefficients, Epilogue(scale, shift, residual, self._activation))
        return out.reshape(points * self._shape[0], *self._shape[1:])


class DispatchedConv:
    """`mli_fast.ops.conv`, likewise."""

    def __init__(self, product: Product, anchors: Sequence[Tensor]) -> None:
        move = product.move
        assert move is not None
        self._anchors, self._activation, self._move = list(anchors), product.activation, move

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        x = x.reshape(points, -1, *x.shape[1:])
        residual = None if residual is None else residual.reshape(points, -1, *residual.shape[1:])
        epilogue = Epilogue(scale, shift, residual, self._activation)
        return conv(x, self._anchors, coefficients, self._move, epilogue).flatten(0, 1)


class DispatchedCombine:
    """`mli_fast.ops.combine`, likewise."""

    def __init__(self, product: Product, dtype: torch.dtype) -> None:
        self._shape, self._activation, self._dtype = product.shape, product.activation, dtype
        self._channel = 1 if product.kind == "conv" else -1

    def __call__(
        self, x: Any, residual: Tensor | None, points: int, coefficients: Tensor, scale: Any, shift: Any
    ) -> Tensor:
        if residual is not None:
            residual = residual.reshape(points, *self._shape)
        epilogue = Epilogue(scale, shift, residual, self._activation)
        return combine(x, coefficients, epilogue, self._channel, self._dtype).flatten(0, 1)
