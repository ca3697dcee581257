"""What the CUDA kernels require of tensors, as addresses or as errors that name the tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.native.checks import address

VECTOR = 16  # bytes that the kernels move at once


def check(
    name: str, tensor: Tensor, shape: Sequence[int], dtypes: torch.dtype | Sequence[torch.dtype], device: torch.device
) -> int:
    """Address of a contiguous tensor of exactly this shape, of one of these dtypes, on this device."""
    allowed = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    if tensor.shape != tuple(shape) or tensor.dtype not in allowed:
        expected = " or ".join(str(d) for d in dict.fromkeys(allowed))
        raise ValueError(
            f"{name}: expected {expected} of shape {tuple(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: needs contiguous memory on {device}, got {tensor.device}, strides {tensor.stride()} for shape "
            f"{tuple(tensor.shape)}"
        )
    return address(name, tensor)


def aligned(*addresses_or_sizes: int) -> bool:
    """Whether all are multiples of what the kernels move at once."""
    return all(n % VECTOR == 0 for n in addresses_or_sizes)
