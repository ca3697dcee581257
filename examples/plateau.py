"""The plateau, and the biases behind it (Wang et al. 2022).

From an initialisation whose biases are zero to the trained network the error of a deep network stays near chance for
long, and then falls. Schedules move the biases apart from the weights: in proportion to the signal that comes to them
(homogeneous: that of layer i as alpha^i), the last one alone so, or held at either end; or the biases alone move. Then
class by class: what the network predicts on the plateau, beside the bias of the last layer.

The plateau of a curve is here the first part of the line on which it stays above 90 % of its starting value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

import mli_fast
from examples.common.networks import mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from examples.plateau_figure import draw
from mli_fast.measures import plateau_length
from mli_fast.schedules import power

DEPTH = 6
SCHEDULES: dict[str, Mapping[str, Any] | None] = {
    "linear": None,
    "homogeneous biases": {"bias": "homogeneous"},
    "last bias as alpha^6": {"last_bias": power(DEPTH)},
    "last bias at the start": {"last_bias": "start"},
    "last bias at the end": {"last_bias": "end"},
    "biases at the start": {"bias": "start"},
    "biases at the end": {"bias": "end"},
    "weights at the start": {"weight": "start"},
}
DEPTHS: tuple[int, ...] = (3, 4, 5, DEPTH, 7)
SEEDS: tuple[int, ...] = (0, 1, 2)
RECIPE = Recipe("sgd", rate=0.05, steps=1500)
THRESHOLD = 0.9
METRICS = ("accuracy", "class_accuracy", "prediction_histogram")

Runs = dict[str, tuple[State, State]]  # of each seed, both ends


def main(task: Task) -> None:
    depths, seeds, recipe = DEPTHS, SEEDS, RECIPE
    if task.quick:
        depths, seeds, recipe = (3, DEPTH), (0,), replace(RECIPE, steps=600)
    networks = {depth: trained(task, depth, seeds, recipe) for depth in depths}

    def swept(depth: int, schedule: str) -> mli_fast.SweepResult:
        network = mlp(task.data.shape, depth=depth)
        data, moves = task.data.train, SCHEDULES[schedule]
        return mli_fast.sweep_many(network, networks[depth], data, 50, metrics=METRICS, schedule=moves)

    results = {schedule: swept(DEPTH, schedule) for schedule in SCHEDULES}
    schedules = pd.DataFrame({name: plateaus(result) for name, result in results.items()}).T.rename_axis("schedule")
    task.table(schedules)
    of_depth = {(d, schedule): plateaus(swept(d, schedule)) for d in depths for schedule in list(SCHEDULES)[:2]}
    by_depth = pd.DataFrame(of_depth).T.rename_axis(["depth", "schedule"])
    task.table(by_depth, "depths")
    line = results["linear"].select(run="0")
    classes = by_class(line, last_bias(networks[DEPTH]["0"][1]))
    task.table(classes, "classes")
    say(task, schedules, by_depth, classes)
    task.figure(draw(results, by_depth, line, classes))


def trained(task: Task, depth: int, seeds: tuple[int, ...], recipe: Recipe) -> Runs:
    runs = {}
    for seed in seeds:
        theta_0, theta_T = train(mlp(task.data.shape, depth=depth, seed=seed), task.data.train, recipe)
        runs[str(seed)] = theta_0, theta_T
    return runs


def plateaus(result: mli_fast.SweepResult) -> pd.Series:
    """In the mean over seeds."""
    rows = [
        {
            "initial loss": line.loss[0],
            "final loss": line.loss[-1],
            "plateau of loss": plateau_length(line.alphas, line.loss, THRESHOLD),
            "initial error": 1 - line.accuracy[0],
            "final error": 1 - line.accuracy[-1],
            "plateau of error": plateau_length(line.alphas, 1 - line.accuracy, THRESHOLD),
        }
        for _, line in result.lines()
    ]
    return pd.DataFrame(rows).mean()


def by_class(line: mli_fast.SweepResult, bias: np.ndarray) -> pd.DataFrame:
    """Of each class: its last bias, its share of the predictions half way along the plateau, and when it is learned."""
    middle = plateau_length(line.alphas, 1 - line.accuracy, THRESHOLD) / 2
    on_plateau = np.argmin(np.abs(line.alphas - middle))
    wrong = line["class_accuracy"] < 0.5  # [A, classes]
    learned = [line.alphas[column].max(initial=0.0) for column in wrong.T]
    columns = {"last bias": bias, "predicted on the plateau": line["prediction_histogram"][on_plateau] / line.count}
    return pd.DataFrame(columns | {"half wrong up to": learned}, index=pd.Index(line["class"], name="class"))


def last_bias(state: State) -> np.ndarray:
    return next(value for name, value in reversed(state.items()) if name.endswith("bias")).numpy()


def say(task: Task, schedules: pd.DataFrame, by_depth: pd.DataFrame, classes: pd.DataFrame) -> None:
    error, loss = schedules["plateau of error"], schedules["plateau of loss"]
    of_depth = by_depth["plateau of error"].xs("linear", level="schedule")
    top = classes["last bias"].idxmax()
    others = classes[["last bias", "half wrong up to"]].drop(top)
    task.say(
        "Wang et al.: the plateau of the error comes from the biases, the last one above all, and grows with depth.",
        f"Here, at depth {DEPTH}, it is {error['linear']:.2f} long,",
        f"{error['homogeneous biases']:.2f} where the biases move homogeneously,",
        f"{error['last bias at the start']:.2f} without the last bias (at the start it is 0),",
        f"{error['last bias at the end']:.2f} with all of it from the start on.",
        f"The biases add {error['linear'] - error['homogeneous biases']:.2f} to it, the last one alone",
        f"{error['linear'] - error['last bias at the start']:.2f}.",
        f"By depth: {', '.join(f'{depth}: {length:.2f}' for depth, length in of_depth.items())}.",
        f"The plateau of the loss is {loss['linear']:.2f} long,",
        f"{loss['homogeneous biases']:.2f} with homogeneous biases.",
    )
    task.say(
        f"Half way along it the first network takes {classes['predicted on the plateau'][top]:.0%} of the images",
        f"for the class {top}, that of the largest last bias.",
        "Rank correlation of a class's last bias with the alpha up to which it is half wrong,",
        f"over the other classes: {others.rank().corr().iloc[0, 1]:.2f}.",
    )


if __name__ == "__main__":
    command(main)
