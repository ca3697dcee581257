"""PyTorch's own loss modules as criteria, and callables that give one number: the mean over all data, or a word."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.criteria import NotAMeanWarning
from tests.cases import Case, case

ALPHAS = [0.0, 0.4, 1.0]
WEIGHT = torch.tensor([1.0, 2.0, 5.0])
Data = list[tuple[Tensor, Tensor]]


class Pixels(nn.Module):
    """Class scores of every position, [B, 3, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(len(x), 3, 4)


def cut(x: Tensor, y: Tensor) -> Data:
    """Batches of 7, 1 and the rest."""
    return list(zip(x.split([7, 1, len(x) - 8]), y.split([7, 1, len(x) - 8]), strict=True))


def swept(make: Callable[[], nn.Module], data: Data, criterion: Any, **options: Any) -> tuple[Any, list[nn.Module]]:
    torch.manual_seed(0)
    theta_0, theta_T, middle = make(), make(), make()
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), theta_0.parameters(), theta_T.parameters(), strict=True):
            p.copy_(0.6 * a.double() + 0.4 * b.double())
    result = mli_fast.sweep(theta_0, theta_0, theta_T, data, ALPHAS, criterion=criterion, progress=False, **options)
    return result, [theta_0, middle, theta_T]


def whole(loss: nn.Module, models: list[nn.Module], x: Tensor, y: Tensor) -> list[float]:
    """The module's own mean over all data as one batch, in fp64."""
    y = y.double() if y.is_floating_point() else y
    with torch.no_grad():
        return [loss.double()(model.double()(x.double()), y).item() for model in models]


CLASSES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.CrossEntropyLoss(),
    "weights": lambda: nn.CrossEntropyLoss(weight=WEIGHT.clone()),
    "smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
    "weights and smoothing": lambda: nn.CrossEntropyLoss(weight=WEIGHT.clone(), label_smoothing=0.2),
    "ignored class": lambda: nn.CrossEntropyLoss(ignore_index=1),
    "ignored and weights": lambda: nn.CrossEntropyLoss(weight=WEIGHT.clone(), ignore_index=1),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 3), Pixels], ids=["classes", "positions"])
@pytest.mark.parametrize("name", CLASSES)
def test_cross_entropy_is_its_mean_over_all_data(name: str, make: Callable[[], nn.Module], reduction: str) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20, 4) if make is Pixels else (20,))
    y[3] = y[11] = CLASSES[name]().ignore_index
    loss = CLASSES[name]()
    loss.reduction = reduction
    result, models = swept(make, cut(x, y), loss)
    np.testing.assert_allclose(result.loss, whole(CLASSES[name](), models, x, y), rtol=1e-6)
    counted = y != loss.ignore_index
    right = [(model(x.double()).argmax(1) == y)[counted].double().mean().item() for model in models]
    np.testing.assert_allclose(result.accuracy, right, rtol=1e-12)
    assert loss.reduction == reduction


def test_class_probabilities() -> None:
    x, y = torch.randn(20, 6), torch.rand(20, 3).softmax(1)
    result, models = swept(lambda: nn.Linear(6, 3), cut(x, y), nn.CrossEntropyLoss(), metrics=())
    np.testing.assert_allclose(result.loss, whole(nn.CrossEntropyLoss(), models, x, y), rtol=1e-6)


REAL = {
    "mse": nn.MSELoss(),
    "l1": nn.L1Loss(),
    "huber": nn.HuberLoss(delta=0.3),
    "smooth l1": nn.SmoothL1Loss(),
    "poisson": nn.PoissonNLLLoss(),
    "bce": nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])),
    "soft margin": nn.SoftMarginLoss(),
    "divergence": nn.KLDivLoss(reduction="batchmean"),
}


@pytest.mark.parametrize("name", REAL)
def test_losses_of_elements(name: str) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(20, 6), torch.rand(20, 3)
    y = y.softmax(1) if name == "divergence" else y
    result, models = swept(lambda: nn.Linear(6, 3), cut(x, y), REAL[name], metrics=())
    np.testing.assert_allclose(result.loss, whole(REAL[name], models, x, y), rtol=1e-6)


