"""What is the same at every point of one batch: computed at the first point, remembered for the others."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from mli_fast.blended.tensors import BlendedTensor, CannotDefer, Shared

_current: ContextVar[Memo | None] = ContextVar("mli_fast_memo", default=None)


def current() -> Memo | None:
    """The memo of the batch that is being evaluated, None where nothing is remembered."""
    return _current.get()


@contextlib.contextmanager
def remembering(memo: Memo | None) -> Iterator[None]:
    """Evaluate with this memo."""
    token = _current.set(memo)
    try:
        yield
    finally:
        _current.reset(token)


_made: ContextVar[list[Tensor] | None] = ContextVar("mli_fast_made", default=None)


@contextlib.contextmanager
def _recomputing() -> Iterator[list[Tensor]]:
    """What is recomputed on the way to one value lives until that value is there: branches share it."""
    outer = _made.get()
    token = _made.set([] if outer is None else outer)
    try:
        yield _made.get()  # type: ignore[misc]
    finally:
        _made.reset(token)


class Held:
    """What keeps remembered values in memory: those that work on points reads, and of all others those used last.

    Args:
        others: bytes of the others, at most.
    """

    def __init__(self, others: int) -> None:
        self.read: dict[int, Tensor] = {}  # id of an entry -> value
        self._most, self._last = others, dict[int, Tensor]()  # id of a value -> value, the one used last at the end

    def used(self, value: Tensor) -> None:
        """Note that a value was made or looked at."""
        if not self._most:
            return
        self._last.pop(id(value), None)
        self._last[id(value)] = value
        while sum(v.nbytes for v in self._last.values()) > self._most:
            del self._last[next(iter(self._last))]


class Entry:
    """One remembered tensor: kept alive only if point-dependent work reads it, else recomputed if ever needed."""

    def __init__(self, value: Tensor, recompute: Callable[[], Tensor], held: Held) -> None:
        self.shape, self.dtype, self.device = tuple(value.shape), value.dtype, value.device
        self.alive: Callable[[], Tensor | None] = weakref.ref(value)
        self._recompute, self._held = recompute, held
        held.used(value)

    def value(self) -> Tensor:
        """The value, recomputed if it is gone."""
        value = self.alive()
        if value is None:
            with _recomputing() as made:
                value = self._recompute()
                made.append(value)
            self.alive = weakref.ref(value)
        self._held.used(value)
        return value

    def keep(self) -> Tensor:
        """The value, kept for the rest of the batch or until the memo lets go."""
        value = self._held.read[id(self)] = self.value()
        return value


class Memo:
    """The remembered values of one batch.

    Args:
        others: bytes that may go to values which no work on points reads, for works that follow.
    """

    def __init__(self, others: int = 0) -> None:
        self._results: dict[Any, Any] = {}  # key -> structure of entries and plain values
        self._products: dict[Any, list[Tensor]] = {}
        self._held = Held(others)
        self._viewed: set[int] = set()  # storages that more than one remembered tensor looks at

    def let_go(self) -> None:
        """Free what only the points so far have read; what was used last may stay."""
        self._products.clear()
        self._held.read.clear()

    def share(self, tensor: Tensor) -> Shared:
        """A batch tensor, as the same at every point."""
        key = ("input", id(tensor))
        if key not in self._results:
            self._results[key] = Entry(tensor, lambda: tensor, self._held)
        return Shared.make(self._results[key])

    def products(self, key: Any, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The R products of a shared input."""
        if key not in self._products:
            self._products[key] = compute()
        return self._products[key]

    def call(self, func: Callable, args: tuple, kwargs: dict, key: Any) -> Any:
        """`func` on shared arguments: called at the first point, looked up at the others."""
        if key in self._results:
            return _handles(self._results[key])
        args, kwargs = _entries(args), _entries(kwargs)
        values = _values(args), _values(kwargs)
        result = func(*values[0], **values[1])
        self._note_views(values, result)
        structure = _structure(result, lambda: func(*_values(args), **_values(kwargs)), self._held)
        if structure is _NOT_REMEMBERED:
            return result
        self._results[key] = structure
        return _handles(structure)

    def private(self, tensor: Shared) -> Tensor:
        """A copy for one point to change in place.

        Raises:
            CannotDefer: another remembered tensor is a view of the same memory and would not see the change.
        """
        if tensor.resolve().untyped_storage().data_ptr() in self._viewed:
            raise CannotDefer("the model changes a tensor in place that is the same at every point and has views")
        return tensor.make_private()

    def _note_views(self, values: Any, result: Any) -> None:
        before = {t.untyped_storage().data_ptr() for t in tensors_in(values)}
        self._viewed |= before & {t.untyped_storage().data_ptr() for t in tensors_in(result)}


