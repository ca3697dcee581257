"""Runs the demo: train, save, sweep, compare with the plain loop, print, plot."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import mli_fast
from mli_fast.demo.networks import NETWORKS, TITLES
from mli_fast.demo.plain import BATCH, plain_loop
from mli_fast.demo.training import RECIPES, Data, digits, train
from mli_fast.plot import plot_curves
from mli_fast.result import SweepResult

METRICS = ("accuracy", "class_loss", "class_accuracy")
ALPHAS = 50
TOLERANCE = (
    1e-3  # a rise up to this much, in nats, still counts as monotone: Lucas et al. 2021, fully connected networks
)
AGREEMENT = 1e-4  # relative, between the sweep and the plain loop: two fp32 computations in a different order
HEADER = ("model", "data", "min Delta", "monotone", "accuracy", "sweep s", "plain loop s", "times faster")


@dataclass(frozen=True)
class Row:
    """One line of the table: a model on one part of the data."""

    title: str
    part: str
    result: SweepResult
    seconds: float
    plain_seconds: float

    def cells(self) -> tuple[str, ...]:
        verdict = self.result.monotonicity(tol=TOLERANCE)
        return (
            self.title,
            self.part,
            f"{verdict.min_delta:.2g}",
            "yes" if verdict.monotone else "no",
            f"{self.result.accuracy[-1]:.1%}",
            f"{self.seconds:.3f}",
            f"{self.plain_seconds:.2f}",
            f"{self.plain_seconds / self.seconds:.1f}",
        )


def main(out: Path = Path("demo-output"), *, quick: bool = False) -> None:
    """Trains three small networks on handwritten digits and sweeps each from its initialisation to its final state.

    Prints a table and writes, under `out`, `curves.png` and for every network a folder with `init.safetensors`,
    `final.safetensors`, `train.nc` and `test.nc`.

    Args:
        out: the folder to write to; made if it is not there.
        quick: one epoch and 5 alphas, to see that all of it works; the figures then mean nothing.

    Raises:
        RuntimeError: scikit-learn is missing, or the sweep and the plain loop disagree.
    """
    started = time.perf_counter()
    alphas = np.linspace(0.0, 1.0, 5 if quick else ALPHAS)
    data = digits()
    images = {part: len(labels) for part, (_, labels) in data.items()}
    print(f"scikit-learn's handwritten digits: {images['train']} to train on, {images['test']} to test on")
    rows: list[Row] = []
    for name in NETWORKS:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        train_and_save(name, folder, data, epochs=1 if quick else None)
        rows += [sweep_and_compare(name, folder, part, data[part], alphas) for part in data]
    curves: dict[str, dict[str, SweepResult]] = {}
    for row in rows:
        curves.setdefault(row.title, {})[row.part] = row.result
    plot_curves(curves, out / "curves.png")
    print(f"\n{len(alphas)} alphas from initialisation (0) to trained network (1)\n\n{table(rows)}\n\n{NOTES}")
    print(f"\nWritten to {out}/: curves.png, and per model the two checkpoints and train.nc, test.nc")
    sweeps = sum(row.seconds for row in rows)
    print(f"All of it took {time.perf_counter() - started:.0f} s; one run of every sweep is {sweeps:.2f} s of that.")


NOTES = f"""\
min Delta: the largest rise of the mean loss on the way; monotone: it is at most {TOLERANCE:g}. accuracy: at alpha = 1.
Batch norm's running statistics are interpolated like the parameters; other policies give other curves.
Seconds: median of up to three runs, after one warm-up each. The plain loop does the same work with a DataLoader in
batches of {BATCH} and load_state_dict per alpha; the sweep is given the same data as a pair of tensors. Both gave
the same values."""


def train_and_save(name: str, folder: Path, data: dict[str, Data], epochs: int | None = None) -> None:
    """Makes one network, saves it, trains it, saves it again; the same numbers on every call.

    Args:
        name: "mlp", "cnn" or "vit".
        folder: where `init.safetensors` and `final.safetensors` go.
        data: from `digits()`.
        epochs: in place of the recipe's.
    """
    started = time.perf_counter()
    recipe = RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name]()
    save_file(model.state_dict(), folder / "init.safetensors")
    train(model, data["train"], recipe)
    save_file(model.state_dict(), folder / "final.safetensors")
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"  {TITLES[name]}: {size:,} parameters, epochs: {recipe.epochs}, {time.perf_counter() - started:.1f} s")


def sweep_and_compare(name: str, folder: Path, part: str, data: Data, alphas: NDArray[np.float64]) -> Row:
    """Sweeps one network over one part of the data, does the same with the plain loop, and checks the values.

    Args:
        name: "mlp", "cnn" or "vit".
        folder: holds the two checkpoints; `{part}.nc` is written there.
        part: "train" or "test".
        data: images and labels.
        alphas: the points [A].

    Returns:
        The result and the seconds of both.

    Raises:
        RuntimeError: the two disagree.
    """
    model = NETWORKS[name]()
    ends = folder / "init.safetensors", folder / "final.safetensors"

    def ours(points: NDArray[np.float64]) -> SweepResult:
        return mli_fast.sweep(model, *ends, data, points, metrics=METRICS, progress=False)

    scratch = NETWORKS[name]()

    def plain(points: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        theta_0, theta_T = (load_file(path) for path in ends)
        return plain_loop(scratch, theta_0, theta_T, data, points.tolist())

    result, seconds = timed(ours, alphas)
    expected, plain_seconds = timed(plain, alphas)
    check_agreement(result, expected, where=f"{TITLES[name]}, {part}")
    result.save(folder / f"{part}.nc")
    return Row(TITLES[name], part, result, seconds, plain_seconds)


def timed(work: Callable[[NDArray[np.float64]], Any], alphas: NDArray[np.float64]) -> tuple[Any, float]:
    """Times `work(alphas)`: a warm-up on two points, then three runs or two seconds of them; gives value and median."""
    work(alphas[[0, -1]])
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < 2.0):
        started = time.perf_counter()
        value = work(alphas)
        seconds.append(time.perf_counter() - started)
    return value, statistics.median(seconds)


def check_agreement(result: SweepResult, expected: dict[str, NDArray[np.float64]], where: str) -> None:
    """Compares a sweep with the plain loop.

    Args:
        result: of the sweep.
        expected: of the plain loop, by variable.
        where: model and data, for the message.

    Raises:
        RuntimeError: a loss differs by more than rounding, or an accuracy by more than one example (two nearly equal
            logits may change places in the last bit).
    """
    smallest_class = result.count // 10 // 2  # a class holds about a tenth of the examples
    allowed = {"accuracy": 1.5 / result.count, "class_accuracy": 1.5 / max(smallest_class, 1)}
    for variable, values in expected.items():
        got = np.asarray(result[variable])
        limit = allowed.get(variable, AGREEMENT * np.maximum(1.0, np.abs(values)))
        if got.shape != values.shape or not np.all(np.abs(got - values) <= limit):
            worst = np.max(np.abs(got - values)) if got.shape == values.shape else f"shapes {got.shape}, {values.shape}"
            raise RuntimeError(
                f"{where}: {variable} of the sweep and of the plain loop differ by {worst}; please report this"
            )


def table(rows: list[Row]) -> str:
    """Sets the rows as a Markdown table, columns aligned."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
