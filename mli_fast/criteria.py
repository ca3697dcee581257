"""Criteria: a model's outputs and the targets, as one loss per example and, for classes, predictions."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.caller import caller
from mli_fast.ops import memory
from mli_fast.ops.cross_entropy import IGNORED, Unmultiplied, cross_entropy
from mli_fast.trees import as_tensor, copied, mapped, tensors_in

Function = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Scored:
    """What a criterion says of one batch at A points.

    `losses` are one per term, `hits` likewise; an example has `terms` of them (one for plain classification, a
    sequence's tokens or an image's pixels else). Terms with target -100 count for nothing.
    """

    examples: int  # B
    losses: Tensor  # [A, B * terms] float64
    hits: Tensor | None = None  # [A, B * terms] float64, NaN where the outputs are
    targets: Tensor | None = None  # [B * terms] int64 classes
    predictions: Tensor | None = None  # [A, B * terms] int64
    classes: int | None = None
    of_batch: bool = False  # the criterion gave one mean for the whole batch: no spread between examples is known
    weights: Tensor | None = None  # [B * terms] float64, what the loss of each term counts for, where not all alike

    @property
    def terms(self) -> int:
        """How many terms there are."""
        return self.losses.shape[1]

    @property
    def counted(self) -> Tensor | None:
        """Which terms count, None if all do; never None on a GPU, where asking would synchronise."""
        if self.targets is None or len(self.targets) == 0:
            return None
        counted = self.targets != IGNORED
        return counted if memory.asynchronous(counted) or not bool(counted.all()) else None


@dataclass(frozen=True)
class Late:
    """A check of values on a GPU, read when all batches are through: earlier it would synchronise."""

    numbers: Tensor  # [3] float64: whether it failed (0 or 1), the least and the greatest value seen
    error: Callable[[int, float, float], Exception]  # of the batch's number and the values seen


def _unless(failed: Tensor, values: Tensor, error: Callable[[int, float, float], Exception], batch: int) -> Late | None:
    """Raise the error if the check of `values` failed; on a GPU, later."""
    if memory.asynchronous(failed) and values.numel():
        return Late(torch.stack([failed.double(), values.min().double(), values.max().double()]), error)
    if bool(failed):
        raise error(batch, float(values.min()), float(values.max()))
    return None


def _fail(batch: int, what: str) -> ValueError:
    return ValueError(f"batch {batch}: {what}")


def _check_classes(name: str, outputs: Tensor, targets: Tensor, batch: int) -> Late | None:
    """Outputs [B, C, *terms] against targets [B, *terms]."""
    seen = f"outputs {tuple(outputs.shape)} {outputs.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
    if not outputs.is_floating_point() or outputs.ndim < 2:
        hint = "; give the inputs a batch dimension" if outputs.ndim == 1 else ""
        raise _fail(batch, f"{name} needs floating outputs [B, classes, ...]; saw {seen}{hint}")
    if targets.is_floating_point() and targets.shape == outputs.shape:
        raise _fail(
            batch,
            f"{name} needs integer class targets; saw {seen}; class probabilities: criterion=nn.CrossEntropyLoss()",
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise _fail(batch, f"{name} needs integer class targets; saw {seen}")
    if targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise _fail(batch, f"{name} needs targets of shape {tuple(outputs.shape[:1] + outputs.shape[2:])}; saw {seen}")
    classes = outputs.shape[1]

    def error(batch: int, low: float, high: float) -> Exception:
        return _fail(
            batch,
            f"targets out of range for {classes} classes: saw values from {low:g} to {high:g} "
            f"(allowed: 0..{classes - 1}, and {IGNORED} for terms to ignore)",
        )

    counted = targets.where(targets != IGNORED, 0)
    return _unless(((counted < 0) | (counted >= classes)).any(), counted, error, batch)


def _check_same_shape(name: str, outputs: Tensor, targets: Tensor, batch: int) -> None:
    seen = f"outputs {tuple(outputs.shape)} {outputs.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise _fail(batch, f"{name} needs targets of the outputs' shape; saw {seen}")
    if outputs.is_complex() or not outputs.is_floating_point():
        raise _fail(batch, f"{name} needs floating outputs; saw {seen}")


class Criterion:
    """A named criterion: checks a batch, then scores it at any number of points."""

    name = ""
    multiplies = 0  # dimensions of a point's outputs that may be `Unmultiplied`; 0 for none

    def check(self, outputs: Any, targets: Any, batch: int) -> Late | None:
        """Raise ValueError, with the batch number and what was seen, unless the batch can be scored.

        Args:
            outputs: those of one point.
            targets: of the batch.
            batch: its number.

        Returns:
            What remains to be looked at.
        """
        raise TypeError(f"{type(self).__name__} checks nothing")

    def score(self, outputs: Any, targets: Any) -> Scored:
        """The losses of a batch that has been checked; every tensor of `outputs` has the points in dimension 0.

        Outputs of `multiplies` dimensions may be `Unmultiplied`.
        """
        raise TypeError(f"{type(self).__name__} scores nothing")

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        """Each example's loss at one point, its terms summed, [B] in float64; may be differentiated, either way."""
        raise TypeError(f"{type(self).__name__} has no losses")

    def counts(self, targets: Any) -> Tensor | None:
        """What each term of a batch counts for in the mean, any shape; None where an example counts for one."""
        return None