def test_a_sum_of_elements_is_an_examples() -> None:
    x, y = torch.randn(20, 6), torch.rand(20, 3)
    result, models = swept(lambda: nn.Linear(6, 3), cut(x, y), nn.MSELoss(reduction="sum"), metrics=())
    np.testing.assert_allclose(result.loss, np.array(whole(nn.MSELoss(reduction="sum"), models, x, y)) / 20, rtol=1e-6)


def test_the_slope_of_a_module() -> None:
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))
    own = nn.CrossEntropyLoss(weight=WEIGHT.clone())
    options: dict[str, Any] = {"metrics": ("loss_slope",), "precision": "fp64"}
    slope = swept(lambda: nn.Linear(6, 3), cut(x, y), own, **options)[0]["loss_slope"][1]
    torch.manual_seed(0)
    ends = nn.Linear(6, 3), nn.Linear(6, 3)
    near = [0.4 - 1e-5, 0.4 + 1e-5]
    low, high = mli_fast.sweep(ends[0], *ends, cut(x, y), near, criterion=own, precision="fp64", progress=False).loss
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-7)


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHT)


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def test_one_number_is_told_apart() -> None:
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    make = lambda: nn.Linear(6, 3)  # noqa: E731
    with pytest.raises(ValueError, match="total returned the sum over the batch"):
        swept(make, cut(x, y), total)
    with pytest.warns(NotAMeanWarning, match="weighted returned one number"):
        swept(make, cut(x, y), weighted)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotAMeanWarning)
        result, models = swept(make, cut(x, y), mean)
    np.testing.assert_allclose(result.loss, whole(nn.CrossEntropyLoss(), models, x, y), rtol=1e-6)


@pytest.mark.parametrize(
    "criterion",
    [nn.MSELoss(), lambda o, y: ((o - y) ** 2).mean(), lambda o, y: ((o - y) ** 2).mean(1)],
    ids=["module", "mean", "each"],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_pairs_of_all_examples_are_refused(criterion: Any) -> None:
    x, y = torch.randn(20, 6), torch.randn(20)
    with pytest.raises(ValueError, match=r"outputs \(7, 1\) and targets \(7,\).*broadcasts"):
        swept(lambda: nn.Linear(6, 1), cut(x, y), criterion, metrics=())
    result, models = swept(
        lambda: nn.Linear(6, 1), cut(x, y), lambda o, y: (o.squeeze(1) - y).square().mean(), metrics=()
    )
    np.testing.assert_allclose(result.loss, whole(nn.MSELoss(), models, x, y[:, None]), rtol=1e-6)


def test_a_curve_is_trained_on_the_same_loss() -> None:
    torch.manual_seed(3)
    ends, x, y = [nn.Linear(6, 3), nn.Linear(6, 3)], torch.randn(20, 6), torch.arange(20) % 3
    y[4] = 1
    weighted, named, plain = (
        mli_fast.fit_bezier(ends[0], *ends, (x, y), criterion=c, epochs=9, lr=0.1, points=3, progress=False)
        for c in (nn.CrossEntropyLoss(weight=WEIGHT), "cross_entropy", nn.CrossEntropyLoss())
    )
    bends = [fit.path.anchors[1]["weight"] for fit in (weighted, named, plain)]
    torch.testing.assert_close(bends[1], bends[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(bends[0], bends[1], rtol=1e-3)


def test_ignored_targets_that_count_as_zero_are_said() -> None:
    """Of losses per example; the mean that PyTorch's module gives leaves them out."""
    c = case("mlp")
    batches = [(x, y.clone().index_fill_(0, torch.tensor([0]), -100)) for x, y in c.batches]
    c = Case(c.model, c.theta_0, c.theta_T, batches)

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    with pytest.warns(NotAMeanWarning, match="each gives 0 where the target is -100"):
        counted = c.sweep(3, criterion=each, metrics=())
    left_out = c.sweep(3, criterion=nn.CrossEntropyLoss(), metrics=())
    examples, terms = (sum(int(n(y)) for _, y in batches) for n in (len, lambda y: (y != -100).sum()))
    np.testing.assert_allclose(counted.loss * examples, left_out.loss * terms, rtol=1e-6)
