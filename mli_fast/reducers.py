"""Per-example values of every point, batch by batch, into means, standard errors and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from mli_fast.criteria import Criterion, Scored, example_losses

Array = NDArray[np.float64]
METRICS = ("accuracy", "class_loss", "class_accuracy", "prediction_histogram")
LATER = ("gauss_length", "path_length")


def check_metrics(metrics: Any) -> tuple[tuple[str, ...], dict[str, Callable[..., Tensor]]]:
    """Split `metrics` into names and callables; a dict of callables comes with the accuracy.

    Raises:
        ValueError: an unknown name, or one that a later version brings.
        TypeError: neither names nor a mapping of callables.
    """
    if isinstance(metrics, Mapping):
        for name, function in metrics.items():
            if not callable(function):
                raise TypeError(f"metrics[{name!r}]: expected a callable (outputs, targets) -> [B], got {function!r}")
            if name in ("loss", "count", "alpha", "class", *METRICS):
                raise ValueError(f"metrics[{name!r}]: that name is taken; choose another")
        return ("accuracy",), dict(metrics)
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name in LATER:
            raise ValueError(
                f"metric {name!r} comes with a later version of mli_fast; this one has {', '.join(METRICS)}"
            )
        if name not in METRICS:
            raise ValueError(
                f"metric {name!r} is not one of {', '.join(METRICS)}; for your own pass a dict name -> callable"
            )
    return names, {}


class Mean:
    """The mean of P quantities over examples, and its standard error.

    An example i contributes a sum s_i over w_i terms; the mean is m = sum s_i / sum w_i and its standard error that of
    a ratio, sqrt(n / (n - 1) * sum (s_i - m w_i)^2) / sum w_i, which for w_i = 1 is the usual one. Second moments are
    merged batch by batch about the running means (Chan et al. 1979), so that nothing cancels.
    """

    def __init__(self, points: int) -> None:
        self.n = 0
        self.sum = np.zeros(points)
        self.weight = 0.0
        self._ss, self._sw, self._ww = np.zeros(points), np.zeros(points), 0.0

    def add(self, sums: Array, weights: Array | None) -> None:
        """Take in a batch: sums [P, B], weights [B] (None: all 1)."""
        b = sums.shape[1]
        if b == 0:
            return
        total, weight = sums.sum(1), float(b) if weights is None else float(weights.sum())
        mean_s, mean_w = total / b, weight / b
        ds = sums - mean_s[:, None]
        ss, sw, ww = (ds * ds).sum(1), 0.0, 0.0
        if weights is not None:
            dw = weights - mean_w
            sw, ww = (ds * dw).sum(1), float((dw * dw).sum())
        if self.n:
            between = self.n * b / (self.n + b)
            step_s, step_w = mean_s - self.sum / self.n, mean_w - self.weight / self.n
            ss, sw, ww = ss + between * step_s**2, sw + between * step_s * step_w, ww + between * step_w**2
        self._ss, self._sw, self._ww = self._ss + ss, self._sw + sw, self._ww + ww
        self.sum, self.weight, self.n = self.sum + total, self.weight + weight, self.n + b

    @property
    def value(self) -> Array:
        """The mean [P]; NaN where nothing counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sum / self.weight

    @property
    def stderr(self) -> Array:
        """The standard error [P]; NaN for fewer than two examples."""
        m, n = self.value, self.n
        with np.errstate(invalid="ignore", divide="ignore"):
            squares = np.maximum(self._ss - 2 * m * self._sw + m * m * self._ww, 0.0)
            return np.sqrt(squares * (n / (n - 1.0) if n > 1 else np.nan)) / self.weight


class Reducer:
    """Collects what a sweep reports.

    Args:
        criterion: scores a batch.
        names: the named metrics.
        functions: the caller's metrics.
        points: P.
    """

    def __init__(
        self, criterion: Criterion, names: Sequence[str], functions: Mapping[str, Callable[..., Tensor]], points: int
    ) -> None:
        self.criterion, self.names, self.functions, self.points = criterion, tuple(names), dict(functions), points
        self.count = 0
        self.batches = 0
        self._means: dict[str, Mean] = {}
        self._step = Mean(max(points - 1, 0))
        self._no_spread: set[str] = set()
        self._class_counts: Array | None = None
        self._class_sums: dict[str, Array] = {}

    def batch(self) -> Batch:
        """A place for the next batch's values at all points."""
        return Batch(self, self.batches)

    def _close(self, rows: dict[str, Array], weights: dict[str, Array | None], batch: Batch) -> None:
        for name, values in rows.items():
            self._means.setdefault(name, Mean(self.points)).add(values, weights[name])
        if self.points > 1:
            self._step.add(np.diff(rows["loss"], axis=0), weights["loss"])
        self._no_spread |= batch.no_spread
        for name, sums in batch.class_sums.items():
            self._class_sums[name] = self._class_sums.get(name, 0.0) + sums
        if batch.class_counts is not None:
            self._class_counts = batch.class_counts + (0 if self._class_counts is None else self._class_counts)
        self.count += batch.examples
        self.batches += 1

    def dataset(self, alphas: Array) -> xr.Dataset:
        """Everything as an xarray.Dataset with dimension `alpha` (and `class`)."""
        variables: dict[str, Any] = {}
        for name, mean in self._means.items():
            variables[name] = ("alpha", mean.value)
            variables[f"{name}_stderr"] = (
                "alpha",
                np.full_like(mean.value, np.nan) if name in self._no_spread else mean.stderr,
            )
        first = np.full(1, np.nan)
        step_stderr = np.full_like(self._step.sum, np.nan) if "loss" in self._no_spread else self._step.stderr
        variables["loss_step"] = ("alpha", np.concatenate([first, self._step.value]))
        variables["loss_step_stderr"] = ("alpha", np.concatenate([first, step_stderr]))
        coordinates: dict[str, Any] = {"alpha": alphas}
        if "accuracy" in self.names and "accuracy" not in variables:
            variables["accuracy"] = variables["accuracy_stderr"] = ("alpha", np.full(len(alphas), np.nan))
        if self._class_sums:
            assert self._class_counts is not None
            coordinates["class"] = np.arange(len(self._class_counts))
            for name, sums in self._class_sums.items():
                histogram = name == "prediction_histogram"
                with np.errstate(invalid="ignore", divide="ignore"):
                    variables[name] = (
                        ("alpha", "class"),
                        sums.astype(np.int64) if histogram else sums / self._class_counts,
                    )
        variables["count"] = ((), np.int64(self.count))
        return xr.Dataset(variables, coords=coordinates)


