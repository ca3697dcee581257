"""Several results in one figure: models side by side, batch-norm policies on the same axes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mli_fast.plot.lines import figure_of, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mli_fast.result import SweepResult


def plot_curves(results: Mapping[str, Mapping[str, SweepResult]], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw several models side by side: a column each, loss above accuracy, a line for each of its results.

    Args:
        results: Model name -> line name (such as train, test) -> curve.
        path: File to write the figure to, in the format its suffix names; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if not results or not all(results.values()):
        raise ValueError("nothing to draw: results needs at least one model, and each model at least one curve")
    rows = ["loss"]
    if any("accuracy" in result for curves in results.values() for result in curves.values()):
        rows.append("accuracy")
    size = (0.6 + 3.0 * len(results), 0.6 + 2.3 * len(rows))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(len(rows), len(results), sharex=True, squeeze=False)
    for column, (model, curves) in enumerate(results.items()):
        for row, variable in enumerate(rows):
            one = grid[row, column]
            if variable == "accuracy" and column > 0:
                one.sharey(grid[row, 0])
            for index, (name, result) in enumerate(curves.items()):
                if variable in result:
                    # One legend a column: the colours are the same below.
                    panel(one, result, variable, name if row == 0 else None, color=f"C{index}")
            one.yaxis.label.set_visible(column == 0)
            one.xaxis.label.set_visible(row == len(rows) - 1)
        grid[0, column].set_title(model, pad=18)
    if path is not None:
        figure.savefig(path)
    return figure


def compare_policies(results: Mapping[str, SweepResult], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw what a network's batch-norm policies make of one line: a curve for each, loss above accuracy.

    Args:
        results: Policy ("interpolate", "recalibrate", ...) -> curve along alpha.
        path: File to write the figure to, in the format its suffix names; None writes none.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw, or a result is not one curve along alpha.
    """
    if not results:
        raise ValueError("nothing to draw: results needs at least one policy")
    for policy, result in results.items():
        if result.dims != ("alpha",):
            raise ValueError(f"the result of policy {policy!r} lies on {', '.join(result.dims)}, not on alpha alone")
    figure, panels = figure_of(results)
    panels[0].legend(title="batch norm", title_fontsize="small", fontsize="small", framealpha=0.8, edgecolor="none")
    if path is not None:
        figure.savefig(path)
    return figure
