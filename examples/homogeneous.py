"""The simplest model with a plateau, against its formula (the setting of Wang et al. 2022).

A network of r layers whose only bias is that of the last layer has, on the line from zero to its trained parameters,
the logits alpha^r s_k + alpha b_k: the bias leads at first. The true class y of an image overtakes a rival k at
alpha* = ((b_k - b_y) / (s_y - s_k))^(1 / (r - 1)), later the deeper the network. Networks of several depths are swept,
and the accuracy at each alpha is compared with the share of images for which the formula has the true class ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

import mli_fast
from examples.common.networks import mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from mli_fast.demo.training import Data
from mli_fast.measures import homogeneous_crossing

Array = NDArray[np.float64]

DEPTHS = (2, 3, 4, 5, 6)
RECIPE = Recipe("sgd", rate=0.05, steps=1500)
ALPHAS = np.linspace(0.0, 1.0, 201)[1:]  # at 0 all logits are 0
SHARES = (0.5, 0.9)


def main(task: Task) -> None:
    recipe = Recipe("sgd", rate=0.05, steps=300) if task.quick else RECIPE
    rows, curves = {}, {}
    for kind in ("ReLU", "linear"):
        for r in DEPTHS[:3] if task.quick else DEPTHS:
            network = mlp(task.data.shape, depth=r, relu=kind == "ReLU", bias="last")
            theta_T = train(network, task.data.train, recipe)[-1]
            right, crossings = overtaking(network, theta_T, task.data.train, r)
            zero = {name: torch.zeros_like(value) for name, value in theta_T.items()}
            accuracy = mli_fast.sweep(network, zero, theta_T, right, ALPHAS).accuracy
            formula = np.array([(crossings <= alpha).mean() for alpha in ALPHAS])
            rows[kind, r] = row(accuracy, crossings, formula)
            curves[kind, r] = accuracy, formula
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["network", "r"])
    task.table(table)
    task.say(
        f"The sweep sees a share of images turn right to within its step of {ALPHAS[1] - ALPHAS[0]:.3g}.",
        "Largest difference of the two accuracies, at any alpha and over all networks:",
        f"{table['largest difference'].max():.2%}.",
    )
    task.figure(figure(curves))


def overtaking(network: nn.Module, theta_T: State, data: Data, r: int) -> tuple[Data, Array]:
    """The images that are right at the end, and the alpha from which on each is."""
    network.load_state_dict(theta_T)
    bias = theta_T[next(name for name in reversed(theta_T) if name.endswith("bias"))].double()
    with torch.no_grad():
        logits = network(data[0]).double()
    right = logits.argmax(dim=1) == data[1]
    data = data[0][right], data[1][right]
    rows = zip((logits[right] - bias).numpy(), data[1].tolist(), strict=True)
    return data, np.array([_overtakes(signal, bias.numpy(), label, r) for signal, label in rows])


def _overtakes(signal: Array, bias: Array, label: int, r: int) -> float:
    """Where the last rival with a lead is overtaken; 0 where there is none."""
    leads, margins = bias - bias[label], signal[label] - signal
    rivals = zip(leads[leads > 0], margins[leads > 0], strict=True)
    return max((homogeneous_crossing(lead, margin, r) for lead, margin in rivals), default=0.0)


def row(accuracy: Array, crossings: Array, formula: Array) -> dict[str, float]:
    found: dict[str, float] = {"images": len(crossings)}
    for share in SHARES:
        found[f"{share:.0%} right, sweep"] = ALPHAS[np.argmax(accuracy >= share)]
        found[f"{share:.0%} right, formula"] = np.quantile(crossings, share, method="inverted_cdf")
    return found | {"largest difference": np.abs(accuracy - formula).max()}


def figure(curves: Mapping[tuple[str, int], tuple[Array, Array]]) -> Figure:
    figure = Figure(figsize=(9.0, 3.6), dpi=120, layout="constrained")
    panels = dict(zip(("ReLU", "linear"), figure.subplots(1, 2, sharey=True), strict=True))
    for (kind, r), (accuracy, formula) in curves.items():
        panels[kind].step(ALPHAS, formula, where="mid", color=f"C{r - 2}", linewidth=1.2, label=f"r = {r}")
        panels[kind].plot(ALPHAS[4::5], accuracy[4::5], "o", color=f"C{r - 2}", markersize=4, fillstyle="none")
    for kind, ax in panels.items():
        ax.set_title(f"{kind} networks", fontsize="medium")
        ax.set_xlabel(r"$\alpha$")
        ax.grid(color="0.92")
    panels["ReLU"].set_ylabel("share right: formula (line), sweep (circles)")
    panels["ReLU"].legend(fontsize="small")
    return figure


if __name__ == "__main__":
    command(main)
