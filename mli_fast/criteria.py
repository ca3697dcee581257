"""Criteria: a model's outputs and the targets, as one loss per example and, for classes, predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.cross_entropy import IGNORED, cross_entropy

Function = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Scored:
    """What a criterion says of one batch at one point.

    `losses` are one per term, `hits` likewise; an example has `terms` of them (one for plain classification, a
    sequence's tokens or an image's pixels else). Terms with target -100 count for nothing.
    """

    examples: int  # B
    losses: Tensor  # [B * terms] float64
    hits: Tensor | None = None  # [B * terms] float64, NaN where the outputs are
    targets: Tensor | None = None  # [B * terms] int64 classes
    predictions: Tensor | None = None  # [B * terms] int64
    classes: int | None = None
    of_batch: bool = False  # the criterion gave one mean for the whole batch: no spread between examples is known

    @property
    def counted(self) -> Tensor | None:
        """Which terms count, None if all do."""
        if self.targets is None or len(self.targets) == 0 or int(self.targets.min()) != IGNORED:
            return None
        return self.targets != IGNORED


def _fail(batch: int, what: str) -> ValueError:
    return ValueError(f"batch {batch}: {what}")


def _check_classes(name: str, outputs: Tensor, targets: Tensor, batch: int) -> None:
    """Outputs [B, C, *terms] against targets [B, *terms]."""
    seen = f"outputs {tuple(outputs.shape)} {outputs.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
    if not outputs.is_floating_point() or outputs.ndim < 2:
        raise _fail(batch, f"{name} needs floating outputs [B, classes, ...]; saw {seen}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise _fail(batch, f"{name} needs integer class targets; saw {seen}")
    if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise _fail(batch, f"{name} needs targets of shape {tuple(outputs.shape[:1] + outputs.shape[2:])}; saw {seen}")
    valid = targets[targets != IGNORED]
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= outputs.shape[1]):
        raise _fail(
            batch,
            f"targets out of range for {outputs.shape[1]} classes: saw values from {int(valid.min())} to "
            f"{int(valid.max())} (allowed: 0..{outputs.shape[1] - 1}, and {IGNORED} for terms to ignore)",
        )


def _check_same_shape(name: str, outputs: Tensor, targets: Tensor, batch: int) -> None:
    seen = f"outputs {tuple(outputs.shape)} {outputs.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise _fail(batch, f"{name} needs targets of the outputs' shape; saw {seen}")
    if outputs.is_complex() or not outputs.is_floating_point():
        raise _fail(batch, f"{name} needs floating outputs; saw {seen}")


class Criterion:
    """A named criterion: checks a batch, then scores it at any number of points."""

    name = ""

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        """Raise ValueError, with the batch number and what was seen, unless the batch can be scored."""
        raise TypeError(f"{type(self).__name__} checks nothing")

    def score(self, outputs: Any, targets: Any) -> Scored:
        """The losses of a batch that has been checked."""
        raise TypeError(f"{type(self).__name__} scores nothing")


class CrossEntropy(Criterion):
    """-log softmax(outputs)[target]; outputs [B, C, *terms], targets [B, *terms]."""

    name = "cross_entropy"

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        _check_tensors(self.name, outputs, targets, batch)
        _check_classes(self.name, outputs, targets, batch)

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        classes = outputs.shape[1]
        rows = outputs if outputs.ndim == 2 else outputs.movedim(1, -1).reshape(-1, classes)
        flat = targets.reshape(-1).long()
        losses, predictions = self._losses(rows, flat)
        hits = (predictions == flat).double()
        hits[losses.isnan()] = float("nan")
        return Scored(len(outputs), losses, hits, flat, predictions, classes)

    def _losses(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, predictions = cross_entropy(rows[None], targets)
        return losses[0], predictions[0]


class NegativeLogLikelihood(CrossEntropy):
    """-outputs[target], for outputs that are log-probabilities already."""

    name = "nll"

    def _losses(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ignored = targets == IGNORED
        picked = rows.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
        return (-picked).double().masked_fill(ignored, 0.0), rows.argmax(1)


class CausalLanguageModel(CrossEntropy):
    """Cross entropy of the next token; outputs [B, T, V], labels [B, T], shifted by one."""

    name = "causal_lm"

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        _check_tensors(self.name, outputs, targets, batch)
        if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
            seen = f"outputs {tuple(outputs.shape)}, labels {tuple(targets.shape)}"
            raise _fail(batch, f"causal_lm needs outputs [B, tokens, vocabulary] and labels [B, tokens]; saw {seen}")
        _check_classes(self.name, outputs[:, :-1].movedim(-1, 1), targets[:, 1:], batch)

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        return super().score(outputs[:, :-1].movedim(-1, 1), targets[:, 1:])


class MeanSquaredError(Criterion):
    """Per example the mean over the output's elements of (output - target)^2."""

    name = "mse"

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        _check_tensors(self.name, outputs, targets, batch)
        _check_same_shape(self.name, outputs, targets, batch)

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        squares = (outputs.double() - targets.double()).square()
        return Scored(len(outputs), squares.reshape(len(outputs), -1).mean(1))


