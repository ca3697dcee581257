"""A surface over two coordinates: filled, as contour lines or in three dimensions, with a trajectory over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from mli_fast.plot.colors import BLANK, chosen, color_bar, colormap, limits, new_panels, say_gaps, scale
from mli_fast.plot.labels import axis_label, is_metric, marks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

    from mli_fast.result import SweepResult

Float64 = NDArray[np.float64]

KINDS = ("filled", "contour", "3d")
_LEVELS = 20
_CELLS = 200  # along each side of a surface in 3-D, at most
_DOTTED_UP_TO = 60  # points of a trajectory; more than these and their dots run into each other


def plot_surface(
    result: SweepResult,
    ax: Axes | None = None,
    *,
    kind: str = "filled",
    variable: str | None = None,
    log: bool = False,
    trajectory: ArrayLike | None = None,
) -> Axes:
    """Draw a surface over x and y, with the anchors where the provenance says that they lie.

    Args:
        result: The surface, at least 2 x 2 points; they may be in any order. Those that are not finite stay blank, and
            it is said how many.
        ax: Axes to draw on, for "3d" ones with that projection. None makes a new figure.
        kind: "filled" contours, "contour" lines with their values, or "3d".
        variable: What to draw. None: the loss and, in a new figure, the accuracy beside it.
        log: Levels by the logarithm, for a loss that spans decades; accuracy is never drawn so unless asked for.
        trajectory: Points [T, 2] in the surface's own coordinates, joined by a line from its start to its end. In 3-D
            it lies on the surface, by linear interpolation, and ends where that ends.

    Returns:
        The axes, of the loss where there are two.

    Raises:
        KeyError: If there is no such variable.
        ValueError: If the kind is unknown, the axes or the trajectory do not fit, the surface is too small, or the
            logarithm needs positive values.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
    if ax is not None and (ax.name == "3d") != (kind == "3d"):
        raise ValueError(f"kind={kind!r} cannot be drawn on axes of projection {ax.name!r}")
    if min(result.dataset.sizes[dim] for dim in result.dims) < 2:
        raise ValueError(f"a surface needs at least 2 x 2 points, got shape {result.loss.shape}")
    path = None if trajectory is None else _checked(trajectory)
    variables = chosen(result, variable, alone=ax is not None)
    panels = [ax] if ax is not None else _panels(result, len(variables), kind)
    for one, name in zip(panels, variables, strict=True):
        values = result.dataset[name].astype(np.float64).sortby(["x", "y"])
        logarithmic = log and (variable is not None or name == "loss")
        norm = scale(values.values, logarithmic)
        if kind == "3d":
            _solid(one, result, values, norm, logarithmic, path)
        else:
            _flat(one, result, values, norm, logarithmic, path, kind)
        one.set_xlabel(axis_label(result, "x"))
        one.set_ylabel(axis_label(result, "y"))
        say_gaps(one, values.values)
    return panels[0]


def _checked(trajectory: ArrayLike) -> Float64:
    path = np.asarray(trajectory, dtype=np.float64)
    if path.ndim != 2 or path.shape[1] != 2 or not len(path):
        raise ValueError(f"trajectory: expected points [T, 2], at least one, got shape {path.shape}")
    return path


def _panels(result: SweepResult, count: int, kind: str) -> list[Any]:
    """The axes of a new figure, which has the proportions of the surface where they mean something."""
    if kind == "3d":
        return new_panels(count, 5.4, 4.4, subplot_kw={"projection": "3d"})[1]
    ratio = np.clip(np.ptp(result["y"]) / np.ptp(result["x"]), 0.4, 2.0) if is_metric(result) else 0.85
    return new_panels(count, 5.4, 0.8 + 3.7 * float(ratio), sharex=True, sharey=True)[1]


