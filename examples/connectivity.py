"""Two networks trained apart, joined by a line and by a trained curve (Garipov et al. 2018; Yang et al. 2021).

Fully connected networks of several widths, two of each from different seeds. On the straight line between them the loss
has a barrier; a quadratic Bezier curve, whose bend is trained, avoids it. Reported are what Yang et al. report: mode
connectivity mc (half the sum of the ends' training errors less the error furthest from it, in percent: negative where
there is a barrier), and the linear CKA between the outputs of the two networks; beside them barriers of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

import mli_fast
from examples.common.networks import mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, train
from mli_fast.demo.training import one_thread
from mli_fast.measures import barrier, mode_connectivity

WIDTHS: tuple[int, ...] = (8, 32, 128)
RECIPE = Recipe("sgd", rate=0.05, steps=1000)
BEND_EPOCHS = 60


def main(task: Task) -> None:
    widths, recipe, epochs = WIDTHS, RECIPE, BEND_EPOCHS
    if task.quick:
        widths, recipe, epochs = (8, 32), Recipe("adam", rate=3e-3, steps=150), 20
    fits = {f"width {width}": joined(task, width, recipe, epochs) for width in widths}
    paths = {(name, path): row(result) for name, fit in fits.items() for path, result in both(fit).items()}
    table = pd.DataFrame.from_dict(paths, orient="index").rename_axis(["networks", "path"])
    task.table(table)
    say(task, table)
    task.figure(figure(fits))


def joined(task: Task, width: int, recipe: Recipe, epochs: int) -> mli_fast.BezierFit:
    seeds = (1, 2)
    networks = [mlp(task.data.shape, width, seed=seed) for seed in seeds]
    theta_0, theta_T = (
        train(network, task.data.train, replace(recipe, seed=seed))[-1]
        for network, seed in zip(networks, seeds, strict=True)
    )
    data, metrics = task.data.train, ("accuracy", "cka")
    with one_thread():
        return mli_fast.fit_bezier(networks[0], theta_0, theta_T, data, epochs=epochs, metrics=metrics)


def both(fit: mli_fast.BezierFit) -> dict[str, mli_fast.SweepResult]:
    return {"line": fit.line, "Bezier": fit.result}


def row(result: mli_fast.SweepResult) -> dict[str, float]:
    error = 100 * (1 - result.accuracy)
    return {
        "loss of the ends": (result.loss[0] + result.loss[-1]) / 2,
        "barrier (midpoint)": barrier(result.loss),
        "barrier (chord)": barrier(result.loss, kind="chord"),
        "largest error, %": error.max(),
        "mc, %": mode_connectivity(error),
        "CKA of the ends": result["cka"][0],
        "least CKA with the end": result["cka"].min(),
    }


def say(task: Task, table: pd.DataFrame) -> None:
    task.say(
        "Garipov et al.: a curve of low loss joins networks that a line does not.",
        "Yang et al.: the wider the networks, the better connected they are, and the more alike.",
    )
    for name, of in table.groupby("networks", sort=False):
        (mc_line, cka), (mc_curve, _) = of[["mc, %", "CKA of the ends"]].to_numpy()
        task.say(f"Here, {name}: mc {mc_line:.2f} % on the line, {mc_curve:.2f} % on the curve; CKA {cka:.3f}.")


def figure(fits: Mapping[str, mli_fast.BezierFit]) -> Figure:
    figure = Figure(figsize=(0.6 + 3.4 * len(fits), 7.0), dpi=110, layout="constrained")
    grid = figure.subplots(3, len(fits), sharex=True, sharey="row", squeeze=False)
    for column, (name, fit) in zip(grid.T, fits.items(), strict=True):
        for path, result in both(fit).items():
            for ax, values in zip(column, (result.loss, 100 * (1 - result.accuracy), result["cka"]), strict=True):
                ax.plot(result.alphas, values, label=path)
        column[0].set_title(name)
        column[-1].set_xlabel(r"$\alpha$")
    for ax, label in zip(grid[:, 0], ("loss (mean cross-entropy)", "error, %", r"CKA with $\theta_T$"), strict=True):
        ax.set_ylabel(label)
    for ax in grid.flat:
        ax.grid(color="0.92")
    grid[0, 0].legend()
    return figure


if __name__ == "__main__":
    command(main)
