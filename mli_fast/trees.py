"""Batches and outputs as trees: nested tuples, lists, mappings and objects that hold tensors; all else are leaves."""

from __future__ import annotations

import copy
import copyreg
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mapped(f: Callable[[Any], Any], x: Any, objects: bool = True) -> Any:
    """`x` with f applied to every leaf; containers keep their types. Without `objects` these are leaves."""
    return _mapped(f, x, () if objects else None)


def _mapped(f: Callable[[Any], Any], x: Any, within: tuple[int, ...] | None) -> Any:
    """`mapped`, within objects of these identities; None for no objects."""

    def inner(item: Any) -> Any:
        return _mapped(f, item, within)

    if isinstance(x, (tuple, list)) and type(x) is not torch.Size:  # one holds nothing but numbers
        return _resequenced(x, [inner(item) for item in x])
    if type(x) is dict:
        return {k: inner(v) for k, v in x.items()}
    if isinstance(x, Mapping):
        return _refilled(x, {k: inner(v) for k, v in x.items()})
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        same = copy.copy(x)
        for field in dataclasses.fields(x):
            if hasattr(x, field.name):
                object.__setattr__(same, field.name, inner(getattr(x, field.name)))
        return same
    if within is not None and id(x) not in within and holds_tensors(x):
        within = (*within, id(x))
        try:
            same = copy.copy(x)
        except Exception:  # noqa: BLE001 - whatever a class of the caller's raises that is not to be copied
            return f(x)
        for name, held in attributes_of(x):
            object.__setattr__(same, name, inner(held))
        return same
    return f(x)


def holds_tensors(x: Any) -> bool:
    """Whether x is an object of a class of anyone's that has tensors, or mappings of tensors, as attributes."""
    if isinstance(x, (Tensor, torch.nn.Module, type)):
        return False
    return any(
        isinstance(item, Tensor)
        for _, held in attributes_of(x)
        for item in (held.values() if isinstance(held, Mapping) else (held,))
    )


def attributes_of(x: Any) -> list[tuple[str, Any]]:
    """What an object holds by name, in its `__dict__` and in slots."""
    slots = copyreg._slotnames(type(x))  # type: ignore[attr-defined]  # what copy and pickle ask
    return [*getattr(x, "__dict__", {}).items(), *((name, getattr(x, name)) for name in slots if hasattr(x, name))]


def _resequenced(x: Any, items: list[Any]) -> Any:
    """A list or tuple of the type of x, with its attributes, and with other items."""
    if type(x) in (list, tuple):
        return type(x)(items)
    if isinstance(x, list):
        same = copy.copy(x)
        same[:] = items
        return same
    same = x._make(items) if hasattr(x, "_make") else type(x)(items)  # `_make` asks no `__new__` of its own
    if hasattr(x, "__dict__"):
        same.__dict__.update(x.__dict__)
    return same


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


def bytes_in(x: Any) -> int:
    """Those of the tensors of `x`."""
    return sum(t.numel() * t.element_size() for t in tensors_in(x))


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


def as_tensor(x: Any, device: torch.device | str = "cpu") -> Tensor:
    """A tensor as it is, anything else as one on `device`: `torch.as_tensor` takes both to the caller's default one."""
    return x if isinstance(x, Tensor) else torch.as_tensor(x, device=device)


def laid_out(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The tensor with these strides, a copy where it has others."""
    if tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def same_geometry(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies with the sizes and strides of the originals; those that share memory do so again, from its start on."""
    groups: dict[Any, list[int]] = {}
    copies: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        if _is_wrapped(tensor):
            copies.append(tensor.clone())
        else:
            copies.append(tensor.detach())
            if has_memory(tensor):
                groups.setdefault(tensor.untyped_storage()._cdata, []).append(i)
            else:
                copies[i] = copies[i].clone()
    for members in groups.values():
        for i, copy_ in zip(members, _same_memory([copies[i] for i in members]), strict=True):
            copies[i] = copy_
    for tensor, copy_ in zip(tensors, copies, strict=True):
        if tensor.__dict__:
            copy_.__dict__.update(tensor.__dict__)
    return copies


def _same_memory(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors in one storage, of whatever dtypes, in a copy of the part that they lie in."""
    start = min(t.storage_offset() * t.itemsize for t in tensors)
    stop = max((t.storage_offset() + _span(t)) * t.itemsize for t in tensors)
    mixed = len({t.dtype for t in tensors}) > 1
    if mixed:
        widest = max(t.itemsize for t in tensors)
        start -= start % widest
    finest = min(tensors, key=lambda t: t.itemsize)
    flat = finest.as_strided(((stop - start) // finest.itemsize,), (1,), start // finest.itemsize)
    if mixed:  # copied as bytes, of a number that every dtype divides
        flat = torch.cat([flat.view(torch.uint8), flat.new_zeros((start - stop) % widest, dtype=torch.uint8)])
    else:
        flat = flat.clone()
    return [  # `.data` is no view: what is given may be detached in place
        (flat.view(t.dtype) if mixed else flat)
        .as_strided(t.shape, t.stride(), t.storage_offset() - start // t.itemsize)
        .data
        for t in tensors
    ]


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether it is a transform's of torch.func, which has no memory to look at."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in memory, which others may share."""
    if _is_wrapped(tensor):
        return False
    kind = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    odd = tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested
    return kind and tensor.layout is torch.strided and not odd


def _span(tensor: Tensor) -> int:
    """How many elements of memory lie between the first and the last, both included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
