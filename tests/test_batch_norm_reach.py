"""Batch-norm policies on norms that are not PyTorch's, or are not called as modules: right, or said by name."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import science_reference as reference
from tests.cases import Case, case
from tests.test_batch_norm import ALPHAS, POLICIES, Unused, expected, left_by_update_bn, made, options_of

STATISTICS = ("running_mean", "running_var")


class FrozenBatchNorm(nn.Module):
    """As torchvision's: everything is a buffer, nothing is ever updated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", *STATISTICS):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


class OwnNorm(nn.Module):
    """Calls batch norm's functional with statistics of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class AroundNorm(nn.Module):
    """Calls batch norm's functional with the statistics of a module that it never calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.bn.training)


class EvalNorm(nn.BatchNorm1d):
    """Puts itself in eval mode when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        self.eval()
        return super().forward(x)


class Instance(nn.InstanceNorm1d):
    """An instance norm over three steps that are made of an example's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.stack([x, 2 * x, x * x], -1)).mean(-1)


OTHERS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm,
    "own": OwnNorm,
    "around": AroundNorm,
    "instance": Instance,
}


def with_norms(*norms: nn.Module) -> Case:
    """A case of these norms, one after the other, with other statistics at either end."""
    layers = [part for norm in norms for part in (norm, nn.Tanh())]
    c = made(nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 4)))
    g = torch.Generator().manual_seed(5)
    for state in (c.theta_0, c.theta_T):
        for name in (n for n in state if n.endswith(STATISTICS)):
            state[name] = torch.rand(8, generator=g) + 0.5
    return c


def at_one_end(c: Case, end: dict[str, Tensor]) -> np.ndarray:
    """The plain loop's losses where every running statistic is that of one end."""
    losses = []
    for alpha in ALPHAS:
        state = {n: (1 - alpha) * v.double() + alpha * c.theta_T[n].double() for n, v in c.theta_0.items()}
        own = copy.deepcopy(c.model).double().eval()
        own.load_state_dict(state | {n: v for n, v in end.items() if n.endswith(STATISTICS)})
        with torch.no_grad():
            rows = [F.cross_entropy(own(x.double()), y, reduction="none") for x, y in c.batches]
        losses.append(float(torch.cat(rows).mean()))
    return np.array(losses)


def said(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call gives, and what it warns of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = run()
    return result, [str(w.message) for w in seen]


@pytest.mark.parametrize("policy", ["start", "end"])
@pytest.mark.parametrize("kind", ["frozen", "own", "around"])
def test_an_ends_statistics_are_those_of_every_batch_norm(kind: str, policy: str) -> None:
    c = with_norms(OTHERS[kind](8), nn.BatchNorm1d(8))
    result, warned = said(lambda: c.sweep(ALPHAS, precision="fp64", metrics=(), batch_norm=policy))
    np.testing.assert_allclose(result.loss, at_one_end(c, c.theta_0 if policy == "start" else c.theta_T), rtol=1e-10)
    assert not warned


@pytest.mark.parametrize("policy", ["batch", "recalibrate"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-batch-norm"])
def test_statistics_that_are_read_around_a_batch_norm_are_said(beside: bool, policy: str) -> None:
    c = with_norms(AroundNorm(8), *[nn.BatchNorm1d(8)] * beside)
    _, warned = said(lambda: c.sweep(ALPHAS, metrics=(), **options_of(policy, c.batches)))
    assert re.search(rf"batch_norm='{policy}' does not reach 1 .*'1\.bn' \(BatchNorm1d\)", " ".join(warned))
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("kind", "policy"),
    [("instance", "start"), ("instance", "end"), *product(["frozen", "own", "instance"], POLICIES)],
)
def test_norms_that_a_policy_leaves_are_said(kind: str, policy: str) -> None:
    c = with_norms(OTHERS[kind](8), nn.BatchNorm1d(8))
    _, warned = said(lambda: c.sweep(ALPHAS, metrics=(), **options_of(policy, c.batches)))
    reached = policy == "update-bn" and kind in ("own", "instance")  # all of the model trains there
    assert len(warned) == (0 if reached else 1)
    assert reached or re.search(rf"'{policy}' does not reach 1 .* the first is '1' ", warned[0])


def test_update_bn_trains_norms_of_any_class() -> None:
    """PyTorch's batch norm writes to statistics without a new version of them."""
    c = with_norms(OwnNorm(8), nn.BatchNorm1d(8))
    result = c.sweep(ALPHAS, precision="fp64", metrics=(), **options_of("update-bn", c.batches))
    states = reference.line(c.theta_0, c.theta_T, ALPHAS)
    networks = [left_by_update_bn(c, state, c.batches, torch.float64) for state in states]
    losses = [reference.mean_loss(network, c.batches, c.criterion) for network in networks]
    np.testing.assert_allclose(result.loss, losses, rtol=1e-10)


@pytest.mark.parametrize("policy", POLICIES)
def test_norms_that_no_pass_reads_are_none_of_them(policy: str) -> None:
    c = made(Unused())
    assert said(lambda: c.sweep(ALPHAS, **options_of(policy, c.batches)))[1] == []


@pytest.mark.parametrize("policy", ["batch", "recalibrate"])
def test_a_norm_that_the_model_puts_in_eval_mode_follows_the_policy(policy: str) -> None:
    c, plain = with_norms(EvalNorm(8)), with_norms(nn.BatchNorm1d(8))
    result, warned = said(lambda: c.sweep(ALPHAS, precision="fp64", metrics=(), **options_of(policy, c.batches)))
    same = Case(plain.model, c.theta_0, c.theta_T, c.batches)
    np.testing.assert_allclose(result.loss, expected(policy, same, c.batches), rtol=1e-10)
    assert not warned


@pytest.mark.parametrize("policy", POLICIES)
def test_a_negative_variance_that_a_policy_replaces_is_nothing_to_warn_of(policy: str) -> None:
    c = with_norms(nn.BatchNorm1d(8))
    c.theta_T["1.running_var"].fill_(0.1)
    result, warned = said(lambda: c.sweep([0.0, 4.0], metrics=(), **options_of(policy, c.batches)))
    assert np.isfinite(result.loss).all()
    assert not warned


@pytest.mark.parametrize("kind", ["frozen", "own"])
def test_a_negative_variance_is_named_whatever_the_norm(kind: str) -> None:
    c = with_norms(OTHERS[kind](8))
    c.theta_T["1.running_var"].fill_(0.1)
    _, warned = said(lambda: c.sweep([0.0, 4.0], metrics=()))
    assert len(warned) == 1
    assert "'1.running_var' is negative at 4.0" in warned[0]


@pytest.mark.parametrize("policy", ["interpolate", "start", *POLICIES])
def test_the_summary_says_the_policy(policy: str) -> None:
    c = case("mlp-batch-norm")
    first = str(c.sweep(3, **options_of(policy, c.batches))).splitlines()[0]
    assert first == f"SweepResult: 3 alphas from 0 to 1, 13 examples, batch_norm={policy!r}"
