"""The last product fused with its cross entropy in Triton: the logits of P points are never stored.

A program computes one tile of logits, rows of one point by a tile of the vocabulary, and leaves of it, per row, the
maximum, the sum and the key: 12 bytes in place of a hundred logits. A second kernel merges the tiles of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mli_fast.ops import launching
from mli_fast.ops.cross_entropy.triton import (
    MAX_CLASSES,
    check_targets,
    finished,
    kept,
    merged,
    safe,
    tile_statistics,
)
from mli_fast.ops.tiles import (
    add_weighted,
    bound,
    coefficient_column,
    input_precision,
    on_device,
    rounded_to_tf32,
    settled,
    spaced,
)


class Blocks(NamedTuple):
    """Tile sizes (vocabulary, rows, depth) and how a program runs."""

    v: int
    m: int
    k: int
    warps: int
    stages: int


# by precision and rows per point; a wide row block makes a blended tile serve more rows
_BLOCKS = {
    ("half", "few"): Blocks(64, 32, 64, 4, 3),
    ("half", "some"): Blocks(64, 64, 64, 4, 3),
    ("half", "many"): Blocks(128, 128, 64, 8, 3),
    ("tf32", "few"): Blocks(64, 32, 32, 4, 3),
    ("tf32", "some"): Blocks(64, 64, 32, 4, 3),
    ("tf32", "many"): Blocks(128, 128, 32, 8, 3),
    ("fp32", "few"): Blocks(64, 32, 32, 4, 3),
    ("fp32", "some"): Blocks(64, 64, 32, 4, 3),
    ("fp32", "many"): Blocks(64, 128, 32, 8, 3),
}
_GROUP = 8  # tiles of rows that run side by side over the vocabulary
_MERGED_ROWS = 32
_MERGED_TILES = 32


def blocks(dtype: torch.dtype, tf32: bool, rows: int) -> Blocks:
    """The tile sizes for x of that dtype with so many rows per point."""
    precision = "half" if dtype.itemsize == 2 else "tf32" if tf32 else "fp32"
    return _BLOCKS[precision, "few" if rows <= 32 else "some" if rows <= 64 else "many"]


@triton.jit(do_not_specialize=["P", "M", "row_tiles"])
def linear_cross_entropy_fwd_kernel(  # type: ignore[no-untyped-def]
    x,  # [P, M, K]
    weights,  # R x [V, K]
    coefficients,  # [P, R] float64
    shift,  # [P, V] or None
    targets,  # [M] int64
    largest_tiles,  # [tiles of the vocabulary, P, M] float32
    total_tiles,  # [tiles, P, M] float32
    key_tiles,  # [tiles, P, M] int32
    target_logits,  # [P, M] float32; written where the target is a class
    P,
    M,
    V,
    K,
    x_point,  # elements from one point's x to the next, 0 for one x for all
    anchor_step,
    row_tiles,  # of one point
    R: tl.constexpr,
    BV: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    TF32: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # a few tiles of rows, of whatever points, walk over the vocabulary together: they share the tiles of weights
    in_group = GROUP * tl.cdiv(V, BV)
    first = tl.program_id(0) // in_group * GROUP
    width = tl.minimum(P * row_tiles - first, GROUP)
    row_tile = first + tl.program_id(0) % in_group % width
    v_tile = tl.program_id(0) % in_group // width
    p = (row_tile // row_tiles).to(tl.int64)

    c = ()
    for r in tl.static_range(R):
        c = c + (coefficient_column(coefficients + p * R, r, BV),)  # type: ignore[assignment]  # noqa: RUF005

    row = row_tile % row_tiles * BM + tl.arange(0, BM)
    row_inside = row < M
    v = v_tile * BV + tl.arange(0, BV)
    v_inside = v < V
    k = tl.arange(0, BK)
    x_at = x + p * x_point + row.to(tl.int64)[None, :] * K + k[:, None]  # [BK, BM]
    weights_at = weights + v.to(tl.int64)[:, None] * K + k[None, :]  # [BV, BK]
    z = tl.zeros([BV, BM], tl.float32)
    for start in range(0, bound(K), BK):
        k_inside = k < K - start
        columns = tl.load(x_at + start, mask=k_inside[:, None] & row_inside[None, :], other=0.0)
        weight = tl.zeros([BV, BK], tl.float32)
        for r in tl.static_range(R):
            at = weights_at + (r * tl.cast(anchor_step, tl.int64) + start)
            term = tl.load(at, mask=v_inside[:, None] & k_inside[None, :], other=0.0)
            weight = add_weighted(weight, c[r], term.to(tl.float32))
        weight = weight.to(columns.dtype)
        if TF32:
            weight, columns = rounded_to_tf32(weight), rounded_to_tf32(columns)
        z = settled(tl.dot(weight, columns, z, input_precision=PRECISION))
    if shift is not None:
        z += tl.load(shift + p * V + v, mask=v_inside, other=0.0).to(tl.float32)[:, None]

    out_row = p * M + row
    at = v_tile.to(tl.int64) * P * M + out_row
    largest, total, key = tile_statistics(z, v[:, None], v_inside[:, None], 0)
    tl.store(largest_tiles + at, largest, mask=row_inside)
    tl.store(total_tiles + at, total, mask=row_inside)
    tl.store(key_tiles + at, key, mask=row_inside)
    target = tl.load(targets + row, mask=row_inside, other=-1) - v_tile * BV
    here = (target >= 0) & (target < BV)
    target = tl.where(here, target, -1).to(tl.int32)
    logit = tl.sum(tl.where(tl.arange(0, BV)[:, None] == target[None, :], z, 0.0), 0)
    tl.store(target_logits + out_row, logit, mask=row_inside & here)


@triton.jit(do_not_specialize=["rows", "M"])
def merge_tiles_kernel(  # type: ignore[no-untyped-def]
    largest_tiles,  # [tiles, P, M] float32
    total_tiles,  # [tiles, P, M] float32
    key_tiles,  # [tiles, P, M] int32
    target_logits,  # [P, M] float32
    targets,  # [M] int64
    losses,  # [P, M] float64
    predictions,  # [P, M] int64
    rows,  # P * M
    M,
    V,
    tiles,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    key = tl.full([ROWS], 2**31 - 1, tl.int32)
    for start in range(0, bound(tiles), TILES):
        tile = start + tl.arange(0, TILES)[:, None]
        valid = inside[None, :] & (tile < tiles)
        at = tile.to(tl.int64) * rows + row[None, :]
        largests = tl.load(largest_tiles + at, mask=valid, other=float("-inf"))
        totals = tl.load(total_tiles + at, mask=valid, other=0.0)
        keys = tl.load(key_tiles + at, mask=valid, other=2**31 - 1)
        step_largest = tl.max(largests, 0)
        step_total = tl.sum(totals * tl.exp(largests - safe(step_largest)[None, :]), 0)
        step_key = tl.min(kept(keys, largests, step_largest[None, :]), 0)
        largest, total, key = merged(largest, total, key, step_largest, step_total, step_key)
    target = tl.load(targets + row % M, mask=inside, other=-1)
    target_logit = tl.load(target_logits + row, mask=inside & (target >= 0) & (target < V), other=0.0)
    loss, prediction = finished(largest, total, key, target_logit, target, V)
    tl.store(losses + row, loss, mask=inside)
    tl.store(predictions + row, prediction, mask=inside)


def takes(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `linear_cross_entropy` serves such operands."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    weight = weights[0]
    return (
        x.ndim in (2, 3)
        and x.dtype in dtypes
        and weight.ndim == 2
        and weight.dtype in (x.dtype, torch.float32)
        and 0 < weight.shape[0] < MAX_CLASSES
    )


def linear_cross_entropy(
    x: Tensor,  # [P, M, K] or [M, K] for all points
    weights: Sequence[Tensor],  # R x [V, K]
    coefficients: Tensor,  # [P, R] float64
    shift: Tensor | None,  # [P, V]
    targets: Tensor,  # [M] int64
    *,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """Cross entropy and arg max of the logits x W(p)^T + shift, as `fused.linear_cross_entropy`.

    The logits stay in float32. What is stored on the way is 12 bytes per row and tile of the vocabulary.

    Args:
        x: contiguous float32, float16 or bfloat16.
        weights: R contiguous weights in x's dtype or float32.
        coefficients: float64, contiguous, on x's device.
        shift: bias per point, contiguous, any floating dtype.
        targets: class numbers, or -100 for rows to ignore; a row whose target is no class has loss NaN.
        tf32: float32 operands are rounded to TF32; else the products are as exact as float32's.

    Returns:
        losses and predictions, as `mli_fast.ops.cross_entropy.cross_entropy` returns them.

    Raises:
        ValueError: a shape, dtype, device or memory layout does not fit.
    """
    _check(x, weights, coefficients, shift, targets)
    P, R = coefficients.shape
    M, K = x.shape[-2:]
    V = weights[0].shape[0]
    losses = torch.empty(P, M, dtype=torch.float64, device=x.device)
    predictions = torch.empty(P, M, dtype=torch.int64, device=x.device)
    if not losses.numel():
        return losses, predictions

    block = blocks(x.dtype, tf32, M)
    row_tiles, tiles = triton.cdiv(M, block.m), triton.cdiv(V, block.v)
    largest, total = (torch.empty(tiles, P, M, dtype=torch.float32, device=x.device) for _ in range(2))
    key = torch.empty(tiles, P, M, dtype=torch.int32, device=x.device)
    logits = torch.empty(P, M, dtype=torch.float32, device=x.device)
    first, step = spaced(weights)
    rounds = tf32 and x.dtype == torch.float32
    stage_bytes = block.k * (R * block.v * first.element_size() + block.m * x.element_size())
    with on_device(x):
        linear_cross_entropy_fwd_kernel[(P * row_tiles * tiles,)](
            x,
            first,
            coefficients,
            shift,
            targets,
            largest,
            total,
            key,
            logits,
            P,
            M,
            V,
            K,
            M * K if x.ndim == 3 else 0,
            step,
            row_tiles,
            R=R,
            BV=block.v,
            BM=block.m,
            BK=block.k,
            GROUP=_GROUP,
            TF32=rounds,
            PRECISION=input_precision(x.dtype, tf32),
            num_warps=block.warps,
            num_stages=launching.stages(block.stages, stage_bytes, launching.shared_memory(x.device)),
        )
        merge_tiles_kernel[(triton.cdiv(P * M, _MERGED_ROWS),)](
            largest,
            total,
            key,
            logits,
            targets,
            losses,
            predictions,
            P * M,
            M,
            V,
            tiles,
            ROWS=_MERGED_ROWS,
            TILES=_MERGED_TILES,
            num_warps=4,
        )
    return losses, predictions


def _check(x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, shift: Tensor | None, targets: Tensor) -> None:
    if coefficients.ndim != 2 or coefficients.shape[1] != len(weights) or coefficients.dtype != torch.float64:
        raise ValueError(
            f"coefficients: expected float64 [P, {len(weights)}], got {coefficients.dtype} {tuple(coefficients.shape)}"
        )
    if not weights or not takes(x, weights):
        raise ValueError(
            f"x {x.dtype} {tuple(x.shape)} and weights {[(w.dtype, tuple(w.shape)) for w in weights]}: expected "
            "[P, M, K] or [M, K] in float32, float16 or bfloat16 and R x [V, K] in that dtype or float32"
        )
    P, M, K, V = len(coefficients), x.shape[-2], x.shape[-1], weights[0].shape[0]
    if x.ndim == 3 and len(x) != P:
        raise ValueError(f"x: shape {tuple(x.shape)} does not have the {P} points of the coefficients")
    check_targets(targets, M, x.device)
    named = [("x", x, tuple(x.shape)), ("coefficients", coefficients, (P, len(weights)))]
    named += [(f"weights[{r}]", w, (V, K)) for r, w in enumerate(weights)]
    if shift is not None:
        named.append(("shift", shift, (P, V)))
    for name, tensor, shape in named:
        if tuple(tensor.shape) != shape or not tensor.is_contiguous() or tensor.device != x.device:
            raise ValueError(
                f"{name}: expected contiguous {shape} on {x.device}, got shape {tuple(tensor.shape)}, "
                f"strides {tensor.stride()} on {tensor.device}"
            )
