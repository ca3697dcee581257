"""What a loader gives, as inputs for a model and targets for a criterion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mli_fast.capture.operators import PLAIN_DATA
from mli_fast.native.checks import unreadable
from mli_fast.trees import as_tensor, attributes_of, holds_tensors, leaves_of, tensors_in

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]


def is_pair(loader: Any) -> bool:
    """Whether `loader` is one (X, y) pair of tensors or arrays rather than an iterable of batches."""
    return (
        isinstance(loader, (tuple, list))
        and len(loader) == 2
        and all(isinstance(t, (Tensor, np.ndarray)) for t in loader)
    )


def checked_pair(loader: Any, called: str = "loader") -> tuple[Tensor, Tensor]:
    """The (X, y) pair as tensors; messages call it `called`.

    Raises:
        ValueError: unequal lengths, no examples, no dimension to cut along, or no memory that holds the values.
    """
    x, y = (as_tensor(t) for t in loader)
    check_readable(x, f"{called}=(X, y): X")
    check_readable(y, f"{called}=(X, y): y")
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(f"{called}=(X, y): both need a first dimension of examples, got shapes {shapes((x, y))}")
    if len(x) != len(y):
        raise ValueError(f"{called}=(X, y): X has {len(x)} examples and y has {len(y)}; they must be equally many")
    if len(x) == 0:
        raise ValueError(f"{called}=(X, y) is empty: there is nothing to evaluate")
    return x, y


def check_batch(batch: Any) -> None:
    """Raise where a batch cannot be read, or cannot be read once for every point.

    Raises:
        ValueError: it holds an iterator, or a tensor whose values cannot be read.
    """
    check_readable(batch)
    for leaf in leaves_of(batch):
        if isinstance(leaf, Iterator):
            raise ValueError(
                f"the batch is or holds a {type(leaf).__name__}, which can be read only once, and every point reads "
                "it: put a tensor or a list in its place"
            )


def check_readable(batch: Any, called: str = "a tensor of the batch") -> None:
    """Raise where a tensor's values cannot be read: PyTorch's operators would crash.

    Raises:
        ValueError: its storage was freed, or it is a subclass whose values are elsewhere.
    """
    for tensor in tensors_in(batch):
        dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
        if dense and (reason := unreadable(tensor)) is not None:
            raise ValueError(f"{called} (shape {tuple(tensor.shape)}, {tensor.dtype}) is {reason}; pass a plain tensor")


def cut(pair: tuple[Tensor, Tensor], rows: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of `rows` examples, the last one with what is left; views."""
    return list(zip(pair[0].split(rows), pair[1].split(rows), strict=True))


def checked_loader(loader: Any, called: str = "loader") -> Iterable[Any]:
    """The loader, if it can be iterated; messages call it `called`.

    Raises:
        TypeError: it cannot.
    """
    if isinstance(loader, (Tensor, str, bytes, Mapping)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{called}: expected an iterable of (inputs, targets) or of dicts, or one (X, y) pair, got "
            f"{type(loader).__name__}"
        )
    return loader


def examples(batch: Any) -> int:
    """How many examples a batch has: the length of its longest tensor."""
    return max((len(t) for t in tensors_in(batch) if t.ndim), default=1)


