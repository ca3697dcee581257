"""Batch-norm policies: the contracts hold under each, and what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from mli_fast.engine import forced
from tests.cases import Case, assert_same_points, case, under_both
from tests.data import Batch
from tests.plain_points import spoilt
from tests.test_batch_norm import ALPHAS, CALIBRATED, POLICIES, Twice, cut_again, labels, made, options_of
from tests.test_contracts import Counting
from tests.test_left_alone import Mishap, assert_unchanged, lived_in, snapshot


@pytest.mark.parametrize("policy", POLICIES)
@under_both("cnn-bn", "mlp-batch-norm")
def test_a_point_stands_alone(name: str, under: str, policy: str) -> None:
    c, grid = case(name), [0.0, 0.2, 0.5, 0.9, 1.0]
    options = options_of(policy, c.batches)
    with forced(under):
        whole = c.sweep(grid, **options)
        for at in ([2], [4, 0, 2, 2]):
            assert_same_points(c.sweep([grid[i] for i in at], **options), whole, at)
        for chunk in (1, 2):
            assert_same_points(c.sweep(grid, chunk=chunk, **options), whole, range(5))
        assert_same_points(c.sweep([0.0], theta_T=c.theta_0, **options), whole, [0])
        assert_same_points(c.sweep([1.0], theta_0=c.theta_T, **options), whole, [4])


@pytest.mark.parametrize("policy", POLICIES)
@under_both("cnn-bn", "mlp-batch-norm")
def test_an_end_is_exact_where_the_other_is_nan(name: str, under: str, policy: str) -> None:
    c = case(name)
    options = options_of(policy, c.batches)
    with forced(under):
        clean = c.sweep([0.0, 1.0], **options)
        with pytest.warns(mli_fast.evaluation.NonFiniteWarning):
            bad_end = c.sweep([0.0, 0.5, 1.0], theta_T=spoilt(c.theta_T), **options)
        with pytest.warns(mli_fast.evaluation.NonFiniteWarning):
            bad_start = c.sweep([0.0, 0.5, 1.0], theta_0=spoilt(c.theta_0), **options)
    assert np.isnan(bad_end.loss).tolist() == [False, True, True]
    assert np.isnan(bad_start.loss).tolist() == [True, True, False]
    assert (bad_end.loss[0], bad_start.loss[2]) == tuple(clean.loss)


class Noisy(nn.Module):
    """Draws noise on every call, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(F.relu(self.norm(hidden + torch.randn(hidden.shape, dtype=hidden.dtype))))


@pytest.mark.parametrize("policy", POLICIES)
def test_noise_is_the_same_at_every_point(engine: str, policy: str) -> None:
    c = made(Noisy())
    options = options_of(policy, c.batches)
    assert_same_points(c.sweep([0.3], **options), c.sweep(ALPHAS, **options), [2])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["cnn-bn", "pre-activation-resnet"])
def test_the_callers_things_are_as_they_were(name: str, policy: str, engine: str) -> None:
    c = lived_in(name)
    before = snapshot(c)
    c.sweep(ALPHAS, **options_of(policy, c.batches))
    assert_unchanged(before, snapshot(c))


def breaks(batches: list[Batch], error: BaseException) -> Iterator[Batch]:
    """Two batches, then an error."""
    yield from batches[:2]
    raise error


