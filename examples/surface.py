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
    frame = mli_fast.Plane(*random.anchors)  # the same plane, with a frame that networks can be projected onto
    seen = projected(frame, trajectory)
    directions = np.array([place for _, place in frame.marks[1:]])

    plane = mli_fast.Plane(theta_0, theta_T, early)
    own = projected(plane, trajectory)
    heights = np.linspace(-0.5, 0.5, size) * own[-1, 0]
    through = mli_fast.surface(network, plane, task.data.train, size, heights)

    rows = {"random, filter-normalised": row(around, seen), "init, early, end": row(through, own)}
    table = pd.DataFrame(rows).T.rename_axis("plane")
    task.table(table)
    random_share, own_share = table["share of the trajectory"]
    task.say(
        "Li et al.: random planes show the bowl around the network, and next to nothing of the trajectory.",
        f"Here the random plane holds {random_share:.2%} of it, the plane through three states {own_share:.1%}.",
    )
    task.figure(figure([around, through], [seen[:, :2] @ np.linalg.inv(directions), own[:, :2]], table.index))


def projected(plane: mli_fast.Plane, trajectory: Sequence[State]) -> Array:
    """Of each state its place on the plane and its distance from it [T, 3]."""
    return np.array([plane.project(state) for state in trajectory])


def row(surface: mli_fast.SweepResult, places: Array) -> dict[str, float]:
    """Extremes of the surface, and how much of the squared distances from the end lies in the plane."""
    squares = ((places - places[-1]) ** 2).sum(axis=0)
    return {
        "least loss": surface.loss.min(),
        "largest loss": surface.loss.max(),
        "least accuracy": surface.accuracy.min(),
        "share of the trajectory": squares[:2].sum() / squares.sum(),
    }


def figure(surfaces: Sequence[mli_fast.SweepResult], trajectories: Sequence[Array], titles: Sequence[str]) -> Figure:
    figure = Figure(figsize=(12.0, 4.6), dpi=110, layout="constrained")
    for ax, surface, path, title in zip(figure.subplots(1, 2), surfaces, trajectories, titles, strict=True):
        surface.plot(ax, log=True, trajectory=path)
        ax.set_title(title)
    return figure


if __name__ == "__main__":
    command(main)
