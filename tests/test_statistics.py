"""The numbers themselves: means over examples, standard errors, classes, and what the provenance says of them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from tests.cases import POINTS, case
from tests.data import cut
from tests.reference import plain_loop, standard_error


def test_the_mean_is_over_examples_not_over_batches(engine: str) -> None:
    c = case("mlp")
    losses = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, POINTS).losses
    batch_means = np.stack([part.mean(1) for part in np.split(losses, [5, 10], axis=1)]).mean(0)
    assert np.abs(batch_means - losses.mean(1)).min() > 1e-4  # the case can tell the two apart
    np.testing.assert_allclose(c.sweep(POINTS, precision="fp64").loss, losses.mean(1), rtol=1e-10)


def test_the_cut_of_the_data_into_batches_does_not_matter(engine: str) -> None:
    c = case("cnn-bn")
    x, y = (torch.cat(column) for column in zip(*c.batches, strict=True))
    expected = c.sweep(4, precision="fp64")
    for sizes in ([13], [1] * 13, [2, 11]):
        loader = list(zip(x.split(sizes), y.split(sizes), strict=True))
        np.testing.assert_allclose(c.sweep(4, precision="fp64", loader=loader).loss, expected.loss, rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "item"])
def test_every_statistic_equals_numpy_on_the_per_example_values(name: str) -> None:
    c = case(name)
    r = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, POINTS)
    assert r.correct is not None
    result = c.sweep(POINTS, precision="fp64")
    steps = np.diff(r.losses, axis=0)
    expected = {
        "loss": r.loss,
        "loss_stderr": standard_error(r.losses),
        "accuracy": r.accuracy,
        "accuracy_stderr": standard_error(r.correct),
        "loss_step": np.concatenate([[np.nan], steps.mean(1)]),
        "loss_step_stderr": np.concatenate([[np.nan], standard_error(steps)]),
        "class_loss": r.class_loss,
        "class_accuracy": r.class_accuracy,
        "prediction_histogram": r.prediction_histogram,
    }
    for variable, value in expected.items():
        np.testing.assert_allclose(result[variable], value, rtol=1e-7, atol=1e-13, err_msg=variable)
    assert result["prediction_histogram"].dtype.kind == "i"
    assert result["prediction_histogram"].sum(1).tolist() == [13] * len(POINTS)
    assert (standard_error(steps) < standard_error(r.losses)[1:]).any()  # pairing is what makes it small


def test_a_small_paired_difference_keeps_its_standard_error(engine: str) -> None:
    """Steps of 1e-4 on losses of order one: sums of squares must not cancel away what is left."""
    c, near = case("mlp"), [0.5, 0.5001, 0.5002]
    losses = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, near).losses
    steps = np.diff(losses, axis=0)
    result = c.sweep(near, precision="fp64")
    np.testing.assert_allclose(result["loss_step"][1:], steps.mean(1), rtol=1e-9)
    np.testing.assert_allclose(result["loss_step_stderr"][1:], standard_error(steps), rtol=1e-6)


def test_a_large_constant_loss_keeps_its_standard_error(engine: str) -> None:
    """Losses near 1e6 that differ by about one: E[l^2] - E[l]^2 would lose every digit."""

    def far(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + 1e6

    c = case("mlp")
    losses = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, POINTS, far).losses
    result = c.sweep(POINTS, precision="fp64", criterion=far)
    np.testing.assert_allclose(result["loss_stderr"], standard_error(losses), rtol=1e-5)


def test_a_class_without_examples_is_nan_not_zero(engine: str) -> None:
    c = case("mlp")
    batches = [(x, y.clamp(max=2)) for x, y in c.batches]
    result = c.sweep(3, loader=batches)
    assert result["class_loss"].shape == (3, 4)
    for variable in ("class_loss", "class_accuracy"):
        assert np.isnan(result[variable][:, 3]).all()
        assert np.isfinite(result[variable][:, :3]).all()


def test_one_example_has_no_standard_error(engine: str) -> None:
    c = case("mlp")
    result = c.sweep(3, loader=[(c.batches[0][0][:1], c.batches[0][1][:1])])
    assert result.count == 1
    assert np.isfinite(result.loss).all()
    assert np.isnan(result["loss_stderr"]).all()
    assert np.isnan(result["loss_step_stderr"]).all()


def test_provenance_says_what_was_chosen(engine: str) -> None:
    c = case("cnn-bn")
    result = c.sweep(POINTS, chunk=4)
    provenance = result.provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["versions"]["mli_fast"] == mli_fast.__version__
    assert {"python", "numpy"} <= set(provenance["versions"])
    assert (provenance["engine"], provenance["chunk"] in (1, 4)) == (engine, True)
    assert "32" in provenance["precision"]  # that of the parameters, but which that is has to be told
    assert provenance["device"] == "cpu"
    assert (provenance["batch_norm"], provenance["criterion"]) == ("interpolate", "cross_entropy")
    assert provenance["backend"] in ("native", "reference")
    assert provenance["backend_asked_for"] == "auto"
    assert all(re.fullmatch(r"\w+:(reference|native)", kernel) for kernel in provenance["kernels"])
    assert provenance["kernels"]
    assert provenance["seconds"] > 0
    assert (provenance["examples"], provenance["batches"], provenance["points"]) == (13, 3, len(POINTS))
    assert result.count == 13


def test_what_was_kept_or_widened_is_in_the_provenance(engine: str) -> None:
    c = case("integer-buffer")
    half = {key: value.half() if key == "last.weight" else value for key, value in c.theta_0.items()}
    result = c.sweep(3, theta_0=half)
    told = json.dumps(result.provenance)
    assert "order" in told
    assert "last.weight" in told
    assert "float16" in told


def test_duplicate_rows_of_data_count_twice(engine: str) -> None:
    c = case("mlp")
    once, twice = c.sweep(3, precision="fp64"), c.sweep(3, precision="fp64", loader=c.batches * 2)
    assert twice.count == 26
    np.testing.assert_allclose(once.loss, twice.loss, rtol=1e-13)
    assert (twice["loss_stderr"] < once["loss_stderr"]).all()


def test_cut_gives_batches_of_uneven_length() -> None:
    """The generator of these tests itself: without a short last batch some of them would prove nothing."""
    assert [len(column[0]) for column in cut(torch.arange(13))] == [5, 5, 3]


class Masked(nn.Module):
    """A linear layer of which a buffer leaves out some inputs."""

    def __init__(self, mask: list[bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor(mask))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.mask)


def test_what_is_not_blended_is_an_ends_own_there(engine: str) -> None:
    ends = [Masked([True, True, False, False]), Masked([False, True, True, True])]
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    with pytest.warns(UserWarning, match="not floating-point .* 'mask'"):
        result = mli_fast.sweep(ends[1], *ends, [(x, y)], [0.0, 0.25, 1.0], progress=False)
    middle = Masked([False, True, True, True])
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), ends[0].parameters(), ends[1].parameters(), strict=True):
            p.copy_(torch.lerp(a, b, 0.25))
    plain = [F.cross_entropy(model(x), y).item() for model in (ends[0], middle, ends[1])]
    np.testing.assert_allclose(result.loss, plain, rtol=1e-6)
    assert list(result.provenance["kept"]) == ["mask"]


def test_steps_are_from_the_alpha_before_whatever_the_order() -> None:
    c, alphas = case("mlp"), [0.7, 0.0, 1.0, 0.4]
    ascending, given = c.sweep(sorted(alphas)), c.sweep(alphas)
    order = np.argsort(alphas)
    for name in ("loss_step", "loss_step_stderr"):
        np.testing.assert_array_equal(np.asarray(given[name])[order], ascending[name])
    assert np.isnan(given["loss_step"][1])
