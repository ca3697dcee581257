"""Low precision on the CPU: operands are rounded, sums are taken in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the dtype its products are accumulated in: float32 for half precisions, else its own."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
