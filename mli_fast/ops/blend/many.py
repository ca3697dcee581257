"""Many tensors at one point after the other, into memory that is given; in one call where a kernel does that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.blend import blend
from mli_fast.ops.dispatch import choose
from mli_fast.ops.memory import placed


class Blender:
    """T tensors that move with the same coefficients.

    Args:
        anchors: T times R tensors; the R of one tensor have one shape and dtype.
        dtype: that of the values.
        outs: T tensors to write the values to, of that dtype.
    """

    def __init__(self, anchors: Sequence[Sequence[Tensor]], dtype: torch.dtype, outs: Sequence[Tensor]) -> None:
        self._plan: Callable[[Tensor], None] | None = None
        self._device = outs[0].device
        packed = [
            out.is_contiguous() and all(a.is_contiguous() for a in g) for g, out in zip(anchors, outs, strict=True)
        ]
        together = [(g, out) for g, out, fits in zip(anchors, outs, packed, strict=True) if fits]
        apart = [(g, out) for g, out, fits in zip(anchors, outs, packed, strict=True) if not fits]
        kernel = self._kernel([g for g, _ in together], dtype) if together else ""
        groups, targets = [g for g, _ in together], [out for _, out in together]
        if kernel == "native" and self._device.type != "cuda":
            self._plan = native.BlendPlan(targets, groups)
        elif kernel in ("native", "triton"):
            self._plan = self._on_gpu(kernel, [out[None] for out in targets], groups)
        else:
            apart = [*together, *apart]
        self._apart, self._dtype = apart, dtype

    def _kernel(self, anchors: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> str:
        flat = [a for group in anchors for a in group]
        alike = {a.dtype for a in flat} == {flat[0].dtype}

        def fits(kernel: str) -> bool:
            if kernel == "native" and flat[0].is_cuda:
                return alike and native.cuda.takes_blend(flat[0].dtype, dtype)
            return alike and (kernel != "native" or dtype == flat[0].dtype)

        return choose("blend", flat, fits=fits)

    @staticmethod
    def _on_gpu(kernel: str, outs: list[Tensor], anchors: Sequence[Sequence[Tensor]]) -> Callable[[Tensor], None]:
        if kernel == "native":
            plan: Callable[[Tensor], None] = native.cuda.BlendPlan(outs, anchors)
        else:
            from mli_fast.ops.blend import triton

            plan = triton.BlendPlan(outs, anchors)
        return lambda coefficients: plan(coefficients[None])

    def __call__(self, coefficients: Tensor) -> None:
        """Write the values at coefficients [R], float64."""
        if self._plan is not None:
            self._plan(placed(coefficients, self._device))
        for group, out in self._apart:
            out.copy_(blend(group, coefficients[None], self._dtype)[0])
