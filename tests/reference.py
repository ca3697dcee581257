"""The judge: the plain loop over alpha that anyone would write, in fp64 and in fp32, and a tolerance derived from both.

Nothing here knows of the package: one copy of the model, then a `load_state_dict` and a pass over the data per alpha.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Mapping[str, Tensor]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Criterion = str | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """What the plain loop saw: one row per alpha, one column per example."""

    losses: np.ndarray  # [P, N] float64, mean over an example's terms that are not ignored (one unless it has many)
    weights: np.ndarray  # [N] float64, how many terms that are; all 1 for plain classification and for regression
    correct: np.ndarray | None  # [P, N] float64, share of an example's positions that are right; None for regression
    predictions: np.ndarray | None  # [P, N] int64, where an example has one class
    targets: np.ndarray | None  # [N] int64, likewise
    classes: int

    @property
    def loss(self) -> np.ndarray:
        """Mean over all terms, which are the examples where each has one, [P]."""
        return np.average(self.losses, axis=1, weights=self.weights)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of all terms that are right, [P]."""
        assert self.correct is not None
        return np.average(self.correct, axis=1, weights=self.weights)

    def per_class(self, values: np.ndarray) -> np.ndarray:
        """Mean of `values` [P, N] over the examples of each class, [P, C]; NaN where a class has none."""
        assert self.targets is not None
        columns = [values[:, self.targets == c] for c in range(self.classes)]
        return np.stack([v.mean(1) if v.shape[1] else np.full(len(v), np.nan) for v in columns], 1)

    @property
    def class_loss(self) -> np.ndarray:
        """[P, C]."""
        return self.per_class(self.losses)

    @property
    def class_accuracy(self) -> np.ndarray:
        """[P, C]."""
        assert self.correct is not None
        return self.per_class(self.correct)

    @property
    def prediction_histogram(self) -> np.ndarray:
        """How often each class is predicted, [P, C]."""
        assert self.predictions is not None
        return np.stack([np.bincount(row, minlength=self.classes) for row in self.predictions])


def standard_error(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Standard error of the mean over the last axis: sample standard deviation over sqrt(N).

    With `weights`, that of the ratio sum w v / sum w of two sums over N examples (linearised, Cochran 1977, 6.4).
    """
    weights = np.ones(values.shape[-1]) if weights is None else weights
    residuals = weights * (values - np.average(values, axis=-1, weights=weights)[..., None])
    n = values.shape[-1]
    return np.sqrt(n / (n - 1) * np.square(residuals).sum(-1)) / weights.sum()


def blend(theta_0: State, theta_T: State, alpha: float, dtype: torch.dtype, held: State | None = None) -> State:
    """`(1 - alpha) theta_0 + alpha theta_T`, computed in `dtype`, complex ones in their own; of integers the end's,
    but at alpha = 0.

    `held` are values that do not move.
    """
    blended = {}
    for key, start in theta_0.items():
        end = theta_T[key]
        if held and key in held:
            blended[key] = held[key].to(dtype)
        elif start.is_floating_point() or start.is_complex():
            a, b = (v if v.is_complex() else v.to(dtype) for v in (start, end))
            blended[key] = a if alpha == 0 else b if alpha == 1 else (1 - alpha) * a + alpha * b
        else:
            blended[key] = (start if alpha == 0 else end).clone()
    return blended


def running_statistics(model: nn.Module, state: State) -> State:
    """What batch norm measured in training, and nothing that another norm did."""
    names = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    keys = [f"{name}.{leaf}" for name in names for leaf in ("running_mean", "running_var")]
    return {key: state[key] for key in keys if key in state}


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its floating-point tensors in `dtype`; complex ones stay (`Module.to` drops imaginary parts)."""
    return model._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)