@pytest.mark.parametrize("policy", CALIBRATED)
@pytest.mark.parametrize("error", [Mishap("no more"), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
def test_they_are_after_an_exception_in_the_calibration_data(policy: str, error: BaseException) -> None:
    c = lived_in("cnn-bn")
    before = snapshot(c)
    with pytest.raises(type(error)):
        c.sweep(ALPHAS, **options_of(policy, breaks(c.batches, error)))
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("policy", CALIBRATED)
def test_calibration_may_be_a_generator_and_is_read_once(engine: str, policy: str) -> None:
    c = case("cnn-bn")
    data, loader = Counting(c.batches), Counting(c.batches)
    result = c.sweep(ALPHAS, loader=loader, **options_of(policy, data))
    assert (data.iterations, data.drawn, loader.iterations, loader.drawn) == (1, 3, 1, 3)
    once = c.sweep(ALPHAS, **options_of(policy, (batch for batch in c.batches)))
    assert_same_points(once, result, range(len(ALPHAS)))
    data = Counting(c.batches)
    mli_fast.layerwise(c.model, c.theta_0, c.theta_T, c.batches, 3, progress=False, batch_norm=policy, calibration=data)
    assert data.iterations == 1


def test_calibration_is_counted_neither_as_data_nor_twice() -> None:
    c = case("cnn-bn")
    result = c.sweep(ALPHAS, batch_norm="recalibrate", calibration=c.batches * 3)
    assert result.count == 13
    assert (result.provenance["examples"], result.provenance["batches"]) == (13, 3)


# --------------------------------------------------------------------------------------------------------------- errors


class TakesSides(nn.Module):
    """Which of two norms it calls depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even, self.odd, self.last = (
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(self.odd(hidden) if len(x) % 2 else self.even(hidden))


def one_value() -> Case:
    """A case whose last batch is a single example."""
    c = case("mlp-batch-norm")
    return Case(c.model, c.theta_0, c.theta_T, cut_again(c.batches, [12, 1]))


def in_apart(c: Case, sizes: list[int]) -> mli_fast.SweepResult:
    """Recalibrated over batches that cannot go together."""
    data = cut_again(c.batches, sizes)
    return c.sweep(3, batch_norm="recalibrate", calibration=[((x, 1.0), y) for x, y in data], forward=first_input)


def first_input(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Leaves out what came with the inputs."""
    inputs, targets = batch
    return model(inputs[0] if isinstance(inputs, tuple) else inputs), targets


BAD: dict[str, tuple[Callable[[Case], Any], str]] = {
    "no-data": (lambda c: c.sweep(3, batch_norm="recalibrate"), "recalibrate.*calibration"),
    "no-data-ema": (lambda c: c.sweep(3, batch_norm="recalibrate-ema"), "recalibrate-ema.*calibration"),
    "data-for-interpolate": (lambda c: c.sweep(3, calibration=c.batches), "calibration.*recalibrate.*interpolate"),
    "data-for-batch": (lambda c: c.sweep(3, batch_norm="batch", calibration=c.batches), "calibration.*batch"),
    "no-such-policy": (lambda c: c.sweep(3, batch_norm="recalibrated"), "recalibrated.*'recalibrate'"),
    "empty": (lambda c: c.sweep(3, batch_norm="recalibrate", calibration=[]), "calibration.*empty"),
    "empty-generator": (lambda c: c.sweep(3, batch_norm="recalibrate-ema", calibration=iter(())), "calibration.*empty"),
    "pair-ema": (
        lambda c: c.sweep(3, batch_norm="recalibrate-ema", calibration=(torch.randn(5, 6), labels(5))),
        "recalibrate-ema.*batches",
    ),
    "unequal-pair": (
        lambda c: c.sweep(3, batch_norm="recalibrate", calibration=(torch.randn(5, 6), labels(4))),
        r"calibration.*\b5\b.*\b4\b",
    ),
    "one-value": (
        lambda c: c.sweep(3, batch_norm="recalibrate", calibration=[(torch.randn(1, 6), labels(1))]),
        "'1'.*single value",
    ),
    "pair-update-bn": (
        lambda c: c.sweep(3, batch_norm="update-bn", calibration=(torch.randn(5, 6), labels(5))),
        "update-bn.*batches",
    ),
    "one-value-ema": (lambda c: c.sweep(3, **options_of("recalibrate-ema", one_value().batches)), "'1'.*single value"),
    "one-value-update-bn": (lambda c: c.sweep(3, **options_of("update-bn", one_value().batches)), "'1'.*single value"),
    "one-value-batch": (lambda c: one_value().sweep(3, batch_norm="batch"), "'1'.*single value"),
    "called-twice": (lambda c: made(Twice()).sweep(3, **options_of("recalibrate", c.batches)), "'norm'.*twice"),
    "not-by-every-batch": (lambda c: in_apart(made(TakesSides()), [6, 7]), "'(even|odd)'.*not called"),
    "no-loader": (lambda c: c.sweep(3, batch_norm="recalibrate", calibration="cal.pt"), "calibration"),
    "bad-batch": (lambda c: c.sweep(3, batch_norm="recalibrate", calibration=[torch.randn(5, 6)]), "forward="),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused_by_name(kind: str) -> None:
    make, told = BAD[kind]
    with pytest.raises((ValueError, TypeError), match=f"(?s){told}"):
        make(case("mlp-batch-norm"))


@pytest.mark.parametrize("policy", CALIBRATED)
def test_an_error_in_calibration_says_so(policy: str) -> None:
    """Torch's own error on inputs of a wrong width."""
    c = case("mlp-batch-norm")
    data = [*c.batches[:1], (torch.randn(4, 7), labels(4))]
    with pytest.raises(RuntimeError) as caught:
        c.sweep(3, **options_of(policy, data))
    assert any("calibrat" in note or "statistics" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError) as caught:
        c.sweep(3, **options_of(policy, data[1:]))
    assert any("calibrat" in note or "statistics" in note for note in getattr(caught.value, "__notes__", []))
