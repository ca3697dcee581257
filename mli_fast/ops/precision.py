"""Low precision: operands are rounded, sums are taken in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the dtype its products are computed in: on the CPU float32 for half precisions, else its own.

    A GPU's products of half precision sum in float32 by themselves.
    """
    narrow = tensor.dtype in (torch.bfloat16, torch.float16) and tensor.device.type == "cpu"
    return tensor.float() if narrow else tensor
