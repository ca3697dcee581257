"""Pictures into files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mli_fast.plot.layouts import plot
from mli_fast.storage import check_folder

if TYPE_CHECKING:
    from mli_fast.result import SweepResult


def save_plot(result: SweepResult, path: str | os.PathLike[str], **options: Any) -> None:
    """Draw a result into a file.

    Args:
        result: The result.
        path: File to write, in the format its suffix names.
        **options: As for ``plot``.

    Raises:
        ValueError: If matplotlib knows no such format, or an option does not fit.
    """
    plot(result, **options).figure.savefig(path)  # type: ignore[union-attr]


def check_plot_target(path: str | os.PathLike[str]) -> None:
    """Check, before any work is done for it, that a plot can be written to ``path``.

    Args:
        path: File to write.

    Raises:
        ValueError: If matplotlib knows no format of that suffix.
        FileNotFoundError: If the folder to write into does not exist.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    suffix = Path(path).suffix
    known = FigureCanvasBase.get_supported_filetypes()
    if suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"{path}: unknown suffix {suffix!r} for a plot; use one of .{', .'.join(sorted(known))}")
    check_folder(Path(path))
