"""The loss around a trained network, and the way training took to it (Li et al. 2018).

Left: the plane of two random directions, each filter scaled to the norm of the network's own filter. Right: the plane
through the initialisation, an early state and the trained network. The states of training are projected onto both. Li
et al. warn that a random plane shows next to nothing of a trajectory: the table has the share that lies in each plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

import mli_fast
from examples.common.networks import cnn
from examples.common.task import Task, command
from examples.common.training import Recipe, State, train
from mli_fast.measures import distance
from mli_fast.paths import RandomDirections

RECIPE = Recipe("sgd", rate=0.05, steps=600)
STATES = 30
SIZE = 25

Array = NDArray[np.float64]


def main(task: Task) -> None:
    recipe, states, size = (Recipe("adam", 3e-3, 80), 8, 7) if task.quick else (RECIPE, STATES, SIZE)
    network = cnn(task.data.shape, batch_norm=False)
    trajectory = train(network, task.data.train, recipe, every=recipe.steps // states)
    theta_0, early, theta_T = trajectory[0], trajectory[len(trajectory) // 4], trajectory[-1]

    random = mli_fast.random_directions(theta_T, normalize="filter")
    around = mli_fast.surface(network, random, task.data.train, size, size)
    seen = projected(random, trajectory)

    plane = mli_fast.Plane(theta_0, theta_T, early)
    own = projected(plane, trajectory)
    heights = np.linspace(-0.5, 0.5, size) * own[-1, 0]
    through = mli_fast.surface(network, plane, task.data.train, size, heights)

    apart = np.array([distance(theta_T, state).absolute for state in trajectory])
    rows = {
        "random, filter-normalised": row(around, seen[:, 2], apart),
        "init, early, end": row(through, own[:, 2], apart),
    }
    table = pd.DataFrame(rows).T.rename_axis("plane")
    task.table(table)
    random_share, own_share = table["share of the trajectory"]
    task.say(
        "Li et al.: random planes show the bowl around the network, and next to nothing of the trajectory.",
        f"Here the random plane holds {random_share:.2%} of it, the plane through three states {own_share:.1%}.",
    )
    task.figure(figure([around, through], [seen[:, :2], own[:, :2]], table.index))


def projected(plane: mli_fast.Plane | RandomDirections, trajectory: Sequence[State]) -> Array:
    """Of each state its place (x, y) on the plane and its distance from it [T, 3]."""
    return np.array([plane.project(state) for state in trajectory])


def row(surface: mli_fast.SweepResult, off: Array, apart: Array) -> dict[str, float]:
    """Extremes of the surface, and how much of the squared distances [T] from the end lies in the plane."""
    return {
        "least loss": surface.loss.min(),
        "largest loss": surface.loss.max(),
        "least accuracy": surface.accuracy.min(),
        "share of the trajectory": 1 - (off**2).sum() / (apart**2).sum(),
    }


def figure(surfaces: Sequence[mli_fast.SweepResult], trajectories: Sequence[Array], titles: Sequence[str]) -> Figure:
    figure = Figure(figsize=(12.0, 4.6), dpi=110, layout="constrained")
    for ax, surface, path, title in zip(figure.subplots(1, 2), surfaces, trajectories, titles, strict=True):
        surface.plot(ax, log=True, trajectory=path)
        ax.set_title(title)
    return figure


if __name__ == "__main__":
    command(main)
