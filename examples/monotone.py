"""From the initialisation to the trained network the loss only falls (Goodfellow et al. 2014; Lucas et al. 2021).

Fully connected and convolutional networks, with and without batch norm, trained with SGD and with Adam; the loss over
the training images on the line between the ends of each. A run counts where its final loss is at most 0.1, and breaks
the property where the loss rises by more than 1e-3 on the way: the rules of Lucas et al. for such networks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from torch import nn

import mli_fast
from examples.common.networks import cnn, mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from mli_fast import measures
from mli_fast.plot import plot_curves

RECIPES = {"SGD": Recipe("sgd", rate=0.05), "Adam": Recipe("adam", rate=3e-3)}
KEPT, RISE = 0.1, 1e-3  # nats
CONFIDENCE = 0.95
COLUMNS = ["final_loss", "final_accuracy", "counts", "min_delta", "monotone", "verdict", "distance", "gauss_length"]


def main(task: Task) -> None:
    results = {}
    for name, network in networks(task).items():
        runs = {label: ends(network, task, recipe) for label, recipe in RECIPES.items()}
        points = 11 if task.quick else 50
        results[name] = mli_fast.sweep_many(network, runs, task.data.train, points, **batch_norm(name, task))
    table = pd.concat({name: rows(result) for name, result in results.items()}, names=["network"])
    task.table(table[COLUMNS])
    counted = table[table["counts"]]
    steady = (table["verdict"] == "monotone").sum()
    task.say(
        "Lucas et al.: at moderate learning rates the loss is monotone in nearly all networks.",
        f"Here: in {counted['monotone'].sum()} of the {len(counted)} runs that count (a final loss of at most {KEPT}),",
        f"where rises up to {RISE:g} are allowed;",
        f"in {steady} of all {len(table)} no step at all rises beyond the noise of the examples,",
        f"with confidence {CONFIDENCE:.0%}.",
    )
    task.figure(plot_curves({name: dict(result.lines()) for name, result in results.items()}))


def networks(task: Task) -> dict[str, nn.Module]:
    shape = task.data.shape
    return {
        "MLP": mlp(shape),
        "MLP, batch norm": mlp(shape, batch_norm=True),
        "CNN": cnn(shape, batch_norm=False),
        "CNN, batch norm": cnn(shape),
    }


def ends(network: nn.Module, task: Task, recipe: Recipe) -> tuple[State, State]:
    states = train(network, task.data.train, replace(recipe, steps=150) if task.quick else recipe)
    return states[0], states[-1]


def batch_norm(name: str, task: Task) -> dict[str, Any]:
    """As Lucas et al. do: at every point the running statistics are those that a pass in training mode leaves.

    They start from reset ones; small batches, since a tenth of the start is left after 22, and the digits are few.
    """
    if "batch norm" not in name:
        return {}
    images, labels = task.data.train
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    return {"batch_norm": "recalibrate-ema", "calibration": batches}


def rows(result: mli_fast.SweepResult) -> pd.DataFrame:
    """A row per run: the package's own table, whether the run counts, and the verdict that its noise allows."""
    table = result.table(tol=RISE)
    table["counts"] = table.index.isin(result.filter(KEPT)["run"])
    table["verdict"] = [
        measures.is_monotonic(line["loss_step"], line["loss_step_stderr"], CONFIDENCE).outcome
        for _, line in result.lines()
    ]
    return table


if __name__ == "__main__":
    command(main)
