"""What a caller's criterion or metric may return: numbers of any kind, right; all else is refused by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from mli_fast.criteria import NotAMeanWarning
from tests.cases import case

WHERE = ("criterion", "metric")


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def as_given(where: str, function: Any) -> dict[str, Any]:
    """The options under which a function is the criterion, or a metric."""
    return {"criterion": function, "metrics": ()} if where == "criterion" else {"metrics": {"own": function}}


def values(where: str, function: Any, **options: Any) -> np.ndarray:
    result = case("mlp").sweep(4, **as_given(where, function), **options)
    return result.loss if where == "criterion" else result["own"]


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda hits: hits,
    "int": lambda hits: hits.long(),
    "uint8": lambda hits: hits.to(torch.uint8),
    "half": lambda hits: hits.half(),
    "array": lambda hits: hits.numpy(),
    "list": lambda hits: hits.tolist(),
    "float": lambda hits: float(hits.double().mean()),
    "numpy-float": lambda hits: hits.double().mean().numpy()[()],
    "mean": lambda hits: hits.double().mean(),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_any_kind_are_right(form: str, where: str) -> None:
    found = values(where, lambda outputs, targets: FORMS[form](right(outputs, targets)))
    np.testing.assert_allclose(found, case("mlp").sweep(4).accuracy, rtol=1e-6)


NO_NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "NoneType": lambda losses: None,
    "str": str,
    "dict": lambda losses: {"loss": losses},
    "tuple": lambda losses: (losses, losses),
    "torch.complex64": lambda losses: losses.to(torch.complex64),
    "torch.float32 of layout torch.sparse_coo": lambda losses: losses.to_sparse(),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("what", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(what: str, where: str) -> None:
    def own(outputs: Tensor, targets: Tensor) -> Any:
        return NO_NUMBERS[what](F.cross_entropy(outputs, targets, reduction="none"))

    name = "own" if where == "criterion" else "metric 'own'"
    with pytest.raises(TypeError, match=rf"batch 0: {name} returned {re.escape(what)}.*; expected real numbers"):
        values(where, own)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("hits", [False, True], ids=["losses", "hits"])
def test_a_sum_over_the_batch_is_refused_in_whichever_batch_it_shows(hits: bool, where: str) -> None:
    """Of no hits at all, sum and mean are the same."""

    def own(outputs: Tensor, targets: Tensor) -> Any:
        return right(outputs, targets).sum() if hits else F.cross_entropy(outputs, targets, reduction="sum")

    c = case("mlp")
    with torch.no_grad():
        first = c.sweep([0.0], loader=c.batches[:1], criterion=lambda o, t: 1.0 * o.argmax(1), metrics=())
    predicted = [int(first.loss[0])] * len(c.batches[0][1])
    wrong = (torch.tensor(predicted) + 1) % 4
    batches = [(c.batches[0][0][:1].repeat(5, 1), wrong), *c.batches[1:]] if hits else c.batches
    with pytest.raises(ValueError, match="returned the sum over the batch"):
        values(where, own, loader=batches)


def test_a_metric_that_is_no_mean_of_its_examples_is_said() -> None:
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with pytest.warns(NotAMeanWarning, match="metric 'own' returned one number that is not the mean"):
        values("metric", weighted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values("metric", nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (None, r"metrics: expected names, or a dict .* got NoneType"),
        (True, r"metrics: expected names, or a dict .* got bool"),
        (right, r"metrics: expected names, or a dict .* got function"),
        ({"own": nn.CrossEntropyLoss}, r"metrics\['own'\]=CrossEntropyLoss is a class"),
        ({1: right}, r"metrics: the name 1 is not a string"),
    ],
)
def test_metrics_of_the_wrong_kind_are_named(metrics: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        case("mlp").sweep(3, metrics=metrics)


@pytest.mark.parametrize("where", WHERE)
def test_a_sweep_within_a_criterion_or_metric_is_right(where: str) -> None:
    outer, inner = case("mlp"), case("cnn-bn")
    alone = inner.sweep([0.0, 0.5, 1.0], metrics=())

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        found = inner.sweep([0.0, 0.5, 1.0], metrics=())
        np.testing.assert_allclose(found.loss, alone.loss, rtol=1e-6)
        return F.cross_entropy(outputs, targets, reduction="none") * float(found.loss[1])

    found = outer.sweep(3, **as_given(where, own))
    loss = found.loss if where == "criterion" else found["own"]
    np.testing.assert_allclose(loss, outer.sweep(3).loss * alone.loss[1], rtol=1e-6)


@pytest.mark.parametrize("where", WHERE)
def test_a_sweep_of_the_same_model_within_them_is_refused_by_name(where: str) -> None:
    c = case("mlp")

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        mli_fast.sweep(c.model, c.theta_0, c.theta_T, c.batches, 2, progress=False)
        return F.cross_entropy(outputs, targets, reduction="none")

    with pytest.raises(ValueError, match=r"own'? reads the parameter '0\.weight' of the model that it was written for"):
        c.sweep(3, **as_given(where, own))
