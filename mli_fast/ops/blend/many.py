"""Many tensors at one point after the other, in memory that is used again; in one call where a kernel does that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.blend import blend
from mli_fast.ops.dispatch import choose
from mli_fast.ops.points import placed


class Blender:
    """T tensors that move with the same coefficients.

    Args:
        anchors: T times R tensors; the R of one tensor have one shape and dtype.
        dtype: that of the values.
    """

    def __init__(self, anchors: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        self._anchors, self._dtype = anchors, dtype
        self._plan: Callable[[Tensor], None] | None = None
        self._values: list[Tensor] = []
        flat = [a for group in anchors for a in group]
        if not flat:
            return
        on_gpu, alike = flat[0].is_cuda, {a.dtype for a in flat} == {flat[0].dtype}
        alike = alike and all(a.is_contiguous() for a in flat)

        def fits(kernel: str) -> bool:
            if kernel == "native" and on_gpu:
                return alike and native.cuda.takes_blend(flat[0].dtype, dtype)
            return alike and (kernel != "native" or dtype == flat[0].dtype)

        kernel = choose("blend", flat, fits=fits)
        if kernel not in ("native", "triton"):
            return
        self._values = [torch.empty(1, *group[0].shape, dtype=dtype, device=group[0].device) for group in anchors]
        if kernel == "triton":
            from mli_fast.ops.blend import triton

            self._plan = triton.BlendPlan(self._values, anchors)
        elif on_gpu:
            self._plan = native.cuda.BlendPlan(self._values, anchors)
        else:
            plan = native.BlendPlan([value[0] for value in self._values], anchors)
            self._plan = lambda coefficients: plan(coefficients[0])

    def __call__(self, coefficients: Tensor) -> list[Tensor]:
        """The values at coefficients [R], float64; overwritten by the next call."""
        if self._plan is None:
            return [blend(group, coefficients[None], self._dtype)[0] for group in self._anchors]
        self._plan(placed(coefficients[None], self._values[0].device))
        return [value[0] for value in self._values]
