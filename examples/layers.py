"""One layer at a time (Vlaar & Frankle 2022): what each layer's way from initialisation to the end means for the loss.

A convolutional network without batch norm, and a fully connected one. The layers that do not move are held at the end,
so that alpha = 0 puts one layer alone back to its initialisation, or at the start, so that it alone is trained; or the
layers move one after the other from the bottom: cumulative.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

import mli_fast
from examples.common.networks import cnn, mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, train
from mli_fast.measures import min_delta

RECIPE = Recipe("sgd", rate=0.05, steps=1000)
WAYS = {
    "others at the end": {"others": "end"},
    "others at the start": {"others": "start"},
    "from the bottom, others at the end": {"others": "end", "cumulative": "bottom"},
}


def main(task: Task) -> None:
    networks = {"CNN": cnn(task.data.shape, (16, 32, 32, 32), batch_norm=False), "MLP": mlp(task.data.shape, depth=6)}
    recipe = Recipe("adam", rate=3e-3, steps=150) if task.quick else RECIPE
    results = {name: layerwise(task, network, recipe) for name, network in networks.items()}
    table = pd.concat({name: rows(result) for name, result in results.items()}, names=["network", "layer"])
    task.table(table)
    say(task, table)
    task.figure(heat_maps(results))


def layerwise(task: Task, network: nn.Module, recipe: Recipe) -> dict[str, mli_fast.SweepResult]:
    theta_0, theta_T = train(network, task.data.train, recipe)
    groups = {f"layer {i}": name for i, name in enumerate(layers(network), 1)}
    return {
        way: mli_fast.layerwise(network, theta_0, theta_T, task.data.train, 25, groups=groups, **options)
        for way, options in WAYS.items()
    }


def layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def rows(results: Mapping[str, mli_fast.SweepResult]) -> pd.DataFrame:
    alone, only, cumulative = results.values()
    return pd.DataFrame(
        {
            "put back: loss": alone.loss[:, 0],
            "put back: accuracy": alone.accuracy[:, 0],
            "put back: min Delta": [min_delta(line.loss) for _, line in alone.lines()],
            "trained alone: loss": only.loss[:, -1],
            "trained alone: min Delta": [min_delta(line.loss) for _, line in only.lines()],
            "put back up to here: loss": cumulative.loss[:, 0],
            "put back up to here: accuracy": cumulative.accuracy[:, 0],
        },
        index=alone["group"],
    )


def say(task: Task, table: pd.DataFrame) -> None:
    task.say("Vlaar & Frankle: some layers are far more sensitive to being put back to their start than others.")
    for name, of in table.groupby("network", sort=False):
        rows = of.droplevel("network")
        alone, up_to = rows["put back: loss"], rows["put back up to here: loss"]
        task.say(
            f"Here, {name}: put back alone, {alone.idxmin()} leaves a loss of {alone.min():.2g},",
            f"{alone.idxmax()} one of {alone.max():.2g}.",
            f"Trained alone, the best takes it to {rows['trained alone: loss'].min():.2g}.",
            f"Put back from the bottom it is largest up to {up_to.idxmax()}, {up_to.max():.2g};",
            f"with all back it is {up_to.iloc[-1]:.2g}.",
        )


def heat_maps(results: Mapping[str, Mapping[str, mli_fast.SweepResult]]) -> Figure:
    figure = Figure(figsize=(13.0, 6.0), dpi=110, layout="constrained")
    grid = figure.subplots(len(results), len(WAYS), squeeze=False)
    for row, (name, of_network) in zip(grid, results.items(), strict=True):
        for ax, (way, result) in zip(row, of_network.items(), strict=True):
            result.plot(ax)
            ax.set_title(f"{name}, {way}", fontsize="medium")
    return figure


if __name__ == "__main__":
    command(main)