class CrossEntropy(Criterion):
    """-log softmax(outputs)[target]; outputs [A, B, C, *terms], targets [B, *terms]."""

    name = "cross_entropy"
    multiplies = 2

    def check(self, outputs: Any, targets: Any, batch: int) -> Late | None:
        _check_tensors(self.name, outputs, targets, batch)
        return _check_classes(self.name, outputs, targets, batch)

    def score(self, outputs: Tensor | Unmultiplied, targets: Tensor) -> Scored:
        return self._scored(outputs if isinstance(outputs, Unmultiplied) else outputs.movedim(2, -1), targets)

    def _scored(self, outputs: Tensor | Unmultiplied, targets: Tensor) -> Scored:
        """Outputs [A, B, *terms, C] against targets [B, *terms]."""
        examples, classes = outputs.shape[1], outputs.shape[-1]
        flat = targets.reshape(-1).long()
        if memory.asynchronous(flat):  # a class out of range is reported later; until then it must not be an index
            flat = flat.where((flat >= 0) & (flat < classes), IGNORED)
        rows = outputs.reshape(len(outputs), -1, classes) if isinstance(outputs, Tensor) else outputs
        losses, predictions = self._losses(rows, flat)
        hits = (predictions == flat).double().masked_fill(losses.isnan(), float("nan"))
        return Scored(examples, losses, hits, flat, predictions, classes)

    def _losses(self, rows: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(rows, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = F.cross_entropy(outputs.double(), targets.long(), reduction="none", ignore_index=IGNORED)
        return terms.reshape(len(targets), -1).sum(1)

    def counts(self, targets: Tensor) -> Tensor | None:
        return targets != IGNORED


class NegativeLogLikelihood(CrossEntropy):
    """-outputs[target], for outputs that are log-probabilities already."""

    name = "nll"
    multiplies = 0

    def _losses(self, rows: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        ignored = targets == IGNORED
        index = targets.masked_fill(ignored, 0)[None, :, None].expand(len(rows), -1, 1)
        return (-rows.gather(2, index)[..., 0]).double().masked_fill(ignored, 0.0), rows.argmax(-1)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = F.nll_loss(outputs.double(), targets.long(), reduction="none", ignore_index=IGNORED)
        return terms.reshape(len(targets), -1).sum(1)


class CausalLanguageModel(CrossEntropy):
    """Cross entropy of the next token; outputs [A, B, T, V], labels [B, T]; the last token predicts nothing."""

    name = "causal_lm"
    multiplies = 3

    def check(self, outputs: Any, targets: Any, batch: int) -> Late | None:
        _check_tensors(self.name, outputs, targets, batch)
        if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
            seen = f"outputs {tuple(outputs.shape)}, labels {tuple(targets.shape)}"
            raise _fail(batch, f"causal_lm needs outputs [B, tokens, vocabulary] and labels [B, tokens]; saw {seen}")
        return _check_classes(self.name, outputs[:, :-1].movedim(-1, 1), targets[:, 1:], batch)

    def score(self, outputs: Tensor | Unmultiplied, targets: Tensor) -> Scored:
        return self._scored(outputs, F.pad(targets[:, 1:], (0, 1), value=IGNORED))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs[:, :-1].movedim(-1, 1), targets[:, 1:])

    def counts(self, targets: Tensor) -> Tensor | None:
        return super().counts(targets[:, 1:])


class MeanSquaredError(Criterion):
    """Per example the mean over the output's elements of (output - target)^2."""

    name = "mse"

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        _check_tensors(self.name, outputs, targets, batch)
        _check_same_shape(self.name, outputs, targets, batch)

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        return Scored(outputs.shape[1], torch.stack([self.losses(z, targets) for z in outputs]))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.double() - targets.double()).square().reshape(len(outputs), -1).mean(1)


class BinaryCrossEntropy(Criterion):
    """Per example the mean over its outputs of the binary cross entropy; accuracy is the share of right signs."""

    name = "bce_with_logits"

    def check(self, outputs: Any, targets: Any, batch: int) -> Late | None:
        _check_tensors(self.name, outputs, targets, batch)
        _check_same_shape(self.name, outputs, targets, batch)

        def error(batch: int, low: float, high: float) -> Exception:
            return _fail(batch, f"bce_with_logits needs targets in 0..1; saw values from {low:g} to {high:g}")

        return _unless(((targets < 0) | (targets > 1)).any(), targets, error, batch)

    def score(self, outputs: Tensor, targets: Tensor) -> Scored:
        t = targets.double().reshape(len(targets), -1)
        losses, hits = [], []
        for z in outputs.double().reshape(len(outputs), len(targets), -1):
            losses.append(self.losses(z, t))
            hits.append(((z > 0) == (t > 0.5)).double().mean(1).masked_fill(losses[-1].isnan(), float("nan")))
        return Scored(outputs.shape[1], torch.stack(losses), torch.stack(hits))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = F.binary_cross_entropy_with_logits(outputs.double(), targets.double(), reduction="none")
        return terms.reshape(len(targets), -1).mean(1)


class NotAMeanWarning(UserWarning):
    """A criterion gives one number per batch that is not the mean of its examples' losses."""


class Custom(Criterion):
    """A callable (outputs, targets) -> losses [B], or a 0-d batch mean."""

    def __init__(self, function: Function, name: str | None = None) -> None:
        self.function = function
        self.name = name if name is not None else str(getattr(function, "__name__", type(function).__name__))
        self._classes: tuple[Any, bool] = (None, False)  # the targets last seen, and whether they are classes
        self.tells = False  # whether it was said that ignored targets count
        self.settled = False  # whether it is known what one number for a batch is

    def calling(self, function: Function) -> Self:
        """This criterion with another function, which does the same."""
        other = copy.copy(self)
        other.function = function
        return other

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        found, of_batch = example_losses(self.name, self.function, copied(outputs), copied(targets), batch)
        _check_broadcast(self.name, self.function, outputs, targets, batch)
        self._tell_ignored(found, of_batch, targets)
        if not self.settled and len(found) > 1:
            self.settled = not of_batch or self._is_mean(outputs, targets, float(found[0]), len(found))

    def _tell_ignored(self, found: Tensor, of_batch: bool, targets: Any) -> None:
        """Warn where PyTorch leaves terms out of its mean, and per-example losses count them as 0; once."""
        if of_batch or self.tells or not isinstance(targets, Tensor) or targets.shape != found.shape:
            return
        ignored = targets == IGNORED
        self.tells = not targets.is_floating_point() and bool(ignored.any()) and not bool(found[ignored].any())
        if self.tells:
            warnings.warn(
                f"{self.name} gives 0 where the target is {IGNORED}, and these count as examples here, which PyTorch's "
                "mean leaves out: take PyTorch's own module or a built-in criterion to leave them out, or drop them "
                "from the data",
                NotAMeanWarning,
                stacklevel=caller(),
            )

    def _is_mean(self, outputs: Any, targets: Any, whole: float, size: int) -> bool:
        """A batch's one number against those of its halves: a sum is refused, another thing than a mean warned of.

        Returns:
            Whether there is nothing left to ask of other batches; False where mean and sum are the same, as of zeros.
        """
        if any(x.ndim == 0 or len(x) != size for x in tensors_in((outputs, targets))):
            return True  # which part of them belongs to which example is not known
        k = (size + 1) // 2
        try:
            first, second = (
                float(self.function(mapped(part, copied(outputs)), mapped(part, copied(targets))))
                for part in (_part(slice(k)), _part(slice(k, None)))
            )
        except Exception:  # noqa: BLE001 - whatever a caller's function raises of half a batch
            return True
        near = lambda x: math.isclose(x, whole, rel_tol=1e-4, abs_tol=1e-6)  # noqa: E731
        of_sum = near(first + second)
        if near((k * first + (size - k) * second) / size) or not math.isfinite(whole):
            return not of_sum
        if of_sum:
            raise ValueError(
                f"{self.name} returned the sum over the batch; a result of one number is taken as the mean of the "
                "batch's examples: return one value per example [B] (reduction='none'), or their mean"
            )
        warnings.warn(
            f"{self.name} returned one number that is not the mean over the batch's examples (class weights, ignored "
            "targets, or a loss of the batch as a whole): batches are averaged by their numbers of examples; for a "
            "mean that does not depend on batches return one value per example [B], or take PyTorch's own module as "
            "criterion",
            NotAMeanWarning,
            stacklevel=caller(),
        )
        return True

    def score(self, outputs: Any, targets: Any) -> Scored:
        rows, of_batch = losses_of_points(self.name, self.function, outputs, targets, None)
        scored = Scored(rows.shape[1], rows, of_batch=of_batch)
        if self._classes[0] is not targets:
            self._classes = targets, _looks_like_classes(outputs, targets)
        if not self._classes[1]:
            return scored
        classified = CrossEntropy().score(outputs, targets)
        if classified.terms != scored.terms:
            return scored
        parts = classified.hits, classified.targets, classified.predictions, classified.classes
        return Scored(scored.examples, rows, *parts, of_batch)

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        return example_losses(self.name, self.function, outputs, copied(targets), None)[0]


def _part(rows: slice) -> Callable[[Any], Any]:
    return lambda x: x[rows] if isinstance(x, Tensor) else x


def _check_broadcast(name: str, function: Function, outputs: Any, targets: Any, batch: int) -> None:
    """Refuse what pairs every example's output with every other's target: [B, 1] against [B]."""
    pair = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not pair or targets.ndim != 1 or outputs.shape != (len(targets), 1) or len(targets) < 2:
        return
    turned = targets.roll(1)  # a loss of pairs does not see in which order targets stand
    if not targets.is_floating_point() or torch.equal(turned, targets) or bool((outputs == outputs[0]).all()):
        return
    given, other = (as_tensor(function(copied(outputs), copied(y))) for y in (targets, turned))
    if given.shape == other.shape and torch.allclose(given, other, rtol=1e-5, atol=0):
        raise ValueError(
            f"batch {batch}: {name} of outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} gives the "
            "same for targets in another order: it broadcasts to [B, B]; give both one shape (outputs.squeeze(1))"
        )


def losses_of_points(
    name: str, function: Function, outputs: Any, targets: Any, batch: int | None
) -> tuple[Tensor, bool]:
    """`example_losses` at every point, [A, B]; every tensor of `outputs` has the points in dimension 0."""
    found: list[Tensor] = []
    mapped(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, outputs)
    if not found:
        raise ValueError(f"{name}: the model's outputs hold no tensor")
    results = [  # of copies: a function may write to what it gets
        example_losses(name, function, copied(point_of(outputs, i)), copied(targets), batch)
        for i in range(len(found[0]))
    ]
    return torch.stack([losses for losses, _ in results]), any(of_batch for _, of_batch in results)


def point_of(outputs: Any, i: int) -> Any:
    """The outputs of the i-th point; every tensor of `outputs` has the points in dimension 0."""
    if isinstance(outputs, Unmultiplied):
        return outputs.blank()[i]
    return mapped(lambda leaf: leaf[i] if isinstance(leaf, Tensor) else leaf, outputs)


def example_losses(name: str, function: Function, outputs: Any, targets: Any, batch: int | None) -> tuple[Tensor, bool]:
    """The callable's result as float64 [B], and whether it was one mean of the batch.

    Raises:
        ValueError: it is neither 0-d nor 1-D with one value per example.
        TypeError: it is no real number or numbers.
    """
    where = "" if batch is None else f"batch {batch}: "
    result = _as_real(f"{where}{name}", function(outputs, targets), outputs)
    sizes = _leading_sizes(outputs, targets)
    size = sizes[0]
    if result.ndim == 0 and len(sizes) > 1:
        raise ValueError(
            f"{where}{name} returned one number, and how many examples it is the mean of is unclear: the first "
            "dimensions of the tensors in the targets (the outputs where they hold none) are "
            f"{', '.join(map(str, sizes))}; return one value per example [B]"
        )
    if result.ndim == 0:
        return result.double().expand(size).clone(), True
    if result.ndim != 1 or len(result) not in sizes:
        raise ValueError(
            f"{where}{name} returned shape {tuple(result.shape)}; expected one value per example [{size}] "
            "(reduction='none', averaged over everything but the batch), or a 0-d mean of the batch"
        )
    return result.double(), False


def _as_real(name: str, given: Any, outputs: Any) -> Tensor:
    """What a callable returned as a tensor of real numbers; plain numbers and arrays go where the outputs are."""
    result: Tensor | None = None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        result = as_tensor(given, next((x.device for x in tensors_in(outputs)), torch.device("cpu")))
    if result is None or result.is_complex() or result.layout is not torch.strided:
        seen = type(given).__name__ if result is None else f"{result.dtype} of layout {result.layout}"
        raise TypeError(f"{name} returned {seen}; expected real numbers: one value per example [B], or their mean")
    return result


def _leading_sizes(outputs: Any, targets: Any) -> list[int]:
    """What the number of examples B may be: the first dimensions of the targets' tensors, else of the outputs'."""
    for held in (targets, outputs):
        sizes = list(dict.fromkeys(len(x) for x in tensors_in(held) if x.ndim))
        if sizes:
            return sizes
    return [1]


def _looks_like_classes(outputs: Any, targets: Any) -> bool:
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.ndim == 3
        and outputs.is_floating_point()
        and targets.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        and targets.shape == outputs.shape[1:2]
        and len(targets) > 0
        and int(targets.min()) >= 0
        and int(targets.max()) < outputs.shape[2]
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
    if isinstance(given, type):
        raise TypeError(f"criterion={given.__name__} is a class; pass an instance of it, {given.__name__}()")
    if callable(given):
        return Custom(given)
    raise TypeError(
        f"criterion: expected a name or a callable (outputs, targets) -> losses, got {type(given).__name__}"
    )
