"""Which picture a result of which layout gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mli_fast.plot.heatmap import plot_heatmap
from mli_fast.plot.lines import plot_line, plot_runs
from mli_fast.plot.surface import plot_surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mli_fast.result import SweepResult

_PICTURES = {
    ("alpha",): plot_line,
    ("x",): plot_line,
    ("y",): plot_line,
    ("run", "alpha"): plot_runs,
    ("group", "alpha"): plot_heatmap,
    ("x", "y"): plot_surface,
}


def plot(result: SweepResult, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw a result.

    Args:
        result: The result; its points may be in any order.
        ax: Axes to draw on; None makes a new figure, with a panel for each of loss and accuracy.
        **options: Those of ``plot_line``, ``plot_runs``, ``plot_heatmap`` or ``plot_surface``, by the result's layout.

    Returns:
        The axes of the loss (or of the variable asked for); its ``.figure`` can be saved with ``savefig``.

    Raises:
        ValueError: If an option does not fit, or the result is of single points.
        TypeError: If the picture has no such option.
    """
    if result.dims not in _PICTURES:
        raise ValueError("there is no picture of single points; take them from .to_dataframe()")
    return _PICTURES[result.dims](result, ax, **options)  # type: ignore[operator]
