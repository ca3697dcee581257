"""Memory for activations that is handed out again: fresh pages from the system would be cleared every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from math import prod

import torch
from torch import Tensor

SMALL = 2**16  # bytes; below, the C library keeps its memory itself
BUDGET = 2**28  # bytes that a pool holds

_pool: ContextVar[Pool | None] = ContextVar("mli_fast_buffers", default=None)


class Pool:
    """Storages by size; one is free again when no tensor refers to it.

    Args:
        budget: the most bytes that it holds.

    Attributes:
        held: bytes that it holds.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._storages: dict[int, list[torch.UntypedStorage]] = {}
        self._budget, self.held = budget, 0

    def storage(self, size: int) -> torch.UntypedStorage:
        """A storage of `size` bytes that is free."""
        for storage in self._storages.get(size, ()):
            if _free(storage):
                return storage
        fresh = torch.UntypedStorage(size)
        if self.held + size > self._budget:
            self._evict()
        if self.held + size <= self._budget:
            self._storages.setdefault(size, []).append(fresh)
            self.held += size
        return fresh

    def _evict(self) -> None:
        """Evict what is free."""
        used = {size: [s for s in known if not _free(s)] for size, known in self._storages.items()}
        self._storages = {size: known for size, known in used.items() if known}
        self.held = sum(size * len(known) for size, known in self._storages.items())


def _free(storage: torch.UntypedStorage) -> bool:
    return bool(torch._C._storage_Use_Count(storage._cdata) == 1)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Within the block `empty` hands out memory of tensors that are gone."""
    token = _pool.set(Pool())
    try:
        yield
    finally:
        _pool.reset(token)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU."""
    size = prod(shape) * dtype.itemsize
    pool = _pool.get()
    if pool is None or size < SMALL:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    return torch.empty(0, dtype=dtype, device="cpu").set_(pool.storage(size)).view(tuple(shape))
