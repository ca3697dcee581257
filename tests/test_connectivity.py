"""fit_bezier: the trained curve avoids a barrier, its ends stay, and nothing of the caller's changes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mli_fast
from tests.cases import Case, case
from tests.test_left_alone import assert_unchanged, lived_in, snapshot


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


class Scaled(nn.Module):
    """A layer under a buffer that every instance draws anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.scale)


def fitted(c: Case, **options: Any) -> mli_fast.BezierFit:
    """A fit on a case, short unless said otherwise."""
    options = {"epochs": 1, "points": 3, "criterion": c.criterion, "metrics": c.metrics, "progress": False} | options
    return mli_fast.fit_bezier(c.model, c.theta_0, c.theta_T, c.batches, **options)


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


def test_theta_is_what_the_curve_goes_through() -> None:
    c = case("tied-autoencoder")
    fit = fitted(c, precision="fp64", points=[0.0, 0.3, 1.0])
    state = fit.theta(0.3)
    assert len(state) < len(c.model.state_dict()), "tied: named once"
    alone = mli_fast.evaluate(c.model, mli_fast.Line(state, c.theta_T), [0.0], c.batches, criterion="mse", metrics=())
    np.testing.assert_allclose(alone.loss[0], fit.result.loss[1], rtol=1e-5)
    for t, end in ((0.0, c.theta_0), (1.0, c.theta_T)):
        assert all(torch.equal(value, end[name]) for name, value in fit.theta(t).items())


@pytest.mark.parametrize(
    "name", ["mlp", "cnn-bn", "segmentation", "gpt2", "regression-mse", "multi-label-bce", "log-softmax-nll"]
)
def test_a_step_descends_what_the_sweep_calls_the_loss(name: str) -> None:
    c = case(name)
    still = fitted(replace(c, theta_T=c.theta_0), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    for batch, loss in zip(c.batches, still.losses, strict=True):
        policy = "batch" if "bn" in name else "interpolate"
        options: dict[str, Any] = {"criterion": c.criterion, "metrics": (), "batch_norm": policy}
        swept = mli_fast.sweep(c.model, c.theta_0, c.theta_0, [batch], [0.0], **options)
        np.testing.assert_allclose(loss, swept.loss[0], rtol=1e-5)


def test_every_parameter_bends_and_nothing_else() -> None:
    a, b = Scaled(), Scaled()
    with torch.no_grad():
        b.last.weight.copy_(a.last.weight)
    fit = mli_fast.fit_bezier(Scaled(), a, b, rings(), epochs=3, points=3)
    bend: Any = fit.path.anchors[1]
    assert not torch.equal(bend["last.weight"], a.last.weight), "equal at both ends, but not on the way"
    assert torch.equal(bend["scale"], torch.lerp(a.scale, b.scale, 0.5)), "a buffer moves as it does on the line"
    same = mli_fast.fit_bezier(Scaled(), a, a, rings(), epochs=3, points=3)
    assert same.result.loss[0] == same.result.loss[2] == same.line.loss[1] != same.result.loss[1]


def test_batch_norm_is_recalibrated_on_the_training_data() -> None:
    ends = trained(0, norm=True), trained(1, norm=True)
    fit = mli_fast.fit_bezier(net(True), *ends, rings(), epochs=3, points=5)
    assert fit.result.provenance["batch_norm"] == fit.line.provenance["batch_norm"] == "recalibrate"
    again = mli_fast.evaluate(net(True), fit.path, 5, rings(), batch_norm="recalibrate", calibration=rings())
    np.testing.assert_array_equal(fit.result.loss, again.loss)
    kept = mli_fast.fit_bezier(net(True), *ends, rings(), epochs=1, points=3, batch_norm="interpolate")
    assert kept.result.provenance["batch_norm"] == "interpolate"
    X, y = rings()
    other = mli_fast.fit_bezier(net(True), *ends, (X, y), epochs=1, points=3, calibration=(X[:50], y[:50]))
    options = {"batch_norm": "recalibrate", "calibration": (X[:50], y[:50])}
    assert other.line.loss[1] == mli_fast.sweep(net(True), *ends, (X, y), [0.5], **options).loss[0]


def test_no_batch_of_a_pair_is_too_small_for_batch_norm() -> None:
    X, y = (torch.cat([t, t])[:257] for t in rings())
    fit = mli_fast.fit_bezier(net(True), trained(0, norm=True), trained(1, norm=True), (X, y), epochs=1, points=3)
    assert fit.losses.shape == (3,)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_another_precision(precision: str) -> None:
    ends = trained(0, norm=True), trained(1, norm=True)
    fit, own = (
        mli_fast.fit_bezier(net(True), *ends, rings(), epochs=2, points=3, precision=p) for p in (precision, None)
    )
    bend: Any = fit.path.anchors[1]
    assert {value.dtype for value in bend.values()} == {torch.float32, torch.int64}
    np.testing.assert_allclose(fit.losses, own.losses, rtol=1e-5 if precision == "fp64" else 0.05)


@pytest.mark.parametrize("name", ["mlp-batch-norm", "dropout-eval", "writes-into-its-input", "tied-autoencoder"])
@pytest.mark.parametrize("stopped", [False, True], ids=["", "ctrl-c"])
def test_the_callers_things_are_left_alone(name: str, stopped: bool) -> None:
    c = lived_in(name)
    for inputs, _ in c.batches:
        if inputs.is_floating_point():
            inputs.requires_grad_()
    before = snapshot(c)

    def made(parameters: list[Tensor]) -> torch.optim.Optimizer:
        if stopped:
            raise KeyboardInterrupt
        return torch.optim.SGD(parameters, lr=0.1)

    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        fitted(c, epochs=2, optimizer=made)
    assert_unchanged(before, snapshot(c))
    assert all(inputs.grad is None for inputs, _ in c.batches)


def test_a_shuffling_loader_is_shuffled_by_the_seed_and_leaves_no_trace() -> None:
    ends, loader = (trained(0), trained(1)), DataLoader(TensorDataset(*rings()), batch_size=64, shuffle=True)
    found, model = [], net()
    with torch.random.fork_rng(devices=[]):
        for state in (11, 12):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            found.append(mli_fast.fit_bezier(model, *ends, loader, epochs=2, points=3, seed=1).losses)
            assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*found)


