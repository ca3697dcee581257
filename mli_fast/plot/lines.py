"""Curves along one axis: a panel each for loss and accuracy, a line for each result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mli_fast.plot.labels import as_text, axis_label, gaps_in, marks_of, variable_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

    from mli_fast.result import SweepResult

_ACCURACY_AXES = "mli_fast.accuracy"
_MARKED_UP_TO = 60  # points; more than these and their markers run into each other
_NAMED_UP_TO = 10  # runs; matplotlib has as many colours


def plot_line(result: SweepResult, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Draw loss and, where there is one, accuracy along a line.

    Points that are not finite are left as gaps, and said so.

    Args:
        result: The curve; its points may be in any order.
        ax: Axes to draw on: loss on the left, accuracy dashed on a twin axis on the right, which further curves on the
            same axes share. None makes a new figure, with a panel for each.
        label: Name of this curve in the legend.

    Returns:
        The axes of the loss.
    """
    if ax is None:
        return figure_of({label or "": result})[1][0]
    color = panel(ax, result, "loss", label)
    if "accuracy" in result:
        twin = _accuracy_twin(ax)
        _draw(twin, result, "accuracy", None, color=color, linestyle="--")
        twin.set_ylabel("accuracy (dashed)")
    return ax


def plot_runs(result: SweepResult, ax: Axes | None = None) -> Axes:
    """Draw a line for each run: named in the legend, or thin where there are more than ten.

    Args:
        result: The curves; points that are not finite are left as gaps, and said so.
        ax: Axes to draw on, as for a single line, but of more than ten runs the loss alone. None makes a new figure,
            with a panel for each of loss and accuracy.

    Returns:
        The axes of the loss.
    """
    if result.dataset.sizes["run"] <= _NAMED_UP_TO:
        curves = {as_text(label): line for label, line in result.lines()}
        if ax is None:
            return figure_of(curves)[1][0]
        for label, line in curves.items():
            plot_line(line, ax, label=label)
        return ax
    panels = [ax] if ax is not None else _panels(2 if "accuracy" in result else 1)[1]
    for one, variable in zip(panels, ("loss", "accuracy"), strict=False):
        _bundle(one, result, variable)
    panels[0].xaxis.label.set_visible(len(panels) == 1)
    gaps = gaps_in(result.loss)
    panels[0].set_title(f"{result.dataset.sizes['run']} runs" + (f", {gaps}" if gaps else ""), fontsize="medium")
    return panels[0]


def figure_of(curves: Mapping[str, SweepResult]) -> tuple[Figure, list[Axes]]:
    """A new figure with a panel for the loss and, where there is one, for the accuracy below.

    Args:
        curves: Name in the legend ("" for none) -> curve.

    Returns:
        The figure and its axes.
    """
    rows = 2 if any("accuracy" in result for result in curves.values()) else 1
    figure, panels = _panels(rows)
    for row, variable in enumerate(("loss", "accuracy")[:rows]):
        for index, (label, result) in enumerate(curves.items()):
            if variable in result:
                # One legend: the colours are the same below.
                panel(panels[row], result, variable, label if row == 0 else None, color=f"C{index}")
    panels[0].xaxis.label.set_visible(rows == 1)
    return figure, panels


def panel(ax: Axes, result: SweepResult, variable: str, label: str | None, **style: Any) -> ColorType:
    """One labelled panel of one variable; returns the colour of the line."""
    color = _draw(ax, result, variable, label, **style)
    _furnish(ax, result, variable)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small", framealpha=0.8, edgecolor="none")
    return color


def _panels(rows: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 2.0 + 1.6 * rows), dpi=120, layout="constrained")
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def _draw(ax: Axes, result: SweepResult, variable: str, label: str | None, **style: Any) -> ColorType:
    """The line of one variable with its ends and its standard-error band; returns its colour."""
    positions = result[result.dims[0]].astype(np.float64)
    order = np.argsort(positions, kind="stable")
    positions, values = positions[order], result[variable].astype(np.float64)[order]
    gaps = gaps_in(values)
    if gaps:
        label = f"{label} ({gaps})" if label else gaps
    # Without markers a finite point between two gaps would not show at all.
    marker = "." if positions.size <= _MARKED_UP_TO or gaps else ""
    (line,) = ax.plot(positions, values, marker=marker, markersize=3.5, linewidth=1.5, label=label or None, **style)
    shade = line.get_color()
    ends = np.isin(positions, [place[0] for _, place in marks_of(result, 1)])
    ax.plot(positions[ends], values[ends], "o", color=shade, markersize=5)
    if f"{variable}_stderr" in result:
        error = result[f"{variable}_stderr"].astype(np.float64)[order]
        with np.errstate(invalid="ignore"):
            low, high = values - error, values + error
        shown = np.isfinite(low) & np.isfinite(high)
        ax.fill_between(positions, low, high, where=shown.tolist(), color=shade, alpha=0.2, linewidth=0)
    return shade


def _bundle(ax: Axes, result: SweepResult, variable: str) -> None:
    """Many runs as thin lines of one colour."""
    order = np.argsort(result.alphas, kind="stable")
    values = result[variable].astype(np.float64)[:, order]
    marker = "." if gaps_in(values) else ""
    ax.plot(result.alphas[order], values.T, color="C0", alpha=0.5, linewidth=0.7, marker=marker, markersize=2)
    _furnish(ax, result, variable)


def _furnish(ax: Axes, result: SweepResult, variable: str) -> None:
    """Names of the axes, a light grid, and a vertical line with its name at each anchor that the curve reaches."""
    axis = result.dims[-1]
    ax.set_xlabel(axis_label(result, axis))
    ax.set_ylabel(variable_label(result, variable))
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    positions = result[axis]
    marked = {line.get_gid() for line in ax.lines}
    for name, (position,) in marks_of(result, 1):
        if name in marked or not positions.size or not positions.min() <= position <= positions.max():
            continue
        ax.axvline(position, color="0.6", linewidth=0.9, zorder=0.8, gid=name)
        ax.text(position, 1.02, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom")


def _accuracy_twin(ax: Axes) -> Axes:
    """The right-hand axes of ``ax``, made on first use and shared by further curves."""
    for other in ax.figure.axes:
        if other.get_gid() == _ACCURACY_AXES and other.get_shared_x_axes().joined(ax, other):
            return other
    twin = ax.twinx()
    twin.set_gid(_ACCURACY_AXES)
    twin.spines["top"].set_visible(False)
    return twin  # type: ignore[return-value]
