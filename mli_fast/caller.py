"""Where the package was called from, for warnings that name the caller's line and not one of ours."""

from __future__ import annotations

import sys


def caller() -> int:
    """The stack level of whoever called this package, as `warnings.warn` counts from the function that calls this."""
    frame, level, ours = sys._getframe(1), 1, 1
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").startswith("mli_fast."):
            ours = level
        frame, level = frame.f_back, level + 1
    return ours + 1
