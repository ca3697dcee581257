"""What the ops share about points: coefficients on their device, memory as the kernels want it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

BUFFER_BYTES = 2**25  # about half of the L2 cache of the GPUs this is for


def blended_together(weight: Tensor, dtype: torch.dtype) -> int:
    """How many points' values of a weight to blend in one go before they are multiplied.

    On a GPU as many as are still in its cache then; on the CPU one.
    """
    return max(1, BUFFER_BYTES // max(weight.numel() * dtype.itemsize, 1)) if weight.is_cuda else 1


def asynchronous(tensor: Tensor) -> bool:
    """Whether reading the tensor's values would synchronise with a GPU."""
    return tensor.is_cuda


def placed(coefficients: Tensor, device: torch.device) -> Tensor:
    """Coefficients on `device`, contiguous; those of constants, the only ones elsewhere, are sent there once."""
    if coefficients.device == device:
        return coefficients.contiguous()
    return _sent(tuple(coefficients.shape), tuple(coefficients.flatten().tolist()), device)


@lru_cache(maxsize=256)
def _sent(shape: tuple[int, ...], values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device).reshape(shape)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it does not start on a cache line.

    A point's slice of a larger tensor starts anywhere, and the vendor's products round differently there.
    """
    return tensor if is_aligned(tensor) else tensor.clone()


def is_aligned(tensor: Tensor) -> bool:
    """Whether a tensor starts on a cache line; on a GPU nothing depends on it."""
    in_memory = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_nested
    return not in_memory or tensor.data_ptr() % 64 == 0


def packed(tensor: Tensor | None) -> Tensor | None:
    """The tensor contiguous in memory, None for None."""
    return None if tensor is None else tensor.contiguous()


def channels_last(tensor: Tensor) -> Tensor:
    """[B, C, *spatial] with the channels innermost in memory; copied only if they are not."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def as_rows(tensor: Tensor, channel: int) -> Tensor | None:
    """A view [M, N] with the channels as columns, None where the memory is laid out otherwise."""
    tensor = tensor.movedim(channel, -1)
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.is_contiguous() else None


def stack(rows: Sequence[Tensor]) -> Tensor:
    """P tensors of one shape as one [P, ...]; channels that are innermost in memory stay so."""
    first = rows[0]
    if len(rows) == 1:
        return first[None]
    if first.ndim > 2 and not first.is_contiguous():
        return torch.stack([r.movedim(1, -1) for r in rows]).movedim(-1, 2)
    return torch.stack(list(rows))
