"""The blend in Triton: anchors are read once, all points' copies are written, for many tensors in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from mli_fast.ops import launching
from mli_fast.ops.blend.reference import accumulation_dtype
from mli_fast.ops.tiles import add_weighted, bound, expect, on_device, spaced

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
_ALIGNMENT = 16  # bytes; what one thread reads or writes at once


@no_type_check
@triton.jit
def _blend_block(
    out,  # of point 0 at the block's first element
    anchors,  # tuple of R pointers to the block's first element
    coefficients,  # of point 0
    scale,  # of point 0, or None
    scaled,  # elements from the block's first on that have a factor; the others are left as they are
    channel,  # of every element of the block
    p_first,
    p_end,
    length,  # elements from the block's first on
    stride_out,
    stride_coefficients,
    stride_scale,
    R: tl.constexpr,
    WIDE: tl.constexpr,
    FULL: tl.constexpr,  # no element lies beyond the end, which a mask would have to tell one by one
    ALIGNED: tl.constexpr,  # elements; what the offset of a point is a multiple of
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    terms = ()
    for r in tl.static_range(R):
        if FULL:
            term = tl.load(anchors[r] + i)
        else:
            term = tl.load(anchors[r] + i, mask=i < length, other=0.0)
        terms = terms + (term.to(WIDE),)  # noqa: RUF005
    for point in range(bound(p_first), bound(p_end)):
        p = tl.cast(point, tl.int64)
        total = tl.zeros((BLOCK,), WIDE)
        for r in tl.static_range(R):
            total = add_weighted(total, tl.load(coefficients + p * stride_coefficients + r).to(WIDE), terms[r])
        if scale is not None:
            total = total * tl.load(scale + p * stride_scale + channel, mask=i < scaled, other=1.0).to(WIDE)
        place = out + tl.multiple_of(p * stride_out, ALIGNED) + i
        if FULL:
            tl.store(place, total.to(out.dtype.element_ty))
        else:
            tl.store(place, total.to(out.dtype.element_ty), mask=i < length)


@no_type_check
@triton.jit(do_not_specialize=["P", "points", "length"])
def blend_fwd_kernel(
    out,  # [P, length]
    anchors,  # the first of the R anchors [length]
    coefficients,  # [P, R] float64
    scale,  # [P, length / inner] or None
    P,
    points,  # of one program
    length,
    inner,
    step,
    stride_out,
    stride_coefficients,
    stride_scale,
    R: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.cast(tl.program_id(0), tl.int64) * BLOCK
    addresses = ()
    for r in tl.static_range(R):
        addresses = addresses + (anchors + start + r * tl.cast(step, tl.int64),)  # noqa: RUF005
    p_first = tl.program_id(1) * points
    p_end = tl.minimum(p_first + points, P)
    left = length - start
    channel = (start + tl.arange(0, BLOCK)) // inner
    stride = tl.cast(stride_out, tl.int64)
    if left >= BLOCK:
        _blend_block(
            out + start, addresses, coefficients, scale, left, channel, p_first, p_end, left,
            stride, stride_coefficients, stride_scale, R, WIDE, True, ALIGNED, BLOCK,
        )  # fmt: skip
    else:
        _blend_block(
            out + start, addresses, coefficients, scale, left, channel, p_first, p_end, left,
            stride, stride_coefficients, stride_scale, R, WIDE, False, ALIGNED, BLOCK,
        )  # fmt: skip


@no_type_check
@triton.jit
def _address(table, column, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(table + column).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@no_type_check
@triton.jit
def _blend_row(
    table,  # of one tensor
    start,
    coefficients,
    p_first,
    p_end,
    stride_coefficients,
    R: tl.constexpr,
    ANCHOR: tl.constexpr,
    OUT: tl.constexpr,
    WIDE: tl.constexpr,
    FAST: tl.constexpr,  # aligned, and no element of the block lies beyond the end
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    addresses = ()
    for r in tl.static_range(R):
        addresses = addresses + (_address(table, 3 + r, ANCHOR, FAST) + start,)  # noqa: RUF005
    out = _address(table, 0, OUT, FAST) + start
    stride_out = tl.load(table + 1)
    left = tl.load(table + 2) - start
    _blend_block(
        out, addresses, coefficients, None, 0, 0, p_first, p_end, left,
        stride_out, stride_coefficients, 0, R, WIDE, FAST, ALIGNED, BLOCK,
    )  # fmt: skip


@no_type_check
@triton.jit(do_not_specialize=["P", "points", "aligned"])
def blend_many_fwd_kernel(
    table,  # [T, 3 + R] int64: out, its stride per point, elements, R anchors
    blocks,  # [blocks, 2] int64: which tensor, and at which element the block starts
    coefficients,  # [P, R] or, where tensors have their own, [T, P, R] float64
    P,
    points,  # of one program
    aligned,  # tensors from the first on whose addresses and strides allow wide accesses
    stride_coefficients_tensor,
    stride_coefficients,
    R: tl.constexpr,
    ANCHOR: tl.constexpr,
    OUT: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor = tl.load(blocks + tl.program_id(0) * 2)
    start = tl.multiple_of(tl.load(blocks + tl.program_id(0) * 2 + 1), BLOCK)
    table += tensor * (3 + R)
    coefficients += tensor * stride_coefficients_tensor
    p_first = tl.program_id(1) * points
    p_end = tl.minimum(p_first + points, P)
    wide = tl.where(tensor < aligned, tl.load(table + 2), 0)  # elements that lie where wide accesses are allowed
    if start + BLOCK <= wide:
        _blend_row(
            table, start, coefficients, p_first, p_end, stride_coefficients,
            R, ANCHOR, OUT, WIDE, True, ALIGNED, BLOCK,
        )  # fmt: skip
    else:
        _blend_row(
            table, start, coefficients, p_first, p_end, stride_coefficients,
            R, ANCHOR, OUT, WIDE, False, 1, BLOCK,
        )  # fmt: skip


def blend(
    anchors: Sequence[Tensor],  # R x [*shape]
    coefficients: Tensor,  # [P, R] float64
    dtype: torch.dtype,
    scale: Tensor | None = None,  # [P, shape[0]]
    out: Tensor | None = None,  # [P, *shape]
) -> Tensor:  # [P, *shape]
    """sum_r c[p, r] anchor_r, times the scale, summed in float32 or float64 and rounded once to `dtype`.

    Args:
        anchors: R contiguous tensors of one shape and dtype.
        coefficients: on the anchors' device; exactly 0 leaves its anchor out.
        dtype: the result's dtype.
        scale: factors along dimension 0, any dtype.
        out: where the result goes, of that dtype; every point's copy is contiguous.

    Returns:
        [P, *shape] in `dtype`, or `out`.

    Raises:
        ValueError: if shapes, dtypes or layouts do not fit.
    """
    points, shape = len(coefficients), anchors[0].shape
    if out is None:
        out = anchors[0].new_empty(points, *shape, dtype=dtype)
    expect("coefficients", coefficients, (points, len(anchors)), torch.float64)
    _expect_packed(out, anchors, points, dtype)
    if scale is not None:
        expect("scale", scale, (points, shape[0]))
    if out.numel() == 0:
        return out
    length, wide = prod(shape), accumulation_dtype(dtype, anchors[0].dtype)
    blocks = _blocks(wide, len(anchors), out.device)
    programs = triton.cdiv(length, blocks["BLOCK"])
    each = launching.points_per_program(programs, points, out.device)
    first, step = spaced(anchors)
    stride = _point_stride(out, length)
    with on_device(out):
        blend_fwd_kernel[(programs, triton.cdiv(points, each))](
            out,
            first,
            coefficients,
            scale,
            points,
            each,
            length,
            length // shape[0] if scale is not None else 1,
            step,
            stride,
            coefficients.stride(0),
            0 if scale is None else scale.stride(0),
            R=len(anchors),
            WIDE=TYPES[wide],
            ALIGNED=_width(dtype) if stride % _width(dtype) == 0 else 1,
            **blocks,
        )
    return out


class BlendPlan:
    """Where the anchors of many tensors lie and where their blends go, uploaded once; each call is one launch.

    Tensors of different dtypes take one launch for each pair of dtypes.
    """

    def __init__(
        self,
        outs: Sequence[Tensor],  # T x [P, *shape]
        anchors: Sequence[Sequence[Tensor]],  # T x R x [*shape]
    ) -> None:
        """Look up every address; the tensors are kept alive.

        Args:
            outs: where the blends go; every point's copy is contiguous.
            anchors: R contiguous tensors for each of `outs`, of one dtype.

        Raises:
            ValueError: if shapes, dtypes or layouts do not fit.
        """
        self._tensors = (list(outs), [list(a) for a in anchors])
        self._points = len(outs[0]) if outs else 0
        self._anchors = len(anchors[0]) if anchors else 0
        members: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
        for t, (out, group) in enumerate(zip(outs, anchors, strict=True)):
            if len(group) != self._anchors:
                raise ValueError(f"anchors[{t}] holds {len(group)} tensors, anchors[0] {self._anchors}")
            _expect_packed(out, group, self._points, out.dtype)
            if out.numel():
                members.setdefault((group[0].dtype, out.dtype), []).append(t)
        self._groups = [self._group(*dtypes, tensors) for dtypes, tensors in members.items()]

    def _group(self, anchor: torch.dtype, out: torch.dtype, tensors: list[int]) -> _Group:
        outs, anchors = self._tensors
        wide = accumulation_dtype(out, anchor)
        aligned = [t for t in tensors if _aligned(outs[t], anchors[t])]
        order = [*aligned, *(t for t in tensors if t not in set(aligned))]
        rows = []
        for t in order:
            length = outs[t][0].numel()
            where = (outs[t].data_ptr(), _point_stride(outs[t], length), length)
            rows.append([*where, *(a.data_ptr() for a in anchors[t])])
        device = outs[order[0]].device
        blocks = _blocks(wide, self._anchors, device)
        starts = [[i, start] for i, row in enumerate(rows) for start in range(0, row[2], blocks["BLOCK"])]
        return _Group(
            torch.tensor(rows, dtype=torch.int64, device=device),
            torch.tensor(starts, dtype=torch.int64, device=device),
            torch.tensor(order, dtype=torch.int64, device=device),
            len(aligned),
            anchor,
            out,
            wide,
            blocks,
        )

    def __call__(self, coefficients: Tensor) -> None:
        """Blend into `outs`.

        Args:
            coefficients: float64 [P, R], or [T, P, R] where tensors have coefficients of their own, on the device. With
                fewer points than `outs` holds, the first ones are written.

        Raises:
            ValueError: if their shape or dtype does not fit.
        """
        points = coefficients.shape[-2]
        apart = coefficients.ndim == 3
        shape = (len(self._tensors[0]), points, self._anchors) if apart else (points, self._anchors)
        expect("coefficients", coefficients, shape, torch.float64)
        if points > self._points:
            raise ValueError(f"coefficients hold {points} points, the plan's tensors {self._points}")
        for group in self._groups if points else ():
            device = group.table.device
            mine = coefficients.index_select(0, group.order) if apart else coefficients
            each = launching.points_per_program(len(group.starts), points, device)
            with on_device(group.table):
                blend_many_fwd_kernel[(len(group.starts), triton.cdiv(points, each))](
                    group.table,
                    group.starts,
                    mine,
                    points,
                    each,
                    group.aligned,
                    mine.stride(0) if apart else 0,
                    mine.stride(-2),
                    R=self._anchors,
                    ANCHOR=TYPES[group.anchor],
                    OUT=TYPES[group.out],
                    WIDE=TYPES[group.wide],
                    ALIGNED=_width(group.out),
                    **group.blocks,
                )


class _Group(NamedTuple):
    """The tensors of one pair of dtypes, those that allow wide accesses first."""

    table: Tensor  # see blend_many_fwd_kernel
    starts: Tensor
    order: Tensor  # their places among the plan's tensors
    aligned: int
    anchor: torch.dtype
    out: torch.dtype
    wide: torch.dtype
    blocks: launching.Configuration


def _blocks(wide: torch.dtype, anchors: int, device: torch.device) -> launching.Configuration:
    chosen = dict(launching.configuration("blend", str(wide).removeprefix("torch."), "", device))
    if anchors > 4:  # all of them stay in registers
        chosen["BLOCK"] //= 2
    return chosen


def _width(dtype: torch.dtype) -> int:
    return _ALIGNMENT // dtype.itemsize


def _point_stride(out: Tensor, length: int) -> int:
    return out.stride(0) if len(out) > 1 else length


def _aligned(out: Tensor, anchors: Sequence[Tensor]) -> bool:
    if any(t.data_ptr() % _ALIGNMENT for t in (out, *anchors)):
        return False
    return len(out) == 1 or out.stride(0) % _width(out.dtype) == 0


def _expect_packed(out: Tensor, anchors: Sequence[Tensor], points: int, dtype: torch.dtype) -> None:
    shape = anchors[0].shape
    for i, anchor in enumerate(anchors):
        expect(f"anchors[{i}]", anchor, shape, anchors[0].dtype)
        if not anchor.is_contiguous():
            raise ValueError(f"anchors[{i}] {tuple(shape)} has strides {anchor.stride()}, not contiguous")
    expect("out", out, (points, *shape), dtype)
    if len(out) and not out[0].is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} has strides {out.stride()}: a point's copy is not contiguous")
    for tensor in (anchors[0], out):
        if tensor.dtype not in TYPES:
            raise ValueError(f"tensors have to be of a floating-point dtype, not {tensor.dtype}")
