"""The multi-tensor blend on the GPU: all tensors of a model at all points in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from mli_fast.native.cuda.checks import aligned, check
from mli_fast.native.cuda.loading import launch_on, require

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_PAIRS = {  # dtype of the anchors -> of the result
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16,),
    torch.float16: (torch.float16,),
    torch.float64: (torch.float64, torch.float32),
}
_FACTORS = (torch.float32, torch.float64)
STREAMED = 32 * 2**20  # bytes; outputs larger than this are written past the L2 cache


def takes(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether there is a kernel from anchors of one dtype to a result of the other."""
    return target in _PAIRS.get(source, ())


class BlendPlan:
    """T tensors at P points, checked and put in a table once, blended as often as wanted, each time in one launch.

    Args:
        outs: Written; all of one dtype, contiguous.
        anchors: R per tensor, all of one dtype, contiguous.
        scales: Factors along dimension 0, None where there are none; all float32 or all float64.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit; the dtypes are not a pair that the kernel has.
        RuntimeError: There are no CUDA kernels here.

    The plan keeps the tensors alive. They may change in value, not in place of memory. Making a plan uploads its
    table, so it is made before a CUDA graph is captured; calls can be captured.
    """

    def __init__(
        self,
        outs: Sequence[Tensor],  # T x [P, *shape]
        anchors: Sequence[Sequence[Tensor]],  # T x R x [*shape]
        scales: Sequence[Tensor | None] | None = None,  # T x [P, shape[0]]
    ) -> None:
        self._native = require()
        if len(anchors) != len(outs) or (scales is not None and len(scales) != len(outs)):
            raise ValueError(
                f"blend: {len(outs)} outs, but anchors for {len(anchors)} and scales for "
                f"{'none' if scales is None else len(scales)}"
            )
        self._kept = list(outs), [list(group) for group in anchors], None if scales is None else list(scales)
        self._entries: list[list[int]] = []
        self._counts: list[int] = []
        self._bytes = 0
        if not outs:
            return
        if any(not group for group in anchors) or any(out.dim() == 0 for out in outs):
            raise ValueError("blend: each tensor needs an anchor, and its out a leading dimension of points")
        self._device, self._in, self._out = outs[0].device, anchors[0][0].dtype, outs[0].dtype
        self._points, self._anchors = len(outs[0]), len(anchors[0])
        given = [s for s in scales or () if s is not None]
        self._factor = given[0].dtype if given else torch.float32
        if not takes(self._in, self._out):
            raise ValueError(f"blend: no kernel from {self._in} anchors to {self._out}")
        if self._factor not in _FACTORS:
            raise ValueError(f"scales: float32 or float64, got {self._factor}")
        if self._device.type != "cuda":
            raise ValueError(f"blend: needs tensors on a GPU, got outs on {self._device}")
        for t, (out, group, scale) in enumerate(zip(outs, anchors, scales or repeat(None, len(outs)), strict=True)):
            self._add(t, out, group, scale)
        self._table = self._upload()

    def _add(self, t: int, out: Tensor, group: Sequence[Tensor], scale: Tensor | None) -> None:
        shape = group[0].shape
        if len(group) != self._anchors:
            raise ValueError(f"blend: {len(group)} anchors for tensor {t}, {self._anchors} for the first")
        sources = [check(f"anchors of tensor {t}", a, shape, self._in, self._device) for a in group]
        to = check(f"outs[{t}]", out, (self._points, *shape), self._out, self._device)
        elements = shape.numel()
        factors, per_row = 0, max(elements, 1)
        if scale is not None:
            if not shape:
                raise ValueError(f"scales[{t}]: the tensor has no dimension 0, its shape is ()")
            factors = check(f"scales[{t}]", scale, (self._points, shape[0]), self._factor, self._device)
            per_row = max(elements // max(shape[0], 1), 1)
        size = elements * self._out.itemsize
        vectors = aligned(to, *sources) and (self._points == 1 or aligned(size))
        self._entries.append([to, factors, elements, per_row, int(vectors), *sources])
        self._counts.append(-(-size // self._native.blend_chunk))
        self._bytes += size

    def _upload(self) -> tuple[Tensor, Tensor] | None:
        """The entries and the chunks in device memory: one copy, from pinned memory. None: one entry, an argument."""
        if len(self._entries) == 1 and self._anchors <= self._native.blend_single_anchors:
            return None
        entries = torch.tensor(self._entries, dtype=torch.int64, device="cpu").flatten()
        chunks = [(t << 40) + torch.arange(n, dtype=torch.int64, device="cpu") for t, n in enumerate(self._counts)]
        both = torch.cat([entries, *chunks]).pin_memory().to(self._device, non_blocking=True)
        return both[: len(entries)], both[len(entries) :]

    def __call__(self, coefficients: Tensor, *, streaming: bool | None = None) -> None:
        """``outs[t][p] = scales[t][p] * sum_r coefficients[p, r] * anchors[t][r]``.

        The sum is taken in float32 (float64 for float64 anchors) and rounded once, after the scale.

        Args:
            coefficients: float64 [P, R] for all tensors or [T, P, R], on the device. With fewer points than the outs
                have, only the first are written. An anchor whose coefficient is exactly 0 is left out.
            streaming: Whether to write past the caches; None: where the outputs are too large for them.

        Raises:
            ValueError: The coefficients' shape, dtype or memory does not fit.
        """
        if not self._entries:
            return
        tensors = len(self._entries)
        points = coefficients.shape[-2] if coefficients.dim() in (2, 3) else -1
        if not 0 <= points <= self._points:
            raise ValueError(
                f"coefficients: expected [P, R] or [T, P, R] with at most {self._points} points, got shape "
                f"{tuple(coefficients.shape)}"
            )
        own = coefficients.dim() == 3
        shape = (tensors, points, self._anchors) if own else (points, self._anchors)
        at = check("coefficients", coefficients, shape, torch.float64, self._device)
        if points == 0 or sum(self._counts) == 0:
            return
        plan = (0, 0, self._entries[0]) if self._table is None else (*(t.data_ptr() for t in self._table), [])
        self._native.blend(
            plan,
            sum(self._counts),
            self._anchors,
            points,
            at,
            points * self._anchors if own else 0,
            (_TYPES[self._in], _TYPES[self._out]),
            self._factor is torch.float64,
            self._bytes * points > STREAMED if streaming is None else streaming,
            *launch_on(self._device),
        )


def blend(
    anchors: Sequence[Tensor],  # R x [*shape]
    coefficients: Tensor,  # [P, R]
    dtype: torch.dtype,
    scale: Tensor | None = None,  # [P, shape[0]]
) -> Tensor:  # [P, *shape]
    """One tensor at P points, in one launch and (for up to 8 anchors) without an upload.

    Args:
        anchors: float32, float64, bfloat16 or float16, contiguous, on the device.
        coefficients: float64, on the device. An anchor whose coefficient is exactly 0 is left out.
        dtype: Of the result; see `BlendPlan`.
        scale: float32 or float64; factors along dimension 0, applied before rounding.

    Raises:
        ValueError: A shape, dtype or memory layout does not fit.
        RuntimeError: There are no CUDA kernels here.
    """
    require()
    if not anchors or coefficients.dim() != 2:
        raise ValueError(f"blend: {len(anchors)} anchors, coefficients of shape {tuple(coefficients.shape)}")
    out = torch.empty(len(coefficients), *anchors[0].shape, dtype=dtype, device=anchors[0].device)
    BlendPlan([out], [anchors], [scale])(coefficients)
    return out
