"""Batches and outputs as trees: nested tuples, lists, mappings and dataclasses, with tensors and data as leaves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mapped(f: Callable[[Any], Any], x: Any) -> Any:
    """`x` with f applied to every leaf; containers keep their types."""
    if isinstance(x, (tuple, list)):
        items = [mapped(f, item) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if type(x) is dict:
        return {k: mapped(f, v) for k, v in x.items()}
    if isinstance(x, Mapping):
        return _refilled(x, {k: mapped(f, v) for k, v in x.items()})
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        same = copy.copy(x)
        for field in dataclasses.fields(x):
            if hasattr(x, field.name):
                object.__setattr__(same, field.name, mapped(f, getattr(x, field.name)))
        return same
    return f(x)


def _refilled(x: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the type of x with other values."""
    try:
        same = copy.copy(x)
        for k, v in items.items():
            same[k] = v  # type: ignore[index]
    except Exception:  # noqa: BLE001 - a mapping that cannot be copied or written to
        return items
    return same


def leaves_of(x: Any) -> list[Any]:
    """The leaves of `x` in the order in which `mapped` meets them."""
    found: list[Any] = []
    mapped(found.append, x)
    return found


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors of `x`."""
    return (leaf for leaf in leaves_of(x) if isinstance(leaf, Tensor))


def filled(x: Any, leaves: Any) -> Any:
    """`x` with other leaves in the places of its own."""
    given = iter(leaves)
    return mapped(lambda _: next(given), x)


def copied(x: Any) -> Any:
    """`x` with a copy of every tensor, which a model may write to; strides and shared memory are as they were."""
    leaves = leaves_of(x)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    copies = iter(same_geometry(tensors))
    return filled(x, [next(copies) if isinstance(leaf, Tensor) else leaf for leaf in leaves])


def same_geometry(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies with the sizes and strides of the originals; those that share memory do so again, from offset 0 on."""
    groups: dict[Any, list[int]] = {}
    copies: list[Tensor | None] = [None if _is_strided(t) else t.detach().clone() for t in tensors]
    for i, tensor in enumerate(tensors):
        if copies[i] is None:
            groups.setdefault((tensor.untyped_storage()._cdata, tensor.dtype), []).append(i)
    for members in groups.values():
        start = min(tensors[i].storage_offset() for i in members)
        stop = max(tensors[i].storage_offset() + _span(tensors[i]) for i in members)
        flat = tensors[members[0]].detach().as_strided((stop - start,), (1,), start).clone()
        for i in members:
            t = tensors[i]
            copies[i] = flat.as_strided(t.shape, t.stride(), t.storage_offset() - start)
    return copies  # type: ignore[return-value]


def _is_strided(tensor: Tensor) -> bool:
    kind = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    odd = tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested
    return kind and tensor.layout is torch.strided and not odd


def _span(tensor: Tensor) -> int:
    """How many elements of memory lie between the first and the last, both included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
