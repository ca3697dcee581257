"""Cross entropy and argmax in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from mli_fast.native.checks import check, check_dtype
from mli_fast.native.loading import require


def cross_entropy(
    logits: Tensor,  # [P, M, C]
    targets: Tensor,  # [M]
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """Cross entropy and argmax of every row in one pass.

    Args:
        logits: float32 or float64, contiguous.
        targets: int64 class numbers, the same for all points.
        ignore_index: Rows with this target have loss 0 and are not counted; their prediction is given all the same.

    Returns:
        Losses, 0 where the target is ignored; predictions (the first index on ties, NaN counts as largest, as
        ``torch.argmax``).

    Raises:
        ValueError: A shape, dtype, memory layout or target does not fit.
        RuntimeError: The compiled module is missing.
    """
    native = require()
    dtype = check_dtype("logits", logits)
    if logits.dim() != 3 or logits.shape[2] == 0:
        raise ValueError(f"logits: expected [P, M, C] with C > 0, got shape {tuple(logits.shape)}")
    points, rows, classes = logits.shape
    losses = torch.empty((points, rows), dtype=torch.float64, device="cpu")
    predictions = torch.empty((points, rows), dtype=torch.int64, device="cpu")
    native.cross_entropy(
        dtype is torch.float64,
        check("logits", logits, logits.shape, dtype),
        check("targets", targets, (rows,), torch.int64),
        (points, rows, classes),
        ignore_index,
        losses.data_ptr(),
        predictions.data_ptr(),
        torch.get_num_threads(),
    )
    return losses, predictions