def key_of(func: Callable, args: Any, kwargs: Any) -> Any:
    """A key under which the result of a call on shared arguments can be remembered; None where it has none."""
    try:
        key = (func, _key(args), _key(kwargs))
        hash(key)
    except (TypeError, _NotShared):
        return None
    return key


class _NotShared(Exception):
    pass


def _key(x: Any) -> Any:
    if isinstance(x, Tensor):
        if isinstance(x, Shared) and x.entry is not None:
            return ("shared", id(x.entry))
        if isinstance(x, BlendedTensor) and x.constant:
            return ("constant", *map(id, x.anchors), x.dtype)
        raise _NotShared
    if isinstance(x, (tuple, list)):
        return (type(x), tuple(map(_key, x)))
    if isinstance(x, dict):
        return tuple((k, _key(v)) for k, v in x.items())
    if isinstance(x, slice):
        return (slice, _key(x.start), _key(x.stop), _key(x.step))
    return (type(x), x)


def tensors_in(x: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for item in x:
            yield from tensors_in(item)
    elif isinstance(x, dict):
        yield from tensors_in(list(x.values()))


def mapped(f: Callable[[Any], Any], x: Any) -> Any:
    """`x` with f applied to every leaf of its nested tuples, lists and dicts."""
    if isinstance(x, (tuple, list)):
        items = [mapped(f, item) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if isinstance(x, dict):
        return {k: mapped(f, v) for k, v in x.items()}
    return f(x)


def copied(x: Any) -> Any:
    """`x` with a copy of every tensor in its nested tuples, lists and dicts, which a model may write to."""
    return mapped(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, x)


def _entries(x: Any) -> Any:
    return mapped(lambda leaf: leaf.entry if isinstance(leaf, Shared) else leaf, x)


def _values(x: Any) -> Any:
    def value(leaf: Any) -> Any:
        if isinstance(leaf, Entry):
            return leaf.value()
        return leaf.resolve() if isinstance(leaf, BlendedTensor) else leaf

    return mapped(value, x)


_NOT_REMEMBERED = object()
_PLAIN = (int, float, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _structure(result: Any, again: Callable[[], Any], held: Held) -> Any:
    """The result with entries for its tensors; `_NOT_REMEMBERED` where it holds anything else that could change."""
    if isinstance(result, Tensor):
        return Entry(result, again, held)
    if isinstance(result, _PLAIN):
        return result
    if isinstance(result, (tuple, list)):
        items = [_structure(item, lambda i=i: again()[i], held) for i, item in enumerate(result)]  # type: ignore[misc]
        return _NOT_REMEMBERED if any(i is _NOT_REMEMBERED for i in items) else (type(result), items)
    return _NOT_REMEMBERED


def _handles(structure: Any) -> Any:
    if isinstance(structure, Entry):
        return Shared.make(structure)
    if type(structure) is tuple:
        kind, items = structure
        handles: Sequence[Any] = [_handles(i) for i in items]
        return kind(*handles) if hasattr(kind, "_fields") else kind(handles)
    return structure
