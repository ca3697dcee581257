"""Recorded passes give the values of passes that are not, bit for bit; what cannot be recorded runs as it is."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mli_fast
from mli_fast.engine import forced
from mli_fast.ops import points
from tests.cases import case
from tests.recording import TapeRecorder

run = importlib.import_module("mli_fast.engine.run")  # the package's attribute of that name is the function
ALPHAS = np.linspace(0, 1, 7)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at coefficients or targets; PyTorch's operators alone, since those can be written down."""
    monkeypatch.setattr(points, "asynchronous", lambda tensor: True)
    monkeypatch.setattr("mli_fast.engine.evaluators.asynchronous", lambda tensor: True)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: None) -> TapeRecorder:
    """Records passes on the CPU."""
    made = TapeRecorder()
    passes = run.Passes
    monkeypatch.setattr(run, "Passes", lambda *arguments: passes(*arguments[:3], made))
    return made


def swept(name: str, **options: Any) -> mli_fast.SweepResult:
    return case(name).sweep(ALPHAS, backend="reference", **options)


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "transformer-encoder"])
def test_recorded_passes_are_bitwise_what_passes_are(
    name: str, engine: str, recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = {"chunk": 2} if engine == "vmap" else {}
    ours = swept(name, **chunk)
    assert recorder.replayed > 2
    assert ours.provenance["cuda_graphs"] == "yes"
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "launching", 0.0)
        plain = swept(name, **chunk)
    assert "launching a pass took" in plain.provenance["cuda_graphs"]
    for variable in ours.dataset.data_vars:
        np.testing.assert_array_equal(ours[variable], plain[variable], err_msg=str(variable))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "transformer-encoder"])
def test_coefficients_that_nobody_looks_at_give_the_same_values(name: str, engine: str) -> None:
    unseen = swept(name, precision="fp64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "asynchronous", lambda tensor: False)
        seen = swept(name, precision="fp64")
    np.testing.assert_allclose(unseen.loss, seen.loss, rtol=1e-12)
    np.testing.assert_array_equal(unseen.accuracy, seen.accuracy)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_anchor_that_is_left_out_may_hold_nan_unseen(engine: str) -> None:
    c = case("mlp")
    broken = {k: torch.full_like(v, float("nan")) for k, v in c.theta_T.items()}
    with pytest.warns(UserWarning, match="NaN"):
        result = mli_fast.sweep(c.model, c.theta_0, broken, c.batches, [0.0, 0.5], backend="reference")
    assert np.isfinite(result.loss[0])
    assert np.isnan(result.loss[1])


def test_few_passes_are_not_recorded(recorder: TapeRecorder) -> None:
    c = case("mlp")
    result = c.sweep([0.0, 0.5], backend="reference", loader=iter(list(c.batches)))
    assert recorder.recorded == 0
    assert "too few passes" in result.provenance["cuda_graphs"]


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x))


def test_a_model_that_draws_random_numbers_is_not_recorded(recorder: TapeRecorder) -> None:
    c = case("mlp")
    theta_0, theta_T = ({f"inner.{k}": v for k, v in theta.items()} for theta in (c.theta_0, c.theta_T))
    with forced("loop"):
        result = mli_fast.sweep(Noisy(c.model), theta_0, theta_T, c.batches, ALPHAS, backend="reference")
    assert recorder.recorded == 0
    assert "random" in result.provenance["cuda_graphs"]


def test_what_cannot_be_recorded_runs_as_it_is(recorder: TapeRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "record", fails)
    with forced("loop"):
        result = swept("cnn-bn")
    assert "not permitted" in result.provenance["cuda_graphs"]
    np.testing.assert_array_equal(np.isfinite(result.loss), True)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("criterion", ["cross_entropy", "bce_with_logits"])
def test_targets_out_of_range_are_reported_with_their_batch_when_all_is_through(criterion: str) -> None:
    c = case("mlp")
    batches = [(x, y.clone()) for x, y in c.batches]
    if criterion == "bce_with_logits":
        batches = [(x, torch.zeros(len(y), c.model(x).shape[1])) for x, y in batches]
    batches[1][1].view(-1)[0] = 77
    with pytest.raises(ValueError, match=r"batch 1: .*77"):
        mli_fast.sweep(c.model, c.theta_0, c.theta_T, batches, 3, criterion=criterion, backend="reference")
