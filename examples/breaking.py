"""Networks that move far break monotonicity (Lucas et al. 2021): large learning rates, Adam.

One fully connected network trained at a grid of learning rates with SGD and with Adam, from several seeds. Beside min
Delta, the largest rise of the training loss on the line, stand what the paper ties it to: the distance moved in
parameter space and the Gauss length, by how much the direction of the logits turns on the way.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import mli_fast
from examples.common.networks import mlp
from examples.common.task import Task, command
from examples.common.training import Recipe, train

RATES = {"sgd": (0.01, 0.03, 0.05, 0.1, 0.15), "adam": (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2)}
SEEDS = (0, 1, 2)
STEPS = 800
KEPT, RISE = 0.1, 1e-3  # nats
FLOOR = 1e-6  # nats; where smaller rises, also 0, are drawn on the logarithmic axis
COLUMNS = ["final_loss", "counts", "min_delta", "monotone", "distance", "distance_relative", "gauss_length"]


def main(task: Task) -> None:
    recipes = grid(task.quick)
    network = mlp(task.data.shape, depth=6)
    runs = {}
    for label, recipe in recipes.items():
        states = train(network, task.data.train, recipe)
        runs[label] = states[0], states[-1]
    result = mli_fast.sweep_many(network, runs, task.data.train, 50)
    table = result.table(tol=RISE)
    table["counts"] = table.index.isin(result.filter(KEPT)["run"])
    for name in ("optimiser", "rate"):
        table[name] = [getattr(recipes[label], name) for label in table.index]
    task.table(table[COLUMNS])
    say(task, table)
    task.figure(scatter(table))


def grid(quick: bool) -> dict[str, Recipe]:
    if quick:
        return {f"adam {rate:g}": Recipe("adam", rate, steps=200) for rate in (1e-3, 2e-2)}
    return {
        f"{optimiser} {rate:g}, seed {seed}": Recipe(optimiser, rate, STEPS, seed=seed)
        for optimiser, rates in RATES.items()
        for rate in rates
        for seed in SEEDS
    }


def say(task: Task, table: pd.DataFrame) -> None:
    """The paper's claim, and what these runs have to say to it."""
    ended = table.dropna()  # else training diverged to NaN
    broken, far = ~ended["monotone"], ended["distance"] > ended["distance"].median()
    trained = ended[ended["counts"]]
    task.say(
        "Lucas et al.: the further a network moves, and the longer its Gauss length, the sooner monotonicity breaks.",
        f"Here: beyond the median distance {broken[far].sum()} of {far.sum()} runs are not monotone,",
        f"up to it {broken[~far].sum()} of {(~far).sum()}; {len(table) - len(ended)} diverged.",
        f"Of the {len(trained)} with a final loss of at most {KEPT}, {(~trained['monotone']).sum()} are not.",
    )
    for optimiser, runs in trained.groupby("optimiser"):
        ranks = runs[["min_delta", "distance", "gauss_length", "rate"]].rank().corr()["min_delta"].drop("min_delta")
        found = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
        task.say(f"Rank correlation of min Delta among these, {optimiser}, with: {found}.")


def scatter(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(9.0, 3.8), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rates = LogNorm(table["rate"].min(), table["rate"].max())
    for ax, quantity in zip(panels, ("distance", "gauss_length"), strict=True):
        _panel(ax, table, quantity, rates)
    panels[0].set_ylabel(r"min $\Delta$ (nats)")
    panels[0].set_xlabel(r"distance $|\theta_T - \theta_0|$")
    panels[1].set_xlabel("Gauss length (radians)")
    panels[1].legend(fontsize="small")
    figure.colorbar(panels[0].collections[0], ax=list(panels)).set_label("learning rate")
    return figure


def _panel(ax: Axes, table: pd.DataFrame, quantity: str, rates: LogNorm) -> None:
    for (optimiser, counts), runs in table.groupby(["optimiser", "counts"]):
        marker, edges = "o" if optimiser == "sgd" else "s", "black" if counts else "0.75"
        label = f"{optimiser}, final loss {'at most' if counts else 'above'} {KEPT}"
        x, y = runs[quantity], runs["min_delta"].clip(FLOOR)
        ax.scatter(x, y, c=runs["rate"], norm=rates, label=label, marker=marker, edgecolors=edges)
    ax.axhline(RISE, color="0.5", linewidth=0.9, linestyle="--")
    ax.set_yscale("log")
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    command(main)