def shapes(x: Any) -> Any:
    """The shapes of the tensors in a batch, for messages."""
    if isinstance(x, Tensor):
        return tuple(x.shape)
    if isinstance(x, Mapping):
        return {k: shapes(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return [shapes(v) for v in x]
    return type(x).__name__


def logits(outputs: Any) -> Any:
    """The tensor to score: the outputs themselves, or their `.logits`."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if isinstance(getattr(outputs, "logits", None), Tensor):
        return outputs.logits
    raise ValueError(
        f"the model returned {type(outputs).__name__}, not a tensor or something with .logits; "
        "say what to score with forward=lambda model, batch: (outputs, targets)"
    )


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """(outputs, targets) of an (inputs, targets) pair or of a dict with `labels`.

    Raises:
        ValueError: the batch is neither (the message says what it is).
    """
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(
                f"the batch is a dict without 'labels' (it has {', '.join(map(repr, batch))}); use forward="
            )
        return logits(_called(model, {k: v for k, v in batch.items() if k != "labels"})), batch["labels"]
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(
            f"a batch has to be (inputs, targets) or a dict with 'labels', got {what}; for any other layout pass "
            "forward=lambda model, batch: (outputs, targets)"
        )
    inputs, targets = batch
    return logits(_called(model, inputs)), targets


def _called(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: of a mapping by name, of a tuple or list one by one; errors say what it was given."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, (tuple, list)):
            return model(*inputs)
        return model(inputs)
    except (RuntimeError, TypeError) as error:
        seen = ", ".join([str(shapes(inputs)), *sorted({str(t.dtype) for t in tensors_in(inputs)})])
        error.add_note(
            f"mli_fast: the model was called with inputs of shapes {seen}; "
            "forward=lambda model, batch: (outputs, targets) calls it otherwise, precision= casts floating inputs"
        )
        raise


class Unreadable(Exception):
    """A batch that holds something that cannot be looked into."""


def kind(batch: Any) -> Any:
    """What batches have in common that one record serves: structure, geometry, dtypes, and everything but numbers.

    Raises:
        Unreadable: a leaf is neither a tensor nor plain data.
    """
    memory: dict[int, tuple[int, int]] = {}  # storage -> the first tensor in it, and the byte where that starts
    parts: list[Any] = []

    def note(leaf: Any) -> None:
        if isinstance(leaf, Tensor):
            plain = type(leaf) in (Tensor, nn.Parameter, nn.Buffer) and leaf.layout is torch.strided
            if leaf.__dict__:
                raise Unreadable(f"the batch holds a tensor with attributes ({', '.join(leaf.__dict__)})")
            if not plain or leaf.is_nested or leaf.is_neg() or leaf.is_conj():
                raise Unreadable(f"the batch holds a {type(leaf).__name__} of layout {leaf.layout}")
            start = int(leaf.storage_offset()) * leaf.itemsize
            first, begin = memory.setdefault(leaf.untyped_storage()._cdata, (len(parts), start))
            parts.append((tuple(leaf.shape), leaf.stride(), first, start - begin, leaf.dtype, leaf.device))
        elif type(leaf) in PLAIN_DATA:
            parts.append((type(leaf).__name__, repr(leaf)))
        else:
            raise Unreadable(f"the batch holds a {type(leaf).__name__}, which cannot be looked into")

    for leaf in leaves_of(batch):
        note(leaf)
    return _form(batch), tuple(parts)


def _form(x: Any) -> Any:
    """The containers of a batch, with what hangs on them beside their items."""
    if isinstance(x, (tuple, list)):
        items: Any = tuple(_form(item) for item in x)
    elif isinstance(x, Mapping):
        items = tuple((key, _form(item)) for key, item in x.items())
    elif dataclasses.is_dataclass(x):
        items = tuple((f.name, _form(getattr(x, f.name, None))) for f in dataclasses.fields(x))
    elif holds_tensors(x):
        return type(x).__name__, tuple((name, _form(value)) for name, value in attributes_of(x))
    else:
        return ""
    return type(x).__name__, items, tuple(_beside(x))


def _beside(x: Any) -> Iterator[tuple[str, str, str]]:
    known = {f.name for f in dataclasses.fields(x)} if dataclasses.is_dataclass(x) else set()
    known |= set(x) if isinstance(x, Mapping) else set()
    for name, value in getattr(x, "__dict__", {}).items():
        if name in known or name.startswith("_") or (isinstance(x, Mapping) and isinstance(value, Mapping)):
            continue  # a mapping that wraps another one
        if type(value) not in PLAIN_DATA:
            raise Unreadable(f"the batch holds a {type(x).__name__} with {name!r}, a {type(value).__name__}")
        yield name, type(value).__name__, repr(value)