class Batch:
    """One batch's values, filled in point by point; a point may be filled in again."""

    def __init__(self, reducer: Reducer, index: int) -> None:
        self.index = index
        self.examples = 0
        self.no_spread: set[str] = set()
        self.class_sums: dict[str, Array] = {}
        self.class_counts: Array | None = None
        self._reducer = reducer
        self._rows: dict[str, Array] = {}
        self._weights: dict[str, Array | None] = {}
        self._checked = False

    def add(self, p: int, outputs: Any, targets: Any) -> None:
        """Score point p's outputs.

        Raises:
            ValueError: the criterion or a metric cannot score this batch; the message has its number and what was seen.
        """
        reducer = self._reducer
        if not self._checked:
            reducer.criterion.check(outputs, targets, self.index)
            self._checked = True
        scored = reducer.criterion.score(outputs, targets)
        self.examples = scored.examples
        counted = scored.counted
        weights = None if counted is None and len(scored.losses) == scored.examples else _terms(scored, counted)
        self._put("loss", p, _per_example(scored.losses, scored.examples), weights)
        if scored.of_batch:
            self.no_spread.add("loss")
        if "accuracy" in reducer.names and scored.hits is not None:
            hits = scored.hits if counted is None else scored.hits.masked_fill(~counted, 0.0)
            own = weights if len(scored.hits) == len(scored.losses) else None
            self._put("accuracy", p, _per_example(hits, scored.examples), own)
        self._classes(p, scored, counted)
        for name, function in reducer.functions.items():
            values, of_batch = example_losses(f"metric {name!r}", function, outputs, targets, self.index)
            self._put(name, p, values, None)
            if of_batch:
                self.no_spread.add(name)

    def close(self) -> None:
        """All points are in: add them to the sums."""
        self._reducer._close(self._rows, self._weights, self)

    def _put(self, name: str, p: int, values: Tensor, weights: Array | None) -> None:
        if name not in self._rows:
            self._rows[name] = np.full((self._reducer.points, len(values)), np.nan)
        self._rows[name][p] = values.detach().cpu().numpy()
        self._weights[name] = weights

    def _classes(self, p: int, scored: Scored, counted: Tensor | None) -> None:
        wanted = [n for n in self._reducer.names if n != "accuracy"]
        if not wanted:
            return
        if scored.targets is None or scored.predictions is None or scored.hits is None or scored.classes is None:
            raise ValueError(
                f"batch {self.index}: metric {wanted[0]!r} needs class targets, which criterion "
                f"{self._reducer.criterion.name!r} does not have here"
            )
        keep = slice(None) if counted is None else counted
        targets, predictions = scored.targets[keep].cpu().numpy(), scored.predictions[keep].cpu().numpy()
        classes = scored.classes
        self.class_counts = np.bincount(targets, minlength=classes).astype(np.float64)
        values = {
            "class_loss": lambda: np.bincount(targets, scored.losses[keep].cpu().numpy(), classes),
            "class_accuracy": lambda: np.bincount(targets, scored.hits[keep].cpu().numpy(), classes),  # type: ignore[index]
            "prediction_histogram": lambda: np.bincount(predictions, minlength=classes),
        }
        for name in wanted:
            sums = self.class_sums.setdefault(name, np.zeros((self._reducer.points, classes)))
            sums[p] = values[name]()


def _per_example(terms: Tensor, examples: int) -> Tensor:
    return terms if len(terms) == examples else terms.reshape(examples, -1).sum(1)


def _terms(scored: Scored, counted: Tensor | None) -> Array:
    """How many terms of each example count [B]."""
    if counted is None:
        return np.full(scored.examples, len(scored.losses) / scored.examples)
    return counted.reshape(scored.examples, -1).sum(1).double().cpu().numpy()
