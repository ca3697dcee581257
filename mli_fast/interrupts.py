"""Ctrl-C within a call: it is taken where nothing of PyTorch's or ours is half changed, so that all is put back.

Python runs a signal's handler between any two instructions, also between a change and the `try` that undoes it, of
which PyTorch has many (a transform's level, a mode, a flag).
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

# What may be half way through a change; anybody else's code is the caller's, as is a plan, which has no name
_CAREFUL = sys.stdlib_module_names | {"mli_fast", "torch", "functorch", "numpy"}

PATIENCE = 1.0  # seconds in which a second signal is of the same impatient hand as the first, or of its launcher

_current: _Deferral | None = None  # of the main thread, the only one that handlers run in


class _Deferral:
    """A handler in the place of another.

    Args:
        previous: the other one.

    Attributes:
        waits: a signal came, and is not yet handed on.
        at_once: the caller's loader is at work.
        over: the call has ended, or was broken off by a second signal.
    """

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self.previous = previous
        self.waits = self.at_once = self.over = False
        self._came = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Hand a signal on, or let it wait for `safe`; a second one, some time later, does not wait."""
        if self.over or self.at_once or _is_callers(frame):
            self.hand_on(frame)
        elif not self.waits:
            self.waits, self._came = True, time.monotonic()
        elif time.monotonic() - self._came >= PATIENCE:
            self.over = True  # who knows what gets lost now, the end of this included
            self.hand_on(frame)

    def hand_on(self, frame: FrameType | None) -> None:
        """Call the other handler, which raises or does not."""
        at_once, self.at_once, self.waits = self.at_once, False, False  # what it raises is to come through undisturbed
        self.previous(signal.SIGINT, frame)
        self.at_once = at_once


def _is_callers(frame: FrameType | None) -> bool:
    name = None if frame is None else frame.f_globals.get("__name__")
    # the methods of a named tuple have the name of a module that is none
    return name is None or (name in sys.modules and name.partition(".")[0] not in _CAREFUL)


def _in_force() -> _Deferral | None:
    is_main = threading.get_ident() == threading.main_thread().ident
    return _current if is_main and _current is not None and not _current.over else None


class deferred:
    """Within the block Ctrl-C waits for `safe`, for the caller's own code, or for the end, where nothing is lost.

    Only a handler in Python is replaced, and in the main thread, where they run. A class, as is `at_once`: what is a
    generator could be broken off before its `try`.
    """

    def __enter__(self) -> None:
        global _current
        self._outer, self._own = _in_force(), None
        if self._outer is not None:
            self._at_once, self._outer.at_once = self._outer.at_once, False
            return
        previous = signal.getsignal(signal.SIGINT)
        while isinstance(stale := getattr(previous, "__self__", None), _Deferral) and stale.over:
            previous = stale.previous
        if not callable(previous) or threading.current_thread() is not threading.main_thread():
            return
        own = _Deferral(previous)
        try:
            signal.signal(signal.SIGINT, own.handle)  # from here on nothing is raised
        except ValueError:  # an interpreter that is not the main one
            return
        _current = self._own = own
        self._levels = torch._C._functorch.get_dynamic_layer_stack_depth()

    def __exit__(self, *error: object) -> None:
        global _current
        if self._outer is not None:
            self._outer.at_once = self._at_once
            safe()
        own = self._own
        if own is None:
            return
        _current = None
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self._levels)  # what a second one may leave
        try:
            if signal.getsignal(signal.SIGINT) == own.handle:  # else the caller's code has set one meanwhile
                signal.signal(signal.SIGINT, own.previous)
        finally:
            own.over = True  # should anybody put it in force again, it hands on
            if own.waits:
                own.hand_on(sys._getframe())


class at_once:
    """Within the block, where the caller's code may be waiting for long, Ctrl-C does not wait."""

    def __enter__(self) -> None:
        safe()
        self._deferral = _in_force()
        if self._deferral is not None:
            self._before, self._deferral.at_once = self._deferral.at_once, True

    def __exit__(self, *error: object) -> None:
        if self._deferral is not None:
            self._deferral.at_once = self._before


def safe() -> None:
    """Here an exception does no harm: take a Ctrl-C that waits."""
    if _current is not None and _current.waits and _in_force() is not None:
        _current.hand_on(sys._getframe(1))