def to_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A copy with floating-point tensors in `dtype`, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
    if isinstance(value, Mapping):
        return {key: to_dtype(item, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(to_dtype(item, dtype) for item in value)
    return value


def call(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """(outputs, targets) of one batch in either layout."""
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        outputs = model(**inputs)
        return outputs.logits if hasattr(outputs, "logits") else outputs, batch["labels"]
    inputs, targets = batch
    return (model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)), targets


def mean_where(values: Tensor, keep: Tensor) -> Tensor:
    """Per example, the mean of `values` [B, ...] where `keep` holds, [B]."""
    values, keep = values.flatten(1), keep.flatten(1)
    return torch.where(keep, values, 0).sum(1) / keep.sum(1)


Scores = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def score(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Scores:
    """Per-example losses and weights [B], correctness [B] (None for regression), predictions [B] (None unless one)."""
    if callable(criterion):
        losses = criterion(outputs, targets)
        losses = losses.expand(len(targets)) if losses.dim() == 0 else losses
    elif criterion == "mse":
        losses = (outputs - targets).square().reshape(len(outputs), -1).mean(1)
    elif criterion == "bce_with_logits":
        losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none")
        losses = losses.reshape(len(outputs), -1).mean(1)
    else:
        if criterion == "causal_lm":
            outputs, targets = outputs[:, :-1].transpose(1, 2), targets[:, 1:]
        loss = F.nll_loss if criterion == "nll" else F.cross_entropy
        values, keep = loss(outputs, targets, reduction="none", ignore_index=-100), targets != -100
        if targets.dim() > 1:
            values, right = mean_where(values, keep), (outputs.argmax(1) == targets).to(outputs)
            return values, keep.flatten(1).sum(1), mean_where(right, keep), None
        losses = values
    weights = torch.ones(len(losses))
    if targets.is_floating_point() or targets.dim() != 1:
        return losses, weights, None, None
    predictions = outputs.argmax(1)
    return losses, weights, (predictions == targets).to(losses), predictions


@torch.no_grad()
def plain_loop(
    model: nn.Module,
    theta_0: State,
    theta_T: State,
    batches: Sequence[Any],
    alphas: Sequence[float],
    criterion: Criterion = "cross_entropy",
    *,
    dtype: torch.dtype = torch.float64,
    batch_norm: str = "interpolate",
) -> Reference:
    """One alpha after the other, one batch after the other, in `dtype`.

    In fp32 and below the weights are blended in fp32, as users do; in fp64 in fp64.
    """
    replica = cast(copy.deepcopy(model).eval(), dtype)
    held = running_statistics(model, {"start": theta_0, "end": theta_T}.get(batch_norm, {}))
    losses, correct, predictions, targets = [], [], [], []
    classes = 0
    for alpha in alphas:
        state = blend(theta_0, theta_T, float(alpha), torch.promote_types(dtype, torch.float32), held)
        replica.load_state_dict(state)
        rows: list[Scores] = []
        for batch in batches:
            outputs, labels = call(replica, to_dtype(batch, dtype))
            rows.append(score(criterion, outputs if dtype.itemsize > 2 else outputs.float(), labels))
            classes = outputs.shape[1] if outputs.dim() > 1 else 0
            targets.append(labels)
        columns = [
            None if column[0] is None else torch.cat(column).double().numpy() for column in zip(*rows, strict=True)
        ]
        losses.append(columns[0])
        correct.append(columns[2])
        predictions.append(columns[3])
    one_class_each = predictions[0] is not None
    return Reference(
        losses=np.stack(losses),
        weights=columns[1],
        correct=None if correct[0] is None else np.stack(correct),
        predictions=np.stack(predictions).astype(np.int64) if one_class_each else None,
        targets=torch.cat(targets[: len(batches)]).numpy() if one_class_each else None,
        classes=classes,
    )


def assert_as_exact_as_torch(
    ours: np.ndarray,
    ref64: np.ndarray,
    ref32: np.ndarray,
    dtype: torch.dtype = torch.float32,
    peer: float | None = None,
) -> None:
    """Our error against fp64 is at most twice PyTorch's own plain loop's, taken as the largest over the curve.

    The floor, 4 eps |value|, is what rounding the result itself costs; without it a plain loop that happens to be exact
    would allow nothing. `dtype` is the precision that `ref32` was computed in. `peer` replaces the plain loop's error
    where the curve is too short to know it, by its largest error on a single example, say.
    """
    assert ours.shape == ref64.shape, f"shape {ours.shape}, expected {ref64.shape}"
    assert np.array_equal(np.isnan(ours), np.isnan(ref64)), f"NaN elsewhere than in the reference: {ours} and {ref64}"
    here = ~np.isnan(ref64)
    error = np.abs(ours - ref64)[here]
    if peer is None:
        peer = float(np.abs(ref32 - ref64)[here].max(initial=0.0))
    allowed = np.maximum(2 * peer, 4 * torch.finfo(dtype).eps * np.abs(ref64[here]))
    worst = (error - allowed).argmax() if len(error) else 0
    assert (error <= allowed).all(), (
        f"error {error[worst]:.3g} where {allowed[worst]:.3g} is allowed; {error} and {allowed}"
    )