class BinaryCrossEntropy(Criterion):
    """Per example the mean over its outputs of the binary cross entropy; accuracy is the share of right signs."""

    name = "bce_with_logits"

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        _check_tensors(self.name, outputs, targets, batch)
        _check_same_shape(self.name, outputs, targets, batch)
        if targets.numel() and (float(targets.min()) < 0 or float(targets.max()) > 1):
            low, high = float(targets.min()), float(targets.max())
            raise _fail(batch, f"bce_with_logits needs targets in 0..1; saw values from {low:g} to {high:g}")

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        z, t = outputs.double().reshape(len(outputs), -1), targets.double().reshape(len(outputs), -1)
        losses = F.binary_cross_entropy_with_logits(z, t, reduction="none").mean(1)
        hits = ((z > 0) == (t > 0.5)).double().mean(1)
        return Scored(len(outputs), losses, hits.masked_fill(losses.isnan(), float("nan")))


class Custom(Criterion):
    """A callable (outputs, targets) -> losses [B], or a 0-d batch mean."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        example_losses(self.name, self.function, outputs, targets, batch)

    def score(self, outputs: Any, targets: Any) -> Scored:
        losses, of_batch = example_losses(self.name, self.function, outputs, targets, None)
        scored = Scored(len(losses), losses, of_batch=of_batch)
        if not _looks_like_classes(outputs, targets):
            return scored
        classified = CrossEntropy().score(outputs, targets)
        if len(classified.targets) != len(losses):  # type: ignore[arg-type]
            return scored
        parts = classified.hits, classified.targets, classified.predictions, classified.classes
        return Scored(len(losses), losses, *parts, of_batch)


def example_losses(name: str, function: Function, outputs: Any, targets: Any, batch: int | None) -> tuple[Tensor, bool]:
    """The callable's result as float64 [B], and whether it was one mean of the batch.

    Raises:
        ValueError: it is neither 0-d nor 1-D with one value per example.
    """
    result = torch.as_tensor(function(outputs, targets))
    size = batch_size(outputs, targets)
    if result.ndim == 0:
        return result.double().expand(size).clone(), True
    if result.ndim != 1 or len(result) != size:
        where = "" if batch is None else f"batch {batch}: "
        raise ValueError(
            f"{where}{name} returned shape {tuple(result.shape)}; expected one value per example [{size}] "
            "(reduction='none', averaged over everything but the batch), or a 0-d mean of the batch"
        )
    return result.double(), False


def batch_size(outputs: Any, targets: Any) -> int:
    """The number of examples B: the first dimension of the targets, else of the outputs."""
    for x in (targets, outputs):
        while isinstance(x, (tuple, list)) and len(x):
            x = x[0]
        if isinstance(x, dict) and x:
            x = next(iter(x.values()))
        if isinstance(x, Tensor) and x.ndim:
            return len(x)
    return 1


def _looks_like_classes(outputs: Any, targets: Any) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == 2
        and outputs.is_floating_point()
        and targets.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        and targets.shape == outputs.shape[:1]
        and len(targets) > 0
        and int(targets.min()) >= 0
        and int(targets.max()) < outputs.shape[1]
    )


def _check_tensors(name: str, outputs: Any, targets: Any, batch: int) -> None:
    for what, x in (("outputs", outputs), ("targets", targets)):
        if not isinstance(x, Tensor):
            raise _fail(batch, f"{name} needs tensors; the {what} are {type(x).__name__}")


NAMED = {
    c.name: c for c in (CrossEntropy, MeanSquaredError, NegativeLogLikelihood, BinaryCrossEntropy, CausalLanguageModel)
}


def criterion(given: str | Function) -> Criterion:
    """The criterion of that name, or around that callable.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor callable.
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise ValueError(f"criterion={given!r} is not one of {', '.join(map(repr, NAMED))}, nor a callable")
        return NAMED[given]()
    if callable(given):
        return Custom(given)
    raise TypeError(
        f"criterion: expected a name or a callable (outputs, targets) -> losses, got {type(given).__name__}"
    )
