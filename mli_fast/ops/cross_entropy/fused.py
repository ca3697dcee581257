"""The last product and its cross entropy, fused, in plain PyTorch: the contract as code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.ops.blend import blend
from mli_fast.ops.cross_entropy import reference
from mli_fast.ops.linear.reference import product

CHUNK = 2**24  # logits that exist at a time


def linear_cross_entropy(
    x: Tensor,  # [P, M, K] or [M, K] for all points
    weights: Sequence[Tensor],  # R x [V, K]
    coefficients: Tensor,  # [P, R] float64
    shift: Tensor | None,  # [P, V]
    targets: Tensor,  # [M] int64
    *,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """Cross entropy and arg max of the logits x W(p)^T + shift, of which only one chunk of rows exists at a time.

    The logits are what `mli_fast.ops.linear.reference.product` gives: float32 or wider, but on a GPU x's own dtype.

    Args:
        x: inputs of the last layer, in the compute dtype.
        weights: R weights of one shape.
        coefficients: float64 [P, R].
        shift: bias per point.
        targets: class numbers, or -100 for rows to ignore; the caller has checked them.
        tf32: allowed, and not used here.

    Returns:
        losses and predictions, as `mli_fast.ops.cross_entropy.cross_entropy` returns them.
    """
    P, M, V = len(coefficients), x.shape[-2], weights[0].shape[0]
    losses = torch.empty(P, M, dtype=torch.float64, device=x.device)
    predictions = torch.empty(P, M, dtype=torch.int64, device=x.device)
    rows = max(1, CHUNK // max(V, 1))
    for p in range(P):
        weight = blend(weights, coefficients[p : p + 1], x.dtype)[0]
        inputs = x if x.ndim == 2 else x[p]
        for start in range(0, M, rows):
            part = slice(start, min(start + rows, M))
            logits = product(inputs[part], weight)
            if shift is not None:
                logits = logits + shift[p].to(logits.dtype)
            loss, prediction = reference.cross_entropy(logits[None], targets[part])
            losses[p, part], predictions[p, part] = loss[0], prediction[0]
    return losses, predictions
