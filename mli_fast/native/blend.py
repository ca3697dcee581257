"""The multi-tensor blend: all parameters of one point in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.native.checks import check, check_dtype
from mli_fast.native.loading import require


class BlendPlan:
    """All parameters of one point, checked once, blended as often as wanted: ``plan(coefficients)`` fills the outputs.

    Args:
        outs: T tensors to write; all float32 or all float64, contiguous.
        anchors: R tensors per output, of its shape and dtype, contiguous.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: The compiled module is missing.

    The plan keeps the tensors alive. They may change in value, not in place of memory.
    """

    def __init__(self, outs: Sequence[Tensor], anchors: Sequence[Sequence[Tensor]]) -> None:
        self._native = require()
        if len(anchors) != len(outs):
            raise ValueError(f"blend: {len(outs)} outputs, but anchors for {len(anchors)}")
        self._dtype = check_dtype("outs", outs[0]) if outs else torch.float32
        self._count = len(anchors[0]) if anchors else 0
        self._sources: list[int] = []
        for t, (target, group) in enumerate(zip(outs, anchors, strict=True)):
            if len(group) != self._count or not group:
                raise ValueError(f"blend: {len(group)} anchors for tensor {t}, {self._count} for the first")
            self._sources += [check(f"anchors of tensor {t}", a, target.shape, self._dtype) for a in group]
        self._targets = [check(f"outs[{t}]", target, target.shape, self._dtype) for t, target in enumerate(outs)]
        self._sizes = [target.numel() for target in outs]
        self._kept = (list(outs), [list(group) for group in anchors])

    def __call__(self, coefficients: Tensor) -> None:
        """``outs[t] = sum_r coefficients[t, r] * anchors[t][r]``.

        Args:
            coefficients: float64 [T, R], or [R] for all tensors. An anchor whose coefficient is exactly 0 is not read.

        Raises:
            ValueError: The coefficients' shape or dtype does not fit.
        """
        if not self._targets:
            return
        tensors = len(self._targets)
        if coefficients.dim() == 1:
            coefficients = coefficients.expand(tensors, coefficients.shape[0]).contiguous()
        at = check("coefficients", coefficients, (tensors, self._count), torch.float64)
        wide = self._dtype is torch.float64
        self._native.blend(wide, self._targets, self._sources, at, self._sizes, torch.get_num_threads())


def blend(
    outs: Sequence[Tensor],  # T
    anchors: Sequence[Sequence[Tensor]],  # T times R, shaped like outs[t]
    coefficients: Tensor,  # [T, R], or [R] for all tensors
) -> None:
    """One use of a `BlendPlan`, with its arguments and errors."""
    BlendPlan(outs, anchors)(coefficients)
