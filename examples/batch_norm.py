"""Every batch-norm policy on one network: what the running statistics of a point are taken to be decides the curve.

Published code picks one policy each, mostly without saying so: interpolating the statistics, those of one end, those of
each batch, or those measured anew at every point. Left: from the initialisation to the trained network. Right: between
two networks trained apart, where measuring anew takes a part of the barrier away (Jordan et al. 2023, REPAIR).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

import mli_fast
from examples.common.networks import cnn
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from mli_fast.demo.training import Data
from mli_fast.measures import barrier, min_delta, plateau_length
from mli_fast.plot import plot_curves

RECIPE = Recipe("sgd", rate=0.05, steps=400)
BATCH = 128
THRESHOLD = 0.9
PLATEAU = f"plateau (above {THRESHOLD:.0%})"


def main(task: Task) -> None:
    recipe = Recipe("sgd", 0.05, 60) if task.quick else RECIPE
    network = cnn(task.data.shape)
    theta_0, theta_T = train(network, task.data.train, recipe)
    other = train(cnn(task.data.shape, seed=1), task.data.train, replace(recipe, seed=1))[-1]
    lines = {"initialisation to end": (theta_0, theta_T), "two networks": (theta_T, other)}
    alphas = np.linspace(0, 1, 11 if task.quick else 51)  # 0.5 is one of them
    results = {name: by_policy(network, ends, task.data.train, alphas) for name, ends in lines.items()}
    tables = {name: pd.DataFrame({policy: row(r) for policy, r in of.items()}).T for name, of in results.items()}
    for name, table in tables.items():
        task.table(table.rename_axis(name), name.replace(" ", "-"))
    say(task, *tables.values())
    figure = plot_curves(results)
    figure.set_size_inches(10.0, 6.5)  # room for a legend of six
    task.figure(figure)


def by_policy(
    network: nn.Module, ends: tuple[State, State], data: Data, alphas: NDArray[np.float64]
) -> dict[str, mli_fast.SweepResult]:
    batches = list(zip(*(part.split(BATCH) for part in data), strict=True))
    options: dict[str, dict[str, Any]] = {
        "interpolate": {},
        "recalibrate": {"calibration": data},
        "recalibrate-ema": {"calibration": batches},
        "update-bn": {"calibration": batches},
        "batch": {},
        "start": {},
        "end": {},
    }
    return {
        policy: mli_fast.sweep(network, *ends, batches, alphas, batch_norm=policy, **given)
        for policy, given in options.items()
    }


def row(result: mli_fast.SweepResult) -> dict[str, float]:
    middle = result.alphas.tolist().index(0.5)
    return {
        "loss at 0": result.loss[0],
        "loss at 0.5": result.loss[middle],
        "accuracy at 0.5": result.accuracy[middle],
        "loss at 1": result.loss[-1],
        "min Delta": min_delta(result.loss),
        "barrier (chord)": barrier(result.loss, kind="chord"),
        PLATEAU: plateau_length(result.alphas, result.loss, THRESHOLD),
    }


def say(task: Task, trained: pd.DataFrame, joined: pd.DataFrame) -> None:
    usual = ["interpolate", "recalibrate", "recalibrate-ema", "update-bn"]
    plateaus = ", ".join(f"{policy} {trained.loc[policy, PLATEAU]:.2f}" for policy in usual)
    barriers = ", ".join(f"{policy} {joined.loc[policy, 'barrier (chord)']:.2f}" for policy in usual)
    task.say(
        "The same checkpoints, by policy.",
        f"Plateau of the loss: {plateaus}.",
        f"Barrier between two networks: {barriers}.",
        f"With the statistics of the start the trained network has a loss of {trained.loc['start', 'loss at 1']:.2g},",
        f"with its own {trained.loc['end', 'loss at 1']:.2g}.",
        "'recalibrate-ema' begins with mean 0 and variance 1 and forgets them only over many batches:",
        "on little data they are still seen in it, where 'update-bn' averages over the batches alone.",
    )


if __name__ == "__main__":
    command(main)
