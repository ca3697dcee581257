"""Values as colours: the panels of a new figure, the scale, the bar beside it, what is blank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mli_fast.plot.labels import gaps_in, variable_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from mli_fast.result import SweepResult

BLANK = "0.9"  # where there is no finite value


def chosen(result: SweepResult, variable: str | None, alone: bool) -> list[str]:
    """The variables to draw: the one asked for, else the loss and, unless it is drawn alone, the accuracy.

    Raises:
        KeyError: If there is no such variable.
        ValueError: If it does not have one value for each point.
    """
    if variable is None:
        return ["loss"] if alone or "accuracy" not in result else ["loss", "accuracy"]
    shape = result[variable].shape
    if result.dataset[variable].dims != result.dims:
        raise ValueError(f"variable {variable!r} of shape {shape} does not have one value per point")
    return [variable]


def scale(values: NDArray[np.float64], log: bool) -> Normalize:
    """What maps finite values onto colours.

    Raises:
        ValueError: If a logarithmic scale is asked for and there are values of zero or less.
    """
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    if log and (finite <= 0.0).any():
        raise ValueError(f"log=True needs positive values, {np.count_nonzero(finite <= 0.0)} of {values.size} are not")
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    if low == high:
        # A flat picture still needs a scale of some width.
        low, high = low - 0.05 * abs(low or 1.0), high + 0.05 * abs(high or 1.0)
    return LogNorm(low, high) if log else Normalize(low, high)


def limits(norm: Normalize) -> tuple[float, float]:
    """The values at both ends of a scale."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    return norm.vmin, norm.vmax


def colormap(variable: str) -> str:
    """A map in which what is good is dark: low loss, high accuracy."""
    return "viridis_r" if "accuracy" in variable else "viridis"


def color_bar(ax: Axes, result: SweepResult, variable: str, norm: Normalize) -> None:
    """The labelled bar beside a picture, as high as that is where it is flat."""
    from matplotlib.cm import ScalarMappable

    solid = ax.name == "3d"
    place = {"ax": ax, "shrink": 0.6, "pad": 0.14} if solid else {"cax": ax.inset_axes((1.03, 0.0, 0.045, 1.0))}
    bar = ax.figure.colorbar(ScalarMappable(norm, colormap(variable)), **place)
    bar.set_label(variable_label(result, variable))


def say_gaps(ax: Axes, values: NDArray[np.float64]) -> None:
    """Above the picture, how many of its points are blank."""
    if gaps_in(values):
        ax.set_title(f"{gaps_in(values)} (blank)", fontsize="small", loc="right")


def new_panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure with panels side by side, each of that size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(count * width, height), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])
