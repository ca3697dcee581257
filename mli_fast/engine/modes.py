"""How a sweep is computed, where a test or a benchmark wants to say so itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

PLANNED, REPLAY, PLAIN = "planned", "replay", "plain"
MODES = (PLANNED, REPLAY, PLAIN)

_forced: ContextVar[str | None] = ContextVar("mli_fast_mode", default=None)


@contextlib.contextmanager
def forced(mode: str) -> Iterator[None]:
    """Compute every sweep in the block in this way.

    Args:
        mode: "planned" (captured and rewritten, what a sweep does by itself), "replay" (captured, not rewritten: bit
            for bit plain PyTorch), "plain" (the model itself, point by point).

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is not one of {', '.join(map(repr, MODES))}")
    token = _forced.set(mode)
    try:
        yield
    finally:
        _forced.reset(token)


def mode() -> str:
    """The mode at hand."""
    return _forced.get() or PLANNED
