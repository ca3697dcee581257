"""All pairs of many networks at once: who is linearly connected to whom (Frankle et al. 2020).

One network is trained; from its state after k steps copies are trained, each on another order of the images. Beside
them are networks of other initialisations. The loss on the line between any two has a barrier unless they shared enough
training before they parted: the lines of all pairs are swept in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import nn

import mli_fast
from examples.common.networks import mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from mli_fast.measures import barrier

RECIPE = Recipe("sgd", rate=0.08, steps=1200, batch=16)  # noisy: else the order of the images hardly matters
SHARED: tuple[int, ...] = (0, 100, 400, 800)
COPIES: tuple[int, ...] = (1, 2, 3)
STABLE = 0.02  # barrier of the error: Frankle et al. call a network stable below it
STRANGERS = "strangers"

Name = tuple[str, int]  # family and number


def main(task: Task) -> None:
    recipe, shared, copies = RECIPE, SHARED, COPIES
    if task.quick:
        recipe, shared, copies = replace(RECIPE, steps=200), (0, 100), (1, 2)
    networks = families(task, recipe, shared, copies)
    pairs = mli_fast.all_pairs({f"{family}, {copy}": state for (family, copy), state in networks.items()})
    result = mli_fast.sweep_many(network(task), pairs, task.data.train, 30, metrics=("accuracy",))
    lines = dict(zip(combinations(networks, 2), (line for _, line in result.lines()), strict=True))
    rows = [
        {"family": one[0], "and": other[0], "loss": barrier(line.loss), "error": barrier(1 - line.accuracy)}
        for (one, other), line in lines.items()
    ]
    table = pd.DataFrame(rows).groupby(["family", "and"], sort=False).mean().rename(columns="barrier of the {}".format)
    task.table(table)
    error = table["barrier of the error"]
    within = ", ".join(f"{family}: {error[family, family]:.1%}" for family in error.index.unique("family"))
    task.say(
        "Frankle et al.: the more training networks share before they part, the lower the barrier between them;",
        f"below {STABLE:.0%} of error they count as linearly connected.",
        f"Here, in the mean over pairs, among siblings, {within}.",
    )
    task.figure(figure(list(networks), lines))


def network(task: Task, seed: int = 0) -> nn.Module:
    return mlp(task.data.shape, depth=4, seed=seed)


def families(task: Task, recipe: Recipe, shared: Sequence[int], copies: Sequence[int]) -> dict[Name, State]:
    """(family, number) -> a trained network."""
    parent = network(task)
    states = train(parent, task.data.train, recipe, every=100)
    found = {}
    for k in shared:
        parent.load_state_dict(states[k // 100])
        for copy in copies:
            found[f"{k} steps shared", copy] = train(parent, task.data.train, replace(recipe, seed=copy))[-1]
    for copy in copies:
        found[STRANGERS, copy] = train(network(task, seed=copy), task.data.train, replace(recipe, seed=copy))[-1]
    return found


def figure(names: list[Name], lines: Mapping[tuple[Name, Name], mli_fast.SweepResult]) -> Figure:
    heights = np.zeros((len(names), len(names)))
    for (one, other), line in lines.items():
        i, j = names.index(one), names.index(other)
        heights[i, j] = heights[j, i] = barrier(line.loss)
    figure = Figure(figsize=(7.5, 6.5), dpi=110, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(heights)
    labels = [f"{family}, {copy}" for family, copy in names]
    ax.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), labels)
    for (i, j), height in np.ndenumerate(heights):
        color = "white" if height < 0.6 * heights.max() else "black"
        ax.text(j, i, f"{height:.2f}", ha="center", va="center", fontsize="x-small", color=color)
    figure.colorbar(image).set_label("barrier of the loss (midpoint)")
    return figure


if __name__ == "__main__":
    command(main)
