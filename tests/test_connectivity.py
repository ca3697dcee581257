"""fit_bezier: the trained curve avoids a barrier, its ends stay, and nothing of the caller's changes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mli_fast


def net(norm: bool = False) -> nn.Sequential:
    layers = [nn.Linear(2, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.Tanh(), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


def rings() -> tuple[Tensor, Tensor]:
    """Two rings of points, which no line separates."""
    g = torch.Generator().manual_seed(0)
    angle, y = 2 * torch.pi * torch.rand(200, generator=g), torch.arange(200) % 2
    radius = 1.0 + y + 0.1 * torch.randn(200, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def trained(seed: int, norm: bool = False) -> nn.Module:
    X, y = rings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = net(norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def fit() -> mli_fast.BezierFit:
    return mli_fast.fit_bezier(net(), trained(0), trained(1), rings(), epochs=80, lr=0.1, points=31)


def test_the_curve_goes_around_the_barrier_of_the_line(fit: mli_fast.BezierFit) -> None:
    along_line, along_curve = (mli_fast.measures.barrier(r.loss) for r in (fit.line, fit.result))
    assert along_line > 0.3, "the case has a barrier"
    assert along_curve < 0.2 * along_line


def test_the_ends_are_the_callers(fit: mli_fast.BezierFit) -> None:
    np.testing.assert_array_equal(fit.result.loss[[0, -1]], fit.line.loss[[0, -1]])


def test_losses_are_there_for_every_step_and_fall(fit: mli_fast.BezierFit) -> None:
    assert fit.losses.shape == (80 * 2,)
    assert fit.losses[-20:].mean() < 0.5 * fit.losses[:20].mean()


def test_the_seed_decides() -> None:
    ends = trained(0), trained(1)
    first, again, other = (
        mli_fast.fit_bezier(net(), *ends, rings(), epochs=2, points=3, seed=seed).losses for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_step_is_gradient_descent_on_the_bend() -> None:
    """theta(t) = sum b_i(t) theta_i, so the bend's gradient is b_1(t) times that at theta(t)."""
    a, b = trained(0).double(), trained(1).double()
    X, y = rings()
    batches = [(X.double(), y)]
    fit = mli_fast.fit_bezier(
        net().double(),
        a,
        b,
        batches,
        epochs=1,
        points=3,
        seed=5,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    t = torch.rand((), generator=torch.Generator().manual_seed(5), dtype=torch.float64).item()
    point = {k: torch.lerp(v, b.state_dict()[k], t).requires_grad_() for k, v in a.state_dict().items()}
    loss = F.cross_entropy(torch.func.functional_call(net().double(), point, (batches[0][0],)), y)
    loss.backward()
    np.testing.assert_allclose(fit.losses, [loss.item()], rtol=1e-12)
    bend: Any = fit.path.anchors[1]
    for name, value in point.items():
        middle = torch.lerp(a.state_dict()[name], b.state_dict()[name], 0.5)
        expected = middle - 0.1 * 2 * t * (1 - t) * value.grad
        np.testing.assert_allclose(bend[name].numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_batch_norm_is_recalibrated_on_the_training_data() -> None:
    ends = trained(0, norm=True), trained(1, norm=True)
    fit = mli_fast.fit_bezier(net(True), *ends, rings(), epochs=3, points=5)
    assert fit.result.provenance["batch_norm"] == fit.line.provenance["batch_norm"] == "recalibrate"
    again = mli_fast.evaluate(net(True), fit.path, 5, rings(), batch_norm="recalibrate", calibration=rings())
    np.testing.assert_array_equal(fit.result.loss, again.loss)
    kept = mli_fast.fit_bezier(net(True), *ends, rings(), epochs=1, points=3, batch_norm="interpolate")
    assert kept.result.provenance["batch_norm"] == "interpolate"


def test_the_callers_things_are_left_alone() -> None:
    model, a, b = net(True).train(), trained(0, norm=True), trained(1, norm=True)
    before = [copy.deepcopy(m.state_dict()) for m in (model, a, b)]
    loader = DataLoader(TensorDataset(*rings()), batch_size=64, shuffle=True)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    mli_fast.fit_bezier(model, a, b, loader, epochs=2, points=3, batch_norm="interpolate")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not a.training
    for m, kept in zip((model, a, b), before, strict=True):
        assert all(torch.equal(m.state_dict()[k], v) for k, v in kept.items())
        assert all(p.requires_grad for p in m.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_more_bends_and_other_criteria() -> None:
    X, y = rings()
    target = F.one_hot(y, 2).float()
    fit = mli_fast.fit_bezier(
        net(), trained(0), trained(1), (X, target), bends=2, epochs=1, points=4, criterion="mse", metrics=()
    )
    assert len(fit.path.anchors) == 4
    assert fit.result.provenance["criterion"] == "mse"
    assert fit.result.provenance["path"] == "bezier"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"bends": 0}, "bends=0"), ({"epochs": 0}, "epochs=0"), ({"criterion": "no"}, "criterion='no'")],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mli_fast.fit_bezier(net(), trained(0), trained(1), rings(), **options)


def test_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"several times here, a generator"):
        mli_fast.fit_bezier(net(), trained(0), trained(1), (batch for batch in [rings()]))


def test_a_batch_that_cannot_be_scored_is_named() -> None:
    X, y = rings()
    with pytest.raises(ValueError, match=r"batch 0: targets out of range for 2 classes"):
        mli_fast.fit_bezier(net(), trained(0), trained(1), [(X, y + 7)])