def test_inside_inference_mode() -> None:
    outside = fitted(case("cnn-bn"))
    with torch.inference_mode():
        c = case("cnn-bn")
        inside = fitted(replace(c, theta_0={k: v.clone() for k, v in c.theta_0.items()}))
    np.testing.assert_array_equal(inside.losses, outside.losses)
    np.testing.assert_array_equal(inside.result.loss, outside.result.loss)


def test_more_bends_and_other_criteria() -> None:
    X, y = rings()
    target = F.one_hot(y, 2).float()
    fit = mli_fast.fit_bezier(
        net(), trained(0), trained(1), (X, target), bends=2, epochs=1, points=4, criterion="mse", metrics=()
    )
    assert len(fit.path.anchors) == 4
    assert fit.result.provenance["criterion"] == "mse"
    assert fit.result.provenance["path"] == "bezier"


def test_outputs_of_any_kind_with_a_criterion_of_ones_own() -> None:
    def both(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0]), batch[0]), batch[1]

    def scored(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets, reduction="none") + 0 * outputs[1].sum(1)

    ends = trained(0), trained(1)
    ours = mli_fast.fit_bezier(net(), *ends, [rings()], epochs=1, points=3, metrics=(), forward=both, criterion=scored)
    named = mli_fast.fit_bezier(net(), *ends, [rings()], epochs=1, points=3)
    np.testing.assert_allclose(ours.losses, named.losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"bends": 0}, ValueError, "bends=0"),
        ({"epochs": 0}, ValueError, "epochs=0"),
        ({"epochs": 1.5}, ValueError, "epochs=1.5"),
        ({"criterion": "no"}, ValueError, "criterion='no'"),
        ({"points": []}, ValueError, "alphas is empty"),
        ({"schedule": {"bias": "start"}}, ValueError, "schedule"),
        ({"loader": []}, ValueError, "loader is empty"),
        ({"loader": (batch for batch in [rings()])}, ValueError, "several times here, and a generator only once"),
        ({"loader": [(rings()[0], rings()[1] + 7)]}, ValueError, "batch 0: targets out of range for 2 classes"),
        ({"theta_T": {}}, ValueError, "theta_T"),
        ({"model": 3}, TypeError, "model: expected a torch.nn.Module"),
        ({"alphas": 3}, TypeError, "alphas"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused_before_training(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    def made(_: list[Tensor]) -> torch.optim.Optimizer:
        raise AssertionError("training has begun")

    given = {"model": net(), "theta_0": net(), "theta_T": net(), "loader": rings(), "optimizer": made} | options
    with pytest.raises(error, match=told):
        mli_fast.fit_bezier(**given)


def test_an_error_in_training_says_where() -> None:
    def stops(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters)

    with pytest.raises(TypeError) as caught:
        mli_fast.fit_bezier(net(), net(), net(), rings(), optimizer=stops)
    assert any("training step 0, at t = 0." in note for note in caught.value.__notes__)


class Masked(nn.Module):
    """A network of which a buffer leaves out some inputs and a counter counts."""

    def __init__(self, mask: list[bool]) -> None:
        super().__init__()
        self.body = net(True)
        self.register_buffer("mask", torch.tensor(mask))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.mask)


def test_what_is_not_blended_is_an_ends_own_there_and_theta_Ts_between() -> None:
    a, b = Masked([True, False]), Masked([False, True])
    b.body[1].num_batches_tracked.fill_(9)
    with pytest.warns(UserWarning, match="'mask'"):
        fit = mli_fast.fit_bezier(a, a, b, rings(), epochs=2, points=3)
    for t, end in ((0.0, a), (0.5, b), (1.0, b)):
        theta = fit.theta(t)
        assert torch.equal(theta["mask"], end.mask)
        assert theta["body.1.num_batches_tracked"] == end.body[1].num_batches_tracked
    assert torch.equal(fit.path.anchors[1]["mask"], b.mask)
