"""Groups of parameters against alpha as a heat map: a row for each group, in the order of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mli_fast.plot.colors import BLANK, chosen, color_bar, colormap, new_panels, say_gaps, scale
from mli_fast.plot.labels import as_text, axis_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mli_fast.result import SweepResult


def plot_heatmap(
    result: SweepResult, ax: Axes | None = None, *, variable: str | None = None, log: bool = False
) -> Axes:
    """Draw a row for each group of parameters, from its first alpha to its last.

    Args:
        result: The curves; their points may be in any order.
        ax: Axes to draw on. None makes a new figure.
        variable: What to draw. None: the loss and, in a new figure, the accuracy beside it.
        log: Colours by the logarithm, for a loss that spans decades; accuracy is never drawn so unless asked for.

    Returns:
        The axes, of the loss where there are two.

    Raises:
        KeyError: If there is no such variable.
        ValueError: If it does not have one value for each point, or the logarithm needs positive ones.
    """
    variables = chosen(result, variable, alone=ax is not None)
    if ax is not None:
        panels = [ax]
    else:
        height = 1.0 + 0.26 * result.dataset.sizes["group"]
        panels = new_panels(len(variables), 5.0, max(height, 2.4), sharey=True)[1]
    for one, name in zip(panels, variables, strict=True):
        _heatmap(one, result, name, log and (variable is not None or name == "loss"))
    panels[0].set_ylabel("group")
    for one in panels[1:]:
        one.tick_params(labelleft=False)
    return panels[0]


def _heatmap(ax: Axes, result: SweepResult, variable: str, log: bool) -> None:
    order = np.argsort(result.alphas, kind="stable")
    values = result[variable].astype(np.float64)[:, order]
    shown = np.ma.masked_invalid(values)
    groups = len(values)
    edges = np.arange(groups + 1) - 0.5
    norm = scale(values, log)
    ax.pcolormesh(_edges(result.alphas[order]), edges, shown, norm=norm, cmap=colormap(variable), rasterized=True)
    ax.set_facecolor(BLANK)
    ax.set_ylim(groups - 0.5, -0.5)
    ax.set_yticks(range(groups), [as_text(group) for group in result["group"].tolist()], fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(axis_label(result, "alpha"))
    color_bar(ax, result, variable, norm)
    say_gaps(ax, values)


def _edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders [A + 1] of cells around ascending points [A]: half way between them, outermost as wide again."""
    middles = (centres[1:] + centres[:-1]) / 2
    if centres.size < 2:
        return np.concatenate([centres - 0.5, centres + 0.5])
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])
