"""Cross entropy, argmax and their sums in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast.native.checks import check, check_dtype
from mli_fast.native.loading import require


class CrossEntropy(NamedTuple):
    """What `cross_entropy` returns."""

    losses: Tensor  # [P, M] float64; 0 where the target is ignored
    predictions: Tensor  # [P, M] int64
    loss_sums: Tensor  # [P] float64
    hits: Tensor  # [P] int64, correct predictions


def cross_entropy(
    logits: Tensor,  # [P, M, C]
    targets: Tensor,  # [M]
    ignore_index: int = -100,
) -> CrossEntropy:
    """Cross entropy, argmax and their sums over rows in one pass.

    Args:
        logits: float32 or float64, contiguous.
        targets: int64 class numbers, the same for all points.
        ignore_index: Rows with this target have loss 0 and are not counted; their prediction is given all the same.

    Returns:
        Losses, predictions (the first index on ties, NaN counts as largest, as ``torch.argmax``) and their sums.

    Raises:
        ValueError: A shape, dtype, memory layout or target does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = require()
    dtype = check_dtype("logits", logits)
    if logits.dim() != 3 or logits.shape[2] == 0:
        raise ValueError(f"logits: expected [P, M, C] with C > 0, got shape {tuple(logits.shape)}")
    points, rows, classes = logits.shape
    result = CrossEntropy(
        torch.empty((points, rows), dtype=torch.float64),
        torch.empty((points, rows), dtype=torch.int64),
        torch.empty(points, dtype=torch.float64),
        torch.empty(points, dtype=torch.int64),
    )
    native.cross_entropy(
        dtype is torch.float64,
        check("logits", logits, logits.shape, dtype),
        check("targets", targets, (rows,), torch.int64),
        (points, rows, classes),
        ignore_index,
        (result[0].data_ptr(), result[1].data_ptr(), result[2].data_ptr(), result[3].data_ptr()),
        torch.get_num_threads(),
    )
    return result
