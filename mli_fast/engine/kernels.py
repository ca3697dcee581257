"""Which kernel computes which product of a program, by the measured figures."""

from __future__ import annotations

import math

import torch

from mli_fast import native
from mli_fast.engine.points import Points
from mli_fast.ops.conv import Geometry, cudnn
from mli_fast.ops.dispatch import PLAIN, choose, shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear.chain import chains


class Measured:
    """The kernels that `mli_fast.ops.dispatch` chooses for the parameters of some points.

    Args:
        points: the points; how many there are and where they lie makes no difference.
        device: where the work is done.
        plain: whether nothing but PyTorch's own operators is asked for.
    """

    def __init__(self, points: Points, device: torch.device, plain: bool) -> None:
        self._points, self._device, self._plain = points, device, plain

    def linear(self, weight: str, rows: int, columns: int, depth: int) -> str | None:
        """See `rewrites.products.Kernels`."""
        if weight not in self._points.anchors or rows == 0:
            return None
        return self._chosen("linear", weight, shape_class("linear", rows, columns, depth))

    def conv(self, weight: str, x: tuple[int, ...], move: Geometry, of_data: bool) -> str | None:
        """See `rewrites.products.Kernels`."""
        if weight not in self._points.anchors or math.prod(x) == 0:
            return None
        anchors = self._points.anchors[weight]

        def fits(kernel: str) -> bool:
            if kernel == "cudnn":
                return cudnn.takes(torch.empty(0, device=self._device), Epilogue())
            return move.groups == 1 and (kernel != "triton" or len(x) == 4)

        kernel = self._chosen("conv", weight, shape_class("conv", len(x) - 2, *anchors[0].shape[:2]), fits)
        if kernel is None and self._folds(weight):
            return "combined" if of_data and self._combines(weight) else "torch"
        return kernel

    def _combines(self, weight: str) -> bool:
        """Whether combining the anchors' convolutions wins over a convolution at each point.

        Measured at 1 to 5 channels: 0.5 to 0.9 of the time, but 1.1 to 1.25 of it where several channels give a number
        of them that no vector of the combination divides.
        """
        anchors = self._points.anchors[weight]
        columns, channels = anchors[0].shape[:2]
        if native.module() is None or any(a.dtype is not torch.float32 for a in anchors):
            return False
        return channels == 1 or columns % 16 == 0

    def chains(self, kernel: str, weights: int) -> bool:
        """See `rewrites.products.Kernels`."""
        if self._device.type == "cpu" and kernel != "native":
            return kernel == "triton"  # interpreted
        return chains(weights, torch.float32, self._device)

    def _folds(self, weight: str) -> bool:
        if self._plain or self._device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        return self._points.dtype_of(weight) is torch.float32

    def _chosen(self, op: str, weight: str, cls: str, fits: object = None) -> str | None:
        dtype = self._points.dtype_of(weight)
        if not dtype.is_floating_point:
            return None
        like = torch.empty(0, dtype=dtype, device=self._device)
        kernel = choose(op, (like, *self._points.anchors[weight]), cls, fits)  # type: ignore[arg-type]
        return None if kernel == PLAIN else kernel
