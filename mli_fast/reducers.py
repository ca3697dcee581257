"""Per-example values of every point, batch by batch, into means, standard errors and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mli_fast import functionals
from mli_fast.criteria import Criterion, Custom, Late, Scored, losses_of_points, point_of

Array = NDArray[np.float64]
BY_CLASS = ("class_loss", "class_accuracy", "prediction_histogram")
METRICS = ("accuracy", *BY_CLASS, *functionals.NAMES)
OF_THE_RESULT = ("loss", "loss_step", "count", "distance", "distance_relative")
TAKEN = (*OF_THE_RESULT, "alpha", "x", "y", "point", "run", "group", "class")


def check_metrics(metrics: Any) -> tuple[tuple[str, ...], dict[str, Callable[..., Tensor]]]:
    """Split `metrics` into names and callables; a dict of callables comes with the accuracy.

    Raises:
        ValueError: an unknown name.
        TypeError: neither names nor a mapping of callables.
    """
    if isinstance(metrics, Mapping):
        for name, function in metrics.items():
            if not isinstance(name, str):
                raise TypeError(f"metrics: the name {name!r} is not a string")
            if isinstance(function, type):
                raise TypeError(f"metrics[{name!r}]={function.__name__} is a class; pass an instance of it")
            if not callable(function):
                raise TypeError(f"metrics[{name!r}]: expected a callable (outputs, targets) -> [B], got {function!r}")
            if name in (*TAKEN, *METRICS):
                raise ValueError(f"metrics[{name!r}]: that name is taken; choose another")
        return ("accuracy",), dict(metrics)
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"metric {name!r} is not one of {', '.join(METRICS)}; for your own pass a dict name -> callable"
            )
    return names, {}


def row_sums(values: Tensor) -> Tensor:
    """The sums over the last dimension, by halves: how a row is summed does not depend on the other rows."""
    width = values.shape[-1]
    if width == 0:
        return values.new_zeros(values.shape[:-1])
    values = F.pad(values, (0, (1 << (width - 1).bit_length()) - width))
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


class Mean:
    """The mean of P quantities over examples, and its standard error.

    An example i contributes a sum s_i over w_i terms; the mean is m = sum s_i / sum w_i and its standard error that of
    a ratio, sqrt(n / (n - 1) * sum (s_i - m w_i)^2) / sum w_i, which for w_i = 1 is the usual one. Second moments are
    merged batch by batch about the running means (Chan et al. 1979), so that nothing cancels. All of it stays on the
    device of the values until `value` or `stderr` is asked for.
    """

    def __init__(self) -> None:
        self.n = 0
        self._moments: tuple[Tensor, ...] = ()  # sum s [P], sum w, and the central sums of ss [P], sw [P], ww

    def add(self, sums: Tensor, weights: Tensor | None) -> None:
        """Take in a batch: sums [P, B], weights [B] (None: all 1), float64."""
        b = sums.shape[1]
        if b == 0:
            return
        weights = sums.new_ones(b) if weights is None else weights
        s, w = row_sums(sums), row_sums(weights)
        ds, dw = sums - (s / b)[:, None], weights - w / b
        ss, sw, ww = row_sums(ds * ds), row_sums(ds * dw), row_sums(dw * dw)
        if self.n:
            s0, w0, ss0, sw0, ww0 = self._moments
            between = self.n * b / (self.n + b)
            step_s, step_w = s / b - s0 / self.n, w / b - w0 / self.n
            ss = ss0 + ss + between * step_s * step_s
            sw = sw0 + sw + between * step_s * step_w
            ww = ww0 + ww + between * step_w * step_w
            s, w = s0 + s, w0 + w
        self._moments, self.n = (s, w, ss, sw, ww), self.n + b

    @property
    def value(self) -> Array:
        """The mean [P]; NaN where nothing counted."""
        s, w = (m.cpu().numpy() for m in self._moments[:2])
        with np.errstate(invalid="ignore", divide="ignore"):
            return s / w

    @property
    def stderr(self) -> Array:
        """The standard error [P]; NaN for fewer than two examples."""
        m, n = self.value, self.n
        w, ss, sw, ww = (t.cpu().numpy() for t in self._moments[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            squares = np.maximum(ss - 2 * m * sw + m * m * ww, 0.0)
            return np.sqrt(squares * (n / (n - 1.0) if n > 1 else np.nan)) / w


@dataclass
class Values:
    """What is kept of one batch at A points."""

    examples: int
    rows: dict[str, Tensor]  # [A, B]
    weights: dict[str, Tensor | None]  # [B]
    no_spread: set[str] = field(default_factory=set)
    class_sums: dict[str, Tensor] = field(default_factory=dict)  # [A, classes]
    class_counts: Tensor | None = None  # [classes]
    late: Late | None = None
    outputs: Tensor | None = None  # [A, B, D], where a functional wants them
    predictions: Tensor | None = None  # [A, B * terms], likewise
    counted: Tensor | None = None  # [B * terms]


class Reducer:
    """Collects what a sweep reports.

    Args:
        criterion: scores a batch.
        names: the named metrics.
        functions: the caller's metrics.
        points: P.
        alphas: [P] where the points are a line's, in any order; None where they have no order.

    Raises:
        ValueError: a metric of a line, and the points are none.
    """

    def __init__(
        self,
        criterion: Criterion,
        names: Sequence[str],
        functions: Mapping[str, Callable[..., Tensor]],
        points: int,
        alphas: Array | None = None,
    ) -> None:
        self.criterion, self.names, self.functions, self.points = criterion, tuple(names), dict(functions), points
        self._metrics = {name: Custom(function, f"metric {name!r}") for name, function in self.functions.items()}
        self.count = 0
        self.batches = 0
        self._alphas, self._is_line = alphas, alphas is not None
        self._functionals = functionals.Functionals(self.names, alphas)
        self._means: dict[str, Mean] = {}
        self._step = Mean()
        self._no_spread: set[str] = set()
        self._class_counts: Tensor | None = None
        self._class_sums: dict[str, Tensor] = {}
        self._late: list[tuple[int, Tensor, Late]] = []  # batch, its numbers
        self._uneven: list[Tensor] = []  # of each batch whether what counts of it is another part at some points

    @property
    def wants_slopes(self) -> bool:
        """Whether a metric needs derivatives along the path."""
        return self._functionals.wants_slopes

    @property
    def keeps_outputs(self) -> bool:
        """Whether the outputs of a batch are kept until all its points are in."""
        return self._functionals.wants_outputs or self._functionals.wants_slopes

    @property
    def multiplies(self) -> int:
        """Dimensions of outputs of which nothing but losses and predictions is wanted; see `Criterion.multiplies`."""
        return 0 if self.functions or self.keeps_outputs else self.criterion.multiplies

    def reset(self) -> None:
        """Forget all batches."""
        self.__init__(self.criterion, self.names, self.functions, self.points, self._alphas)  # type: ignore[misc]

    def values(self, outputs: Any, targets: Any, check: bool, batch: int) -> Values:
        """What is kept of the batch at hand at some points; changes nothing.

        Args:
            outputs: of the model; every tensor of it has the points in dimension 0.
            targets: of the batch.
            check: whether the batch has not been checked yet.
            batch: its number.

        Raises:
            ValueError: the criterion or a metric cannot score this batch; the message has its number and what was seen.
        """
        late = self.criterion.check(point_of(outputs, 0), targets, batch) if check else None
        scored = self.criterion.score(outputs, targets)
        counted = scored.counted
        weights = None if counted is None and scored.terms == scored.examples else _terms(scored, counted)
        own = weights if scored.weights is None else _per_example(scored.weights[None], scored.examples)[0]
        found = Values(scored.examples, {"loss": _per_example(scored.losses, scored.examples)}, {"loss": own})
        found.late = late
        if scored.of_batch:
            found.no_spread.add("loss")
        if "accuracy" in self.names and scored.hits is not None:
            hits = scored.hits if counted is None else scored.hits.masked_fill(~counted, 0.0)
            found.rows["accuracy"] = _per_example(hits, scored.examples)
            found.weights["accuracy"] = weights if scored.hits.shape == scored.losses.shape else None
        self._add_classes(found, scored, counted, batch)
        self._keep(found, outputs, scored, batch)
        found.counted = counted
        for name, function in self.functions.items():
            if check and not self._metrics[name].settled:
                self._metrics[name].check(point_of(outputs, 0), targets, batch)
            rows, of_batch = losses_of_points(f"metric {name!r}", function, outputs, targets, batch)
            found.rows[name], found.weights[name] = rows, None
            if of_batch:
                found.no_spread.add(name)
        return found

    def _add_classes(self, found: Values, scored: Scored, counted: Tensor | None, batch: int) -> None:
        wanted = [n for n in self.names if n in BY_CLASS]
        if not wanted:
            return
        if scored.targets is None or scored.predictions is None or scored.hits is None or scored.classes is None:
            raise self._needs_classes(wanted[0], batch)
        classes, ones = scored.classes, torch.ones_like(scored.losses[0])
        targets = scored.targets if counted is None else scored.targets.where(counted, classes)
        predicted = scored.predictions if counted is None else scored.predictions.where(counted, classes)
        found.class_counts = _by_class(targets, ones, classes)
        sums = {
            "class_loss": lambda i: _by_class(targets, scored.losses[i], classes),
            "class_accuracy": lambda i: _by_class(targets, scored.hits[i], classes),  # type: ignore[index]
            "prediction_histogram": lambda i: _by_class(predicted[i], ones, classes),
        }
        for name in wanted:
            found.class_sums[name] = torch.stack([sums[name](i) for i in range(len(scored.losses))])

    def _needs_classes(self, name: str, batch: int) -> ValueError:
        return ValueError(
            f"batch {batch}: metric {name!r} needs class targets, which criterion "
            f"{self.criterion.name!r} does not have here"
        )

    def _keep(self, found: Values, outputs: Any, scored: Scored, batch: int) -> None:
        """What the functionals want to see of all points."""
        if self._functionals.wants_one_tensor and not isinstance(outputs, Tensor):
            raise ValueError(f"functionals of a line need outputs that are one tensor, got {type(outputs).__name__}")
        if self._functionals.wants_outputs:
            found.outputs = outputs.flatten(2) if outputs.ndim > 2 else outputs[..., None]
        if self._functionals.wants_predictions is not None:
            if scored.predictions is None:
                raise self._needs_classes(self._functionals.wants_predictions, batch)
            found.predictions = scored.predictions

    def _of_functionals(self, rows: Mapping[str, Tensor], of_all: Values, tangents: Tensor | None) -> dict[str, Tensor]:
        found = self._functionals.rows(rows["loss"], of_all.outputs, of_all.predictions, tangents)
        if "loss" in of_all.no_spread and "monotone_examples" in found:
            found["monotone_examples"].fill_(float("nan"))  # a mean of the batch says nothing of its examples
        for name, values in found.items():
            if functionals.FUNCTIONALS[name].needs == "predictions":
                if of_all.counted is not None:
                    values = values.masked_fill(~of_all.counted, 0.0)
                found[name], of_all.weights[name] = _per_example(values, of_all.examples), of_all.weights["loss"]
        return found

    def add(
        self, rows: Mapping[str, Tensor], of_all: Values, tangents: Tensor | None = None, uneven: Tensor | None = None
    ) -> None:
        """Take in a batch of which every point has been scored.

        Args:
            rows: the batch's values [P, B].
            of_all: the rest, with the class sums, outputs and predictions of all points.
            tangents: d outputs / d alpha [P, B, D], where `wants_slopes`.
            uneven: whether what counts of the batch is not the same at all points; None: nothing says so.
        """
        self._uneven += [] if uneven is None else [uneven]
        rows = {**rows, **self._of_functionals(rows, of_all, tangents)}
        of_all.weights[functionals.SLOPE] = of_all.weights["loss"]
        if "loss" in of_all.no_spread:
            of_all.no_spread.add(functionals.SLOPE)
        for name, values in rows.items():
            self._means.setdefault(name, Mean()).add(values, of_all.weights.get(name))
        if self.points > 1:
            losses = rows["loss"]
            if self._alphas is not None:
                losses = losses[torch.from_numpy(np.argsort(self._alphas, kind="stable")).to(losses.device)]
            self._step.add(losses.diff(dim=0), of_all.weights["loss"])
        self._no_spread |= of_all.no_spread
        for name, sums in of_all.class_sums.items():
            self._class_sums[name] = sums + self._class_sums.get(name, 0)
        if of_all.class_counts is not None:
            self._class_counts = of_all.class_counts + (0 if self._class_counts is None else self._class_counts)
        if of_all.late is not None:
            self._late.append((self.batches, of_all.late.numbers.clone(), of_all.late))
        self.count += of_all.examples
        self.batches += 1

    def finish(self) -> None:
        """All batches are in: read the checks that were put off.

        Raises:
            ValueError: a batch could not be scored.
        """
        if self._uneven and bool(torch.stack(self._uneven).any()):
            raise ValueError(
                "which targets count, or of which class they are, differs from point to point, so that the points' "
                "means are over different terms: mask losses in a criterion of your own, (outputs, targets) -> [B]"
            )
        if not self._late:
            return
        looked_at = torch.stack([numbers for _, numbers, _ in self._late]).tolist()
        for (batch, _, late), (failed, low, high) in zip(self._late, looked_at, strict=True):
            if failed:
                raise late.error(batch, low, high)

    def variables(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """Everything as name -> (dimensions, values); of the dimensions "point" and "class" the points are first."""
        found: dict[str, tuple[tuple[str, ...], Any]] = {}
        unknown = np.full(self.points, np.nan)
        for name, mean in self._means.items():
            of_line = self._functionals.of_line(name)
            value = mean.value if mean.n else unknown
            stderr = mean.stderr if mean.n and name not in self._no_spread else unknown
            for variable, values in ((name, value), (f"{name}_stderr", stderr)):
                found[variable] = ((), values[0]) if of_line else (("point",), values)
        similarities = self._functionals.cka()
        if similarities is not None:
            found[functionals.CKA] = ("point",), similarities
        if self._is_line:
            known = self._step.n and "loss" not in self._no_spread
            assert self._alphas is not None
            place = np.argsort(np.argsort(self._alphas, kind="stable"), kind="stable")
            steps = np.append(np.nan, self._step.value)[place] if self._step.n else unknown
            found["loss_step"] = ("point",), steps
            found["loss_step_stderr"] = ("point",), np.append(np.nan, self._step.stderr)[place] if known else unknown
        if "accuracy" in self.names and "accuracy" not in found:
            found["accuracy"] = found["accuracy_stderr"] = ("point",), unknown
        if self._class_counts is not None:
            counts = self._class_counts.cpu().numpy()
            for name, of_class in self._class_sums.items():
                sums = of_class.cpu().numpy()
                with np.errstate(invalid="ignore", divide="ignore"):
                    per_class = sums.astype(np.int64) if name == "prediction_histogram" else sums / counts
                found[name] = ("point", "class"), per_class
        found["count"] = (), np.int64(self.count)
        return found


class Batch:
    """One batch's values, filled in some points at a time; a point may be filled in again."""

    def __init__(self, reducer: Reducer, index: int = 0) -> None:
        self._reducer, self.index = reducer, index
        self._rows: dict[str, Tensor] = {}  # [P, B]
        self._class_sums: dict[str, Tensor] = {}  # [P, classes]
        self._kept: dict[str, Tensor] = {}  # outputs, predictions, tangents [P, ...], where a functional wants them
        self._last: Values | None = None
        self._late: Late | None = None
        self._uneven: Tensor | None = None

    def put(self, start: int, values: Values) -> None:
        """Fill in points start, start + 1, ...; `values` may be overwritten afterwards.

        Raises:
            ValueError: there are not as many examples as at other points.
        """
        if self._last is not None:
            self._compare(values, self._last)
        kept = {"outputs": values.outputs, "predictions": values.predictions}
        self._fill(self._rows, start, values.rows)
        self._fill(self._class_sums, start, values.class_sums)
        self._fill(self._kept, start, {name: rows for name, rows in kept.items() if rows is not None})
        self._last, self._late = values, values.late or self._late

    def _compare(self, now: Values, before: Values) -> None:
        """Note, without waiting for it, whether other targets count than at the points before."""
        if now.examples != before.examples:
            raise ValueError(
                f"batch {self.index}: {now.examples} examples at some points and {before.examples} at others, so that "
                "the points' means are over different examples: return all of them, and mask losses in a criterion of "
                "your own, (outputs, targets) -> [B]"
            )
        for a, b in ((now.counted, before.counted), (now.class_counts, before.class_counts)):
            if a is b:
                continue
            if a is None or b is None or a.shape != b.shape:  # where all count, there is none
                differs = torch.ones((), dtype=torch.bool, device=now.rows["loss"].device)
            else:
                differs = (a != b).any()
            self._uneven = differs if self._uneven is None else self._uneven | differs

    def put_slope(self, p: int, slope: Tensor, tangent: Tensor) -> None:
        """Fill in point p's derivatives along the path: of the losses [B], and of the outputs [B, D]."""
        if functionals.SLOPE in self._reducer.names:
            self._fill(self._rows, p, {functionals.SLOPE: slope[None]})
        self._fill(self._kept, p, {"tangents": tangent[None]})

    def _fill(self, mine: dict[str, Tensor], start: int, theirs: Mapping[str, Tensor]) -> None:
        for name, rows in theirs.items():
            if name not in mine:
                mine[name] = rows.new_zeros((self._reducer.points, *rows.shape[1:]))
            mine[name][start : start + len(rows)] = rows

    def close(self) -> None:
        """All points are in: add them to the sums."""
        assert self._last is not None
        outputs, predictions, tangents = (self._kept.get(name) for name in ("outputs", "predictions", "tangents"))
        of_all = replace(
            self._last, class_sums=self._class_sums, late=self._late, outputs=outputs, predictions=predictions
        )
        self._reducer.add(self._rows, of_all, tangents, self._uneven)


def _by_class(index: Tensor, values: Tensor, classes: int) -> Tensor:
    """The sums of `values` by class, in a fixed order; index `classes` is for what does not count."""
    return values.new_zeros(classes + 1).index_put_((index,), values, accumulate=True)[:classes]


def _per_example(terms: Tensor, examples: int) -> Tensor:
    """[A, B * terms] as sums [A, B]."""
    return terms if terms.shape[1] == examples else row_sums(terms.reshape(len(terms), examples, -1))


def _terms(scored: Scored, counted: Tensor | None) -> Tensor:
    """How many terms of each example count, [B] float64."""
    if counted is None:
        return scored.losses.new_full((scored.examples,), scored.terms / max(scored.examples, 1))
    return counted.reshape(scored.examples, -1).sum(1).double()
