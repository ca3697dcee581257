"""What a model keeps besides its parameters: containers, numbers and tensors on its modules, seen and put back."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Collection, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from mli_fast.trees import has_memory

MOST = 50_000  # containers that are looked into
_NUMBERS = frozenset((int, float, bool, complex, str))
_LEAVES = _NUMBERS | {type(None), Tensor, nn.Parameter}  # most of what hangs on a module
_OPAQUE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, nn.Module, Tensor)


def containers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, container) of every dict, list, set and deque that hangs on a module, attribute dicts first."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [(name, vars(module)) for name, module in model.named_modules()]
    for name, container in waiting:  # grows while it is read
        if id(container) in seen or len(seen) > MOST:
            continue
        seen.add(id(container))
        yield name, container
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            if type(value) in _LEAVES:
                continue
            inner = _inside(value)
            if inner is not None and "_hooks" not in str(key):  # hooks are put there on purpose
                waiting.append((f"{name}.{key}" if name else str(key), inner))


def _inside(value: Any) -> Any:
    """The container that a value is or has; None for what has none."""
    if isinstance(value, (dict, list, tuple, set, deque)):
        return value
    if isinstance(value, _OPAQUE) or type(value).__module__.split(".")[0] in ("torch", "builtins"):
        return None
    return getattr(value, "__dict__", None)


class State:
    """A model's containers as they are now, and the tensors in them that are no parameters or persistent buffers.

    Args:
        model: the model.
        own: its parameters and persistent buffers, whose values, and so those of views of them, come from elsewhere.
    """

    def __init__(self, model: nn.Module, own: Collection[Tensor]) -> None:
        names, memory = {id(t) for t in own}, {t.untyped_storage()._cdata for t in own if has_memory(t)}
        self._entries: list[tuple[str, Any, list[Any], list[Any]]] = []  # name, container, keys, values
        self._tensors: list[tuple[str, Tensor, int, Tensor]] = []  # name, tensor, version, copy
        for name, container in containers(model):
            keys = list(container) if isinstance(container, dict) else []
            values = _values(container)
            self._entries.append((name, container, keys, values))
            for at, value in enumerate(values):
                if not isinstance(value, Tensor) or id(value) in names:
                    continue
                if not has_memory(value) or value.untyped_storage()._cdata not in memory:
                    label = _joined(name, keys[at] if keys else at)
                    self._tensors.append((label, value, _version(value), value.detach().clone()))

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        for _, container, _, values in self._entries:
            if len(container) != len(values) or not all(map(is_, _values(container), values)):
                return False
        return all(_version(tensor) == version for _, tensor, version, _ in self._tensors)

    def same_as(self, other: State) -> bool:
        """Whether another look found the same names, numbers and tensors; what is unknown has to be the same object."""
        if [(e[0], e[2], len(e[3])) for e in self._entries] != [(e[0], e[2], len(e[3])) for e in other._entries]:
            return False
        for (_, _, _, mine), (_, _, _, theirs) in zip(self._entries, other._entries, strict=True):
            if not all(map(_alike, mine, theirs)):
                return False
        return [t[0] for t in self._tensors] == [t[0] for t in other._tensors] and all(
            a[3].shape == b[3].shape and a[3].dtype == b[3].dtype and torch.equal(a[3], b[3])
            for a, b in zip(self._tensors, other._tensors, strict=True)
        )

    def replaced(self) -> list[str]:
        """What held something else before, by name; not what is new."""
        found = []
        for name, container, keys, values in self._entries:
            if isinstance(container, dict):
                pairs = [(k, container[k], v) for k, v in zip(keys, values, strict=True) if k in container]
            elif isinstance(container, set):
                pairs = []
            else:
                pairs = [(i, now, was) for i, (now, was) in enumerate(zip(container, values, strict=False))]
            found += [_joined(name, key) for key, now, was in pairs if now is not was and not _same_number(now, was)]
        return found + [name for name, tensor, version, _ in self._tensors if _version(tensor) != version]

    def differing(self) -> list[str]:
        """What is not as it was, by name; also what is new."""
        found = self.replaced()
        for name, container, keys, values in self._entries:
            if isinstance(container, dict):
                found += [_joined(name, key) for key in container if key not in keys]
            elif len(container) != len(values):
                found.append(name)
        return found

    def numbers(self) -> dict[str, Any]:
        """The numbers and words on the modules, by name."""
        found = {}
        for name, container, _, _ in self._entries:
            if isinstance(container, dict):
                found.update({_joined(name, k): v for k, v in container.items() if type(v) in _NUMBERS})
        return found

    def restore(self) -> None:
        """Put everything back."""
        for _, container, keys, values in self._entries:
            if len(container) == len(values) and all(map(is_, _values(container), values)):
                continue
            if isinstance(container, dict):
                container.clear()
                container.update(zip(keys, values, strict=True))
            elif isinstance(container, set):
                container.clear()
                container.update(values)
            else:
                container.clear()
                container.extend(values)
        for at, (name, tensor, version, copy) in enumerate(self._tensors):
            if _version(tensor) != version:
                tensor.detach().copy_(copy)
                self._tensors[at] = (name, tensor, _version(tensor), copy)


def _values(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _same_number(a: Any, b: Any) -> bool:
    return type(a) is type(b) and type(a) in _NUMBERS and a == b


def _alike(a: Any, b: Any) -> bool:
    if a is b or _same_number(a, b):
        return True
    looked_into = type(a) is type(b) and (isinstance(a, Tensor) or _inside(a) is not None)
    return looked_into and type(a) not in _NUMBERS


def _joined(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)
