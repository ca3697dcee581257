"""Loss and accuracy against alpha, drawn with matplotlib's object-oriented interface (no global state, no display)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mli_fast.storage import check_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import ColorType

    from mli_fast.result import SweepResult

_ACCURACY_AXES = "mli_fast.accuracy"
_CRITERIA = {
    "cross_entropy": "mean cross-entropy",
    "mse": "mean squared error",
    "nll": "mean negative log-likelihood",
    "bce_with_logits": "mean binary cross-entropy",
    "causal_lm": "mean cross-entropy per token",
}
_ENDPOINTS = ((0.0, r"$\theta_0$"), (1.0, r"$\theta_T$"))
_MARKED_UP_TO = 60  # points; more than these and their markers run into each other


def plot(result: SweepResult, ax: Axes | None = None, *, label: str | None = None) -> Axes:
    """Draw loss and, where there is one, accuracy against alpha.

    Points that are not finite are left as gaps, and said so.

    Args:
        result: The curve; its points may be in any order.
        ax: Axes to draw on: loss on the left, accuracy dashed on a twin axis on the right, which further curves on the
            same axes share. None makes a new figure, with a panel for each.
        label: Name of this curve in the legend.

    Returns:
        The axes of the loss; its ``.figure`` can be saved with ``savefig``.
    """
    if ax is None:
        return _new_figure(result, label)[1]
    color = _panel(ax, result, "loss", label)
    if "accuracy" in result:
        twin = _accuracy_twin(ax)
        _draw(twin, result, "accuracy", None, color=color, style="--")
        twin.set_ylabel("accuracy (dashed)")
    return ax


def save_plot(result: SweepResult, path: str | os.PathLike[str]) -> None:
    """Draw a result into a file.

    Args:
        result: The curve.
        path: File to write, in the format its suffix names.

    Raises:
        ValueError: If matplotlib knows no such format.
    """
    _new_figure(result, None)[0].savefig(path)


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
            panel = grid[row, column]
            if variable == "accuracy" and column > 0:
                panel.sharey(grid[row, 0])
            for name, result in curves.items():
                if variable in result:
                    # One legend a column: the colours are the same below.
                    _panel(panel, result, variable, name if row == 0 else None)
            panel.yaxis.label.set_visible(column == 0)
            panel.xaxis.label.set_visible(row == len(rows) - 1)
        grid[0, column].set_title(model, pad=18)
    if path is not None:
        figure.savefig(path)
    return figure


def _new_figure(result: SweepResult, label: str | None) -> tuple[Figure, Axes]:
    """A figure with a panel for the loss and, where there is one, for the accuracy below; and the axes of the loss."""
    from matplotlib.figure import Figure

    rows = 2 if "accuracy" in result else 1
    figure = Figure(figsize=(6.0, 2.0 + 1.6 * rows), dpi=120, layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    _panel(panels[0], result, "loss", label)
    if rows == 2:
        _panel(panels[1], result, "accuracy", label)
        panels[0].xaxis.label.set_visible(False)
    return figure, panels[0]


def _panel(ax: Axes, result: SweepResult, variable: str, label: str | None) -> ColorType:
    """One labelled panel of one variable; returns the colour of the line."""
    color = _draw(ax, result, variable, label)
    ax.set_xlabel(r"$\alpha$")
    ax.set_ylabel(_axis_label(result, variable))
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _mark_endpoints(ax, result.alphas)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize="small", framealpha=0.8, edgecolor="none")
    return color


def _draw(
    ax: Axes, result: SweepResult, variable: str, label: str | None, color: ColorType | None = None, style: str = "-"
) -> ColorType:
    """The line of one variable with its ends and its standard-error band; returns its colour."""
    order = np.argsort(result.alphas, kind="stable")
    alphas = result.alphas[order]
    values = np.asarray(result[variable], dtype=np.float64)[order]
    gaps = int(np.count_nonzero(~np.isfinite(values)))
    if gaps:
        note = f"{gaps} of {values.size} not finite"
        label = f"{label} ({note})" if label else note
    # Without markers a finite point between two gaps would not show at all.
    marker = "." if alphas.size <= _MARKED_UP_TO or gaps else ""
    (line,) = ax.plot(alphas, values, style, color=color, marker=marker, markersize=3.5, linewidth=1.5, label=label)
    shade = line.get_color()
    ends = np.isin(alphas, [position for position, _ in _ENDPOINTS])
    ax.plot(alphas[ends], values[ends], "o", color=shade, markersize=5)
    if f"{variable}_stderr" in result:
        error = np.asarray(result[f"{variable}_stderr"], dtype=np.float64)[order]
        with np.errstate(invalid="ignore"):
            low, high = values - error, values + error
        shown = np.isfinite(low) & np.isfinite(high)
        ax.fill_between(alphas, low, high, where=shown.tolist(), color=shade, alpha=0.2, linewidth=0)
    return shade


def _mark_endpoints(ax: Axes, alphas: NDArray[np.float64]) -> None:
    """A vertical line with its name at each endpoint that the curve reaches, once per axes."""
    marked = {line.get_gid() for line in ax.lines}
    for position, name in _ENDPOINTS:
        if name in marked or not alphas.size or not alphas.min() <= position <= alphas.max():
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


def _axis_label(result: SweepResult, variable: str) -> str:
    if variable != "loss":
        return variable.replace("_", " ")
    criterion = result.provenance.get("criterion")
    kind = _CRITERIA.get(criterion) if isinstance(criterion, str) else None
    return f"loss ({kind})" if kind else "loss"
