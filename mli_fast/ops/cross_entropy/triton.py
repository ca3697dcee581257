"""Cross entropy and arg max in Triton: one pass over the logits, log-probabilities are never stored.

A row's statistics are its maximum, its sum of exp(z - maximum) and a key that says where the prediction is. NaN is left
out of the maximum, makes the sum NaN, and gives the lowest keys, so that merging keys is taking their minimum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mli_fast.ops.cross_entropy import IGNORED
from mli_fast.ops.tiles import bound, on_device

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_CLASSES = 2**30

_ROW_BLOCK = 2048  # of a long row per step: 16 logits for each of 128 threads
_TILE = 512  # of short rows: a thread keeps what belongs to 4 rows

_IGNORED = tl.constexpr(IGNORED)
_FIRST_NUMBER = tl.constexpr(MAX_CLASSES)  # key of a NaN: its index; of the maximum: its index + this
_NO_KEY = tl.constexpr(2**31 - 1)


@triton.jit
def safe(largest):  # type: ignore[no-untyped-def]
    """What to subtract before exp: the maximum, or 0 where all is -inf, since -inf - -inf is NaN."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def tile_statistics(z, index, valid, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Maximum, sum and key along AXIS of logits z at class numbers `index`; what is not valid does not exist."""
    largest = tl.max(tl.where(valid & (z == z), z, float("-inf")), AXIS)
    total = tl.sum(tl.where(valid, tl.exp(z - tl.expand_dims(safe(largest), AXIS)), 0.0), AXIS)
    key = tl.where(z == tl.expand_dims(largest, AXIS), index + _FIRST_NUMBER, _NO_KEY)
    key = tl.where(z != z, index, key)
    return largest, total, tl.min(tl.where(valid, key, _NO_KEY), AXIS)


@triton.jit
def kept(key, largest, overall):  # type: ignore[no-untyped-def]
    """The key of a part if the prediction may be there: it holds NaN or the overall maximum."""
    return tl.where((key < _FIRST_NUMBER) | (largest == overall), key, _NO_KEY)


@triton.jit
def merged(largest_a, total_a, key_a, largest_b, total_b, key_b):  # type: ignore[no-untyped-def]
    """The statistics of two parts of a row as those of both."""
    largest = tl.maximum(largest_a, largest_b)
    total = total_a * tl.exp(largest_a - safe(largest)) + total_b * tl.exp(largest_b - safe(largest))
    return largest, total, tl.minimum(kept(key_a, largest_a, largest), kept(key_b, largest_b, largest))


@triton.jit
def finished(largest, total, key, target_logit, target, C):  # type: ignore[no-untyped-def]
    """Loss (float64) and prediction (int64) of rows: 0 for an ignored target, NaN for one that is no class."""
    loss = (largest.to(tl.float64) - target_logit.to(tl.float64)) + tl.log(total).to(tl.float64)
    loss = tl.where((target >= 0) & (target < C), loss, float("nan"))
    loss = tl.where(target == _IGNORED, 0.0, loss)
    return loss, tl.where(key < _FIRST_NUMBER, key, key - _FIRST_NUMBER).to(tl.int64)


@triton.jit(do_not_specialize=["M", "row_tiles"])
def cross_entropy_fwd_kernel(  # type: ignore[no-untyped-def]
    logits,  # [P, M, C]
    targets,  # [M] int64
    losses,  # [P, M] float64
    predictions,  # [P, M] int64
    M,
    C,
    row_tiles,  # of one point
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    inside = row < M
    out_row = (tl.program_id(0) // row_tiles).to(tl.int64) * M + row
    target = tl.load(targets + row, mask=inside, other=-1)
    row_at = logits + out_row * C

    largest = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    key = tl.full([ROWS], _NO_KEY, tl.int32)
    for start in range(0, bound(C), BLOCK):
        index = start + tl.arange(0, BLOCK)[None, :]
        valid = inside[:, None] & (index < C)
        z = tl.load(row_at[:, None] + index, mask=valid, other=0.0).to(WIDE)
        tile_largest, tile_total, tile_key = tile_statistics(z, index, valid, 1)
        largest, total, key = merged(largest, total, key, tile_largest, tile_total, tile_key)

    is_class = inside & (target >= 0) & (target < C)
    target_logit = tl.load(row_at + target, mask=is_class, other=0.0).to(WIDE)
    loss, prediction = finished(largest, total, key, target_logit, target, C)
    tl.store(losses + out_row, loss, mask=inside)
    tl.store(predictions + out_row, prediction, mask=inside)


def takes(logits: Tensor) -> bool:
    """Whether `cross_entropy` serves such logits."""
    return logits.dtype in DTYPES and logits.ndim == 3 and 0 < logits.shape[2] < MAX_CLASSES


def cross_entropy(
    logits: Tensor,  # [P, M, C]
    targets: Tensor,  # [M] int64
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """-log softmax(logits)[target] and the arg max of every row, as `mli_fast.ops.cross_entropy.cross_entropy`.

    Args:
        logits: contiguous; float32, float64, float16 or bfloat16; sums in float32, or float64 for float64.
        targets: class numbers, or -100 for rows to ignore; a row whose target is no class has loss NaN.

    Returns:
        losses in float64, 0 where the target is -100, NaN where the row holds NaN; predicted classes, the first of
        equal ones, of a row with NaN the first NaN.

    Raises:
        ValueError: a shape, dtype or memory layout does not fit.
    """
    if not takes(logits) or not logits.is_contiguous():
        raise ValueError(
            "logits: expected contiguous floating [P, M, C] with C > 0, got "
            f"{tuple(logits.shape)}, strides {logits.stride()}, {logits.dtype}"
        )
    check_targets(targets, logits.shape[1], logits.device)
    P, M, C = logits.shape
    losses = torch.empty(P, M, dtype=torch.float64, device=logits.device)
    predictions = torch.empty(P, M, dtype=torch.int64, device=logits.device)
    if losses.numel():
        block = min(triton.next_power_of_2(C), _ROW_BLOCK)
        rows = min(max(1, _TILE // block), triton.next_power_of_2(M))
        row_tiles = triton.cdiv(M, rows)
        wide = tl.float64 if logits.dtype == torch.float64 else tl.float32
        with on_device(logits):
            cross_entropy_fwd_kernel[(P * row_tiles,)](
                logits, targets, losses, predictions, M, C, row_tiles, ROWS=rows, BLOCK=block, WIDE=wide, num_warps=4
            )
    return losses, predictions


def check_targets(targets: Tensor, rows: int, device: torch.device) -> None:
    """Raise ValueError unless targets are contiguous int64 [rows] on that device."""
    if targets.shape != (rows,) or targets.dtype != torch.int64 or not targets.is_contiguous():
        raise ValueError(f"targets: expected contiguous int64 [{rows}], got {targets.dtype} {tuple(targets.shape)}")
    if targets.device != device:
        raise ValueError(f"targets: on {targets.device}, the logits on {device}")
