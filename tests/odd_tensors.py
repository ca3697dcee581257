"""Tensors whose memory does not hold their values as they are, or holds none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def negative(tensor: Tensor) -> Tensor:
    """The same values by a negative view: memory holds them with the other sign."""
    return torch._neg_view(tensor.neg())


def expanded(tensor: Tensor) -> Tensor:
    """The first row in the place of all rows, by stride 0."""
    return (
        tensor[:1].clone().expand(tensor.shape) if tensor.shape[0] > 1 else tensor[..., :1].clone().expand(tensor.shape)
    )


def freed(tensor: Tensor) -> Tensor:
    """A copy without its storage, as FSDP leaves a parameter between uses."""
    return shrunk(tensor, 0)


def shrunk(tensor: Tensor, size: int = 4) -> Tensor:
    """A copy whose storage keeps `size` bytes."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(size)
    return copy


class Wrapped(Tensor):
    """A subclass without memory of its own, as DTensor and torchao's quantised weights are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, Wrapped) else t, (args, kwargs or {}))
        return tree_map(lambda t: Wrapped(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


def wrapped(tensor: Tensor) -> Tensor:
    """The same values in a `Wrapped`."""
    return Wrapped(tensor)
