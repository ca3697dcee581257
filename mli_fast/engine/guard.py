"""What must not outlive a sweep: changes to random states, and errors that do not say where they happened."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put PyTorch's, NumPy's and Python's global random states back at the end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextlib.contextmanager
def noting(where: str) -> Iterator[None]:
    """Add to any exception where it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"mli_fast: {where}")
        raise


@contextlib.contextmanager
def vmap_fallback_unmentioned() -> Iterator[None]:
    """No warnings about operators that vmap runs one slice at a time: the user has nothing to do about them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in message or "out of memory" in message)
