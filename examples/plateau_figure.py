"""The figure of `examples.plateau`."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

import mli_fast

DRAWN = ("linear", "homogeneous biases", "last bias at the start", "last bias at the end", "weights at the start")


def draw(
    results: Mapping[str, mli_fast.SweepResult],
    by_depth: pd.DataFrame,
    line: mli_fast.SweepResult,
    classes: pd.DataFrame,
) -> Figure:
    """Above: loss and error by schedule, in the mean over seeds, and plateaus by depth. Below: one line, by class."""
    figure = Figure(figsize=(13.0, 7.0), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 3)
    for name in DRAWN:
        result = results[name]
        above[0].plot(result.alphas, result.loss.mean(axis=0), label=name)
        above[1].plot(result.alphas, 1 - result.accuracy.mean(axis=0))
    above[0].legend(fontsize="small")
    _label(above[0], "loss by schedule, mean over seeds", r"$\alpha$", "loss (mean cross-entropy)")
    _label(above[1], "error by schedule, mean over seeds", r"$\alpha$", "error")
    _depths(above[2], by_depth)
    colors = _errors(below[0], line, classes)
    order = classes["last bias"].argsort()[::-1]
    shares = line["prediction_histogram"].T / line.count
    below[1].stackplot(line.alphas, shares[order], colors=[colors[label] for label in order], edgecolor="white")
    _label(below[1], "what one line predicts, same colours", r"$\alpha$", "share of the predictions")
    _learned(below[2], classes, colors)
    return figure


def _depths(ax: Axes, by_depth: pd.DataFrame) -> None:
    for quantity, marker in (("plateau of error", "o"), ("plateau of loss", "s")):
        for number, schedule in enumerate(by_depth.index.unique("schedule")):
            lengths = by_depth[quantity].xs(schedule, level="schedule")
            line, label = "-" if marker == "o" else ":", f"{quantity.split()[-1]}, {schedule}"
            ax.plot(lengths.index, lengths, marker=marker, linestyle=line, color=f"C{number}", label=label)
    ax.set_xticks(by_depth.index.unique("depth"))
    ax.legend(fontsize="small")
    _label(ax, "plateau by depth, mean over seeds", "depth", r"plateau length ($\alpha$)")


def _errors(ax: Axes, line: mli_fast.SweepResult, classes: pd.DataFrame) -> list[tuple[float, ...]]:
    scale = Normalize(classes["last bias"].min(), classes["last bias"].max())
    colors = [colormaps["coolwarm"](scale(bias)) for bias in classes["last bias"]]
    for label, color in enumerate(colors):
        ax.plot(line.alphas, 1 - line["class_accuracy"][:, label], color=color, label=str(label))
    ax.legend(fontsize="x-small", ncols=2, title="class")
    _label(ax, "error of each class on one line (red: large last bias)", r"$\alpha$", "error")
    return colors


def _learned(ax: Axes, classes: pd.DataFrame, colors: list[tuple[float, ...]]) -> None:
    ax.scatter(classes["last bias"], classes["half wrong up to"], c=colors, edgecolors="0.4")
    for label, row in classes.iterrows():
        ax.annotate(f" {label}", (row["last bias"], row["half wrong up to"]))
    _label(ax, "when each class is learned", "last bias", r"$\alpha$ up to which the class is half wrong")


def _label(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(color="0.92")