def _levels(norm: Normalize, log: bool) -> Float64:
    """Where contours lie: round numbers, or even steps of the logarithm."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits(norm)
    if log:
        return np.geomspace(low, high, _LEVELS + 1)
    return np.asarray(MaxNLocator(_LEVELS).tick_values(low, high), dtype=np.float64)


def _flat(
    ax: Axes, result: SweepResult, values: xr.DataArray, norm: Normalize, log: bool, path: Float64 | None, kind: str
) -> None:
    """Contours, filled or as lines, and over them the anchors and the trajectory."""
    x, y, heights = values["x"].values, values["y"].values, np.ma.masked_invalid(values.values.T)
    if heights.count():
        levels, cmap = _levels(norm, log), colormap(str(values.name))
        if kind == "filled":
            ax.contourf(x, y, heights, levels, norm=norm, cmap=cmap)
            ax.contour(x, y, heights, levels, colors="white", linewidths=0.3, alpha=0.6)
            ax.set_facecolor(BLANK)
        else:
            lines = ax.contour(x, y, heights, levels, norm=norm, cmap=cmap, linewidths=1.2)
            ax.clabel(lines, levels[::2], fontsize="x-small", fmt="%.3g")
    color_bar(ax, result, str(values.name), norm)
    ax.set_aspect("equal" if is_metric(result) else "auto")
    if path is not None:
        _trajectory(ax, path.T)
    for name, place in marks_of(result, 2):
        _mark(ax, place, name, "^", 7, "bottom")


def _solid(
    ax: Any, result: SweepResult, values: xr.DataArray, norm: Normalize, log: bool, path: Float64 | None
) -> None:
    """The surface in three dimensions, and on it the anchors and the trajectory."""
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    finite = np.where(np.isfinite(values), values, np.nan)
    # Such axes have no logarithmic scale that works: they get the logarithm, and ticks that say the value.
    heights = values.copy(data=np.log10(finite) if log else finite)
    low, high = np.log10(limits(norm)) if log else limits(norm)
    x, y = np.meshgrid(values["x"].values, values["y"].values)
    # By its own order what lies on the surface would be drawn behind it.
    ax.computed_zorder = False
    style = {"norm": Normalize(low, high), "cmap": colormap(str(values.name)), "rcount": _CELLS, "ccount": _CELLS}
    ax.plot_surface(x, y, heights.values.T, **style)
    ax.set_zlim(low, high)
    if log:
        ax.zaxis.set_major_formatter(lambda height, _: f"{10**height:.2g}")
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    color_bar(ax, result, str(values.name), norm)
    if path is not None:
        _trajectory(ax, _lifted(heights, path))
    for name, place in marks_of(result, 2):
        _mark(ax, _lifted(heights, place[None])[:, 0], name, "^", 7, "bottom")


def _lifted(heights: xr.DataArray, points: Float64) -> Float64:
    """Points [T, 2] with their height on the surface [3, T], NaN outside it."""
    on = heights.interp(x=("t", points[:, 0]), y=("t", points[:, 1]))
    return np.stack([*points.T, on.values])


def _trajectory(ax: Any, path: Float64) -> None:
    """A line [2 or 3, T] that can be seen on any colour, with its start and its end."""
    from matplotlib.patheffects import Normal, Stroke

    effects = [Stroke(linewidth=3.0, foreground="black"), Normal()]
    ax.plot(*path, color="white", linewidth=1.5, path_effects=effects, zorder=5, gid="trajectory")
    if path.shape[1] <= _DOTTED_UP_TO:
        ax.plot(*path, "o", color="white", markeredgecolor="black", markeredgewidth=0.6, markersize=3, zorder=5)
    _mark(ax, path[:, 0], "start", "o", 8, "top", "right")
    _mark(ax, path[:, -1], "end", "*", 13, "top")


def _mark(
    ax: Any, place: Float64, name: str, marker: str, size: float, vertical: str, horizontal: str = "left"
) -> None:
    """A marked place [2 or 3] and its name, where this side of the name is at it."""
    from matplotlib.patheffects import withStroke

    if np.isfinite(place).all():
        style = {"color": "white", "markeredgecolor": "black", "markersize": size, "zorder": 6}
        # Whole on the border of a surface; in 3-D the layout would take it for larger than the figure.
        ax.plot(*place[:, None], marker, clip_on=ax.name == "3d", **style)
        halo = [withStroke(linewidth=2.5, foreground="white")]
        aligned = {"verticalalignment": vertical, "horizontalalignment": horizontal}
        ax.text(*place, f"  {name}  ", path_effects=halo, zorder=7, **aligned)
