"""The cross entropy in plain PyTorch: the contract as code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.blend.reference import accumulation_dtype


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """See `mli_fast.ops.cross_entropy.cross_entropy`."""
    rows = [F.cross_entropy(z.to(accumulation_dtype(z.dtype)), targets, reduction="none").double() for z in logits]
    return torch.stack(rows), logits.argmax(-1)
