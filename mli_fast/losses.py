"""PyTorch's own loss modules as criteria: losses and weights of terms, so that no mean depends on batches."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mli_fast.criteria import Criterion, CrossEntropy, Custom, Function, Scored, criterion, point_of
from mli_fast.ops.cross_entropy import IGNORED
from mli_fast.trees import copied

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_SUMS = ("sum", "batchmean")  # reductions under which an example's loss is the sum of its terms


class LossModule(Custom):
    """A module of `torch.nn.modules.loss`, whatever its reduction: the mean over all terms of all batches.

    Cross entropy and NLL divide by the weights of the classes and leave out `ignore_index`, as their own means do over
    one batch; of the others an example's loss is the mean of its terms, or their sum with reduction "sum" or
    "batchmean".
    """

    def __init__(self, module: nn.Module) -> None:
        each: Any = copy.deepcopy(module)
        each.reduction = "none"

        def terms(outputs: Tensor, targets: Tensor) -> Tensor:
            return each.to(outputs)(outputs, targets)  # weights in the precision and on the device of the work

        super().__init__(terms)
        self.name = type(module).__name__
        self.module: Any = module

    def check(self, outputs: Any, targets: Any, batch: int) -> None:
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            seen = f"{type(outputs).__name__} and {type(targets).__name__}"
            raise ValueError(f"batch {batch}: {self.name} needs outputs and targets that are tensors; saw {seen}")
        terms = self.function(copied(outputs), copied(targets))
        if terms.numel() > max(outputs.numel(), targets.numel()):
            raise ValueError(
                f"batch {batch}: {self.name} of outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} "
                f"broadcasts to {tuple(terms.shape)}; give both one shape (forward=, or another loader)"
            )

    def score(self, outputs: Any, targets: Any) -> Scored:
        points, weights = range(len(outputs)), self.counts(targets)
        terms = torch.stack([self._terms(copied(point_of(outputs, i)), targets) for i in points])
        if not isinstance(self.module, nn.CrossEntropyLoss) or weights is None:
            return Scored(len(targets), terms, weights=weights)
        of_classes = CrossEntropy().score(outputs, targets.masked_fill(targets == self.module.ignore_index, IGNORED))
        parts = of_classes.hits, of_classes.targets, of_classes.predictions, of_classes.classes
        return Scored(len(targets), terms, *parts, weights=weights)

    def losses(self, outputs: Any, targets: Any) -> Tensor:
        terms = self._terms(outputs, targets)
        return terms.reshape(len(targets), -1).sum(1)

    def _terms(self, outputs: Any, targets: Any) -> Tensor:
        """[B * terms] float64, or [B] where an example has one loss."""
        terms = self.function(outputs, copied(targets)).double()
        if isinstance(self.module, _OF_CLASSES):
            return terms.reshape(-1)
        terms = terms.reshape(len(targets), -1)
        return terms.sum(1) if self.module.reduction in _SUMS else terms.mean(1)

    def counts(self, targets: Tensor) -> Tensor | None:
        """[B * terms] float64; None where each counts alike, as with class probabilities."""
        if not isinstance(self.module, _OF_CLASSES) or targets.is_floating_point():
            return None
        flat = targets.reshape(-1).long()
        counted = flat != self.module.ignore_index
        if self.module.weight is None:
            return counted.double()
        return self.module.weight.to(flat.device).double()[flat.where(counted, 0)] * counted


def loss(given: str | Function) -> Criterion:
    """The criterion of that name, of that module of PyTorch's, or around that callable.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor callable, or a class.
    """
    if isinstance(given, nn.Module) and type(given).__module__ == nn.modules.loss.__name__:
        return LossModule(given)
    return criterion(given)
