"""dL/dalpha by forward-mode differentiation: against torch.func.jvp on the plain loop, and against differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from mli_fast import schedules
from mli_fast.engine import forced
from mli_fast.paths import Path
from tests import science_reference as reference
from tests.cases import Case, assert_same_points, case, under_both
from tests.models import ARCHITECTURES, Noisy, endpoints_of
from tests.plain_points import anchors_of, bend, spoilt, three
from tests.reference import standard_error
from tests.test_evaluate import PATHS, Writes, evaluate
from tests.test_left_alone import assert_unchanged, lived_in, snapshot
from tests.test_sweep_arguments import CRITERIA

ALPHAS = [-0.1, 0.0, 0.3, 1.0]
STEP = 1e-6  # seldom reaches over a kink of a ReLU
WITHOUT = {"weight-norm": "_weight_norm", "embedding-bag": "_embedding_bag"}  # no forward-mode derivative in PyTorch
UNLIKE = ("multihead-attention", "transformer-encoder")  # on the plain loop their fused forms have none either
ALIKE = ("mlp-no-bias", "mlp-batch-norm", "batch-norm-2d-first", "conv1d", "frozen-part", "two-inputs", "resnet")
NAMES = [name for name in ARCHITECTURES if name not in ("item", "norms", *UNLIKE, *WITHOUT, *ALIKE)]


def sloped(c: Case, alphas: Any = ALPHAS, **options: Any) -> np.ndarray:
    """The slopes in fp64 at every alpha, [A]."""
    return c.sweep(alphas, **{"precision": "fp64", "metrics": ("loss_slope",)} | options)["loss_slope"]


def exact(c: Case, alphas: Any = ALPHAS) -> np.ndarray:
    """The reference along the line."""
    velocities = [reference.difference(c.theta_0, c.theta_T)] * len(alphas)
    states = reference.line(c.theta_0, c.theta_T, alphas)
    return reference.loss_slopes(c.model, states, velocities, c.batches, c.criterion)


def in_double(name: str) -> float:
    """The relative tolerance; Llama's norms and complex parameters keep their precision whatever goes in."""
    return 1e-6 if name in ("llama", "causal_lm-dicts", "complex-parameter") else 1e-9


def differences(loss: Callable[[list[float]], np.ndarray], alphas: Any) -> np.ndarray:
    """Central differences of the fourth order of a curve [A] in fp64."""
    weights = ((-2, 1), (-1, -8), (1, 8), (2, -1))
    return sum(w * loss([a + k * STEP for a in alphas]) for k, w in weights) / (12 * STEP)  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------------- equal to the reference


@pytest.mark.parametrize("name", NAMES)
def test_slopes_equal_forward_mode_on_the_plain_loop(name: str) -> None:
    c, alphas = case(name), [-0.1, 0.3]
    np.testing.assert_allclose(sloped(c, alphas), exact(c, alphas), rtol=in_double(name), atol=1e-12)


@under_both("mlp", "cnn-bn", "gpt2", "segmentation", "lstm", *UNLIKE)
def test_slopes_equal_differences_under_both_engines(name: str, under: str) -> None:
    c = case(name)
    with forced(under):
        found = c.sweep(ALPHAS, precision="fp64", metrics=("loss_slope",))
        assert found["loss_slope"].shape == (4,)
        of_loss = differences(lambda alphas: c.sweep(alphas, precision="fp64", metrics=()).loss, ALPHAS[2:3])
    np.testing.assert_allclose(found["loss_slope"][2:3], of_loss, rtol=1e-6)


@pytest.mark.parametrize("kind", CRITERIA)
def test_slopes_of_every_criterion(kind: str) -> None:
    c = CRITERIA[kind]()
    np.testing.assert_allclose(sloped(c), exact(c), rtol=in_double(kind), atol=1e-12)


def test_slopes_of_a_callable_criterion(engine: str) -> None:
    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.softmax(1) - F.one_hot(targets, 4)).square().sum(1)

    c = case("cnn-bn")
    c = Case(c.model, c.theta_0, c.theta_T, c.batches, squared, ())  # type: ignore[arg-type]
    np.testing.assert_allclose(sloped(c), exact(c), rtol=1e-9)


def test_the_slope_by_hand(engine: str) -> None:
    """Goodfellow's (1 - w1 w2)^2 from (0, 0) to (1, 1): (1 - a^2)^2, of slope -4 a (1 - a^2)."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.first * self.second

    ends = [{"first": torch.tensor([v]), "second": torch.tensor([v])} for v in (0.0, 1.0)]
    alphas = np.linspace(-0.5, 1.5, 9)
    result = Case(Product(), *ends, [(torch.ones(3, 1), torch.ones(3, 1))], "mse", ("loss_slope",)).sweep(
        alphas, precision="fp64"
    )
    np.testing.assert_allclose(result.loss, (1 - alphas**2) ** 2, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result["loss_slope"], -4 * alphas * (1 - alphas**2), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result["loss_slope_stderr"], 0, atol=1e-15)


@pytest.mark.parametrize("name", ["mlp", "segmentation"])
def test_the_error_of_a_slope_is_that_of_a_mean_over_examples(name: str) -> None:
    c = case(name)
    each, weights = [], []
    for inputs, targets in c.batches:
        for x, y in zip(inputs.split(1), targets.split(1), strict=True):
            one = Case(c.model, c.theta_0, c.theta_T, [(x, y)], c.criterion, ())
            each.append(exact(one, [0.4])[0])
            weights.append(float((y != -100).sum()))
    result = c.sweep([0.4], precision="fp64", metrics=("loss_slope",))
    assert result["loss_slope"][0] == pytest.approx(np.average(each, weights=weights), rel=1e-9)
    expected = standard_error(np.array([each]), np.array(weights))[0]
    assert result["loss_slope_stderr"][0] == pytest.approx(expected, rel=1e-8)


def test_recurrent_networks_slope_in_fp32_too() -> None:
    """oneDNN's recurrent layer has no forward-mode derivative, PyTorch's own has."""
    for name in ("lstm", "gru"):
        c = case(name)
        np.testing.assert_allclose(sloped(c, precision=None), exact(c), rtol=1e-4)


def test_alphas_in_any_order(engine: str) -> None:
    c = case("cnn-bn")
    shuffled = [0.3, 1.0, -0.1, 0.3, 0.0]
    found = sloped(c, shuffled)
    assert found.tobytes() == sloped(c, ALPHAS)[[2, 3, 0, 2, 1]].tobytes()


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_slopes_in_the_precision_of_the_sweep(engine: str, precision: str | None) -> None:
    """fp32: as far from fp64 as PyTorch's own forward mode in fp32, about; bf16 to its three digits."""
    for name in ("mlp", "cnn-bn"):
        c = case(name)
        error = np.abs(sloped(c, precision=precision) - exact(c)).max() / np.abs(exact(c)).max()
        assert error < (2e-6 if precision is None else 0.1), name


# ------------------------------------------------------------------------------------------------- curves and schedules


@pytest.mark.parametrize("kind", ["bezier", "bezier-cubic", "polyline", "task-vectors", "directions-1"])
def test_slopes_along_curves(kind: str) -> None:
    c, path = case("cnn-bn"), PATHS[kind][0]("cnn-bn")
    alphas = [0.1, 0.4, 0.7]
    velocities = [velocity(path, row) for row in path.derivatives(alphas).tolist()]
    states = [reference.combine(anchors_of(path), row) for row in path.coefficients(alphas).tolist()]
    expected = reference.loss_slopes(c.model, states, velocities, c.batches)
    found = evaluate(c, path, alphas, precision="fp64", metrics=("loss_slope",))
    np.testing.assert_allclose(found["loss_slope"], expected, rtol=1e-9)
    loss = differences(lambda a: evaluate(c, path, a, precision="fp64", metrics=()).loss, alphas)
    np.testing.assert_allclose(found["loss_slope"], loss, rtol=1e-6)


def velocity(path: Path, row: list[float]) -> dict[str, Tensor]:
    """`sum_r c'_r anchor_r` of what moves."""
    anchors = anchors_of(path)
    moving = [key for key, value in anchors[0].items() if value.is_floating_point()]
    weighted = [{key: c * anchor[key].double() for key in moving} for c, anchor in zip(row, anchors, strict=True)]
    return {key: torch.stack([one[key] for one in weighted]).sum(0) for key in moving}


def half_way(alphas: np.ndarray) -> np.ndarray:
    """A schedule with a derivative of its own."""
    return np.sin(alphas)


half_way.derivative = np.cos  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param({"weight": schedules.power(2)}, id="power"),
        pytest.param({"bias": schedules.power(0.5), "weight": "linear"}, id="root"),
        pytest.param({"bias": "homogeneous"}, id="homogeneous"),
        pytest.param({"0": "start", "last_bias": "end"}, id="frozen"),
        pytest.param({"*": half_way}, id="function"),
    ],
)
@pytest.mark.parametrize("kind", ["line", "bezier"])
def test_slopes_with_schedules_follow_the_chain_rule(schedule: Mapping[str, Any], kind: str, engine: str) -> None:
    c, path, alphas = case("mlp"), PATHS[kind][0]("mlp"), [0.2, 0.7]
    options = {"precision": "fp64", "schedule": schedule}
    found = evaluate(c, path, alphas, metrics=("loss_slope",), **options)["loss_slope"]
    expected = differences(lambda a: evaluate(c, path, a, metrics=(), **options).loss, alphas)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_where_all_is_frozen_nothing_slopes(engine: str) -> None:
    assert (sloped(case("cnn-bn"), schedule={"*": "start"}) == 0).all()


def test_slopes_of_every_group_and_of_every_line(engine: str) -> None:
    c, alphas = case("cnn-bn"), [0.2, 0.7]
    options = {"progress": False, "precision": "fp64"}

    def groups(a: Any, metrics: Any = ()) -> mli_fast.SweepResult:
        return mli_fast.layerwise(
            c.model, c.theta_0, c.theta_T, c.batches, a, groups="kind", metrics=metrics, **options
        )

    expected = differences(lambda a: groups(a).loss, alphas)
    np.testing.assert_allclose(groups(alphas, ("loss_slope",))["loss_slope"], expected, rtol=1e-6)
    lines = {"there": (c.theta_0, c.theta_T), "bent": mli_fast.Bezier(*three("cnn-bn"))}
    many = mli_fast.sweep_many(c.model, lines, c.batches, alphas, metrics=("loss_slope",), **options)
    assert many["loss_slope"][0].tobytes() == sloped(c, alphas).tobytes()
    bent = evaluate(c, lines["bent"], alphas, metrics=("loss_slope",), precision="fp64")["loss_slope"]  # type: ignore[arg-type]
    assert many["loss_slope"][1].tobytes() == bent.tobytes()


# ----------------------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("policy", ["interpolate", "start", "end", "batch"])
@under_both("cnn-bn", "mlp-batch-norm")
def test_slopes_under_every_policy_that_has_them(name: str, under: str, policy: str) -> None:
    """Interpolated statistics move with alpha, and so do those of the batch."""
    c, alphas = case(name), [0.3, 0.8]
    options = {"precision": "fp64", "batch_norm": policy}
    with forced(under):
        found = c.sweep(alphas, metrics=("loss_slope",), **options)["loss_slope"]
        expected = differences(lambda a: c.sweep(a, metrics=(), **options).loss, alphas)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("policy", ["recalibrate", "recalibrate-ema", "update-bn"])
@pytest.mark.parametrize("metric", ["loss_slope", "gauss_length_jvp"])
def test_calibrated_statistics_have_no_slope(policy: str, metric: str) -> None:
    c = case("cnn-bn")
    with pytest.raises(ValueError, match=f"{policy}.*interpolate"):
        c.sweep(3, metrics=(metric,), batch_norm=policy, calibration=c.batches)


def test_a_norm_of_statistics_without_affine_slopes_too(engine: str) -> None:
    """Norms of the input itself: nothing but the statistics moves there."""
    c = case("batch-norm-first")
    expected = differences(lambda a: c.sweep(a, precision="fp64", metrics=()).loss, [0.3, 0.8])
    np.testing.assert_allclose(sloped(c, [0.3, 0.8]), expected, rtol=1e-6)


def test_running_statistics_of_instance_norm_move_as_well() -> None:
    """GroupNorm, LayerNorm, RMSNorm and InstanceNorm, one with running statistics."""
    c = case("norms")
    expected = differences(lambda a: c.sweep(a, precision="fp64", metrics=()).loss, [0.3, 0.8])
    np.testing.assert_allclose(sloped(c, [0.3, 0.8]), expected, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- outputs


@under_both("mlp", "cnn-bn", "vit-plain")
def test_the_gauss_length_of_tangents_is_the_limit_of_that_of_chords(name: str, under: str) -> None:
    """The same sum of angles, taken of tangents that are differences of outputs."""
    c, alphas = case(name), np.array([0.8, 0.0, 0.4, 1.0, 0.2])
    with forced(under):
        found = float(c.sweep(alphas, precision="fp64", metrics=("gauss_length_jvp",))["gauss_length_jvp"])
    ordered, inputs = np.sort(alphas), torch.cat([x for x, _ in c.batches])
    tangents = differences(
        lambda a: reference.logit_path(c.model, reference.line(c.theta_0, c.theta_T, a), inputs), ordered
    )
    unit = tangents / np.linalg.norm(tangents, axis=2, keepdims=True)
    angles = np.arccos(np.clip((unit[1:] * unit[:-1]).sum(2), -1, 1))
    assert found == pytest.approx(angles.sum(0).mean(), rel=1e-6)


def test_it_approaches_what_chords_see() -> None:
    c = case("regression-mse")  # a tanh: no kinks, which tangents do not see
    result = c.sweep(100, precision="fp64", metrics=("gauss_length", "gauss_length_jvp"))
    assert float(result["gauss_length"]) == pytest.approx(float(result["gauss_length_jvp"]), rel=0.02)


# ------------------------------------------------------------------------------------------------------------ contracts


@under_both("mlp", "cnn-bn")
def test_a_slope_stands_alone_and_leaves_the_sweep_as_it_is(name: str, under: str) -> None:
    c = case(name)
    metrics = (*c.metrics, "loss_slope")
    with forced(under):
        whole = c.sweep(ALPHAS, metrics=metrics)
        assert_same_points(whole, c.sweep(ALPHAS), range(4))
        for at in ([2], [3, 0, 2, 2]):
            part = c.sweep([ALPHAS[i] for i in at], metrics=metrics)
            assert_same_points(part, whole, at)
            for variable in ("loss_slope", "loss_slope_stderr"):
                assert part[variable].tobytes() == whole[variable][at].tobytes()
        assert c.sweep(ALPHAS, metrics=metrics, chunk=1)["loss_slope"].tobytes() == whole["loss_slope"].tobytes()


def test_noise_is_that_of_the_loss_at_every_point(engine: str) -> None:
    model = Noisy()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches, metrics=("loss_slope",))
    whole, alone = c.sweep(ALPHAS, precision="fp64"), c.sweep([0.3], precision="fp64")
    assert_same_points(alone, whole, [2])
    assert alone["loss_slope"][0] == whole["loss_slope"][2]
    assert_same_points(c.sweep(ALPHAS, precision="fp64", metrics=()), whole, range(4))
    expected = differences(lambda a: c.sweep(a, precision="fp64", metrics=()).loss, [0.3])
    assert whole["loss_slope"][2] == pytest.approx(expected[0], rel=1e-6)


def test_nan_is_nan(engine: str) -> None:
    """A slope at an end looks towards the other."""
    c = case("mlp")
    with pytest.warns(mli_fast.evaluation.NonFiniteWarning):
        result = c.sweep([0.0, 0.5, 1.0], theta_T=spoilt(c.theta_T), metrics=("loss_slope",))
    assert np.isnan(result["loss_slope"]).all()
    assert np.isnan(result.loss).tolist() == [False, True, True]


@pytest.mark.parametrize("name", ["cnn-bn", "writes-into-its-input", "gpt2", "dropout-eval"])
def test_the_callers_things_are_as_they_were(engine: str, name: str) -> None:
    c = lived_in(name)
    before = snapshot(c)
    c.sweep(3, metrics=("loss_slope",))
    assert_unchanged(before, snapshot(c))


def test_dropout_is_off(engine: str) -> None:
    c = case("dropout-eval")
    c.model.train()
    np.testing.assert_allclose(sloped(c), exact(c), rtol=1e-9)


def test_a_model_that_writes_into_its_input_and_buffers_has_slopes() -> None:
    model = Writes()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches, metrics=())
    for writes in (c, case("writes-into-its-input")):
        options = {"precision": "fp64", "state": "per-batch"}
        expected = differences(lambda a, w=writes: w.sweep(a, **options, metrics=()).loss, [0.3])  # noqa: B023
        np.testing.assert_allclose(sloped(writes, [0.3], **options), expected, rtol=1e-6)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_forward_mode_says_so(engine: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)slope.*forward-mode.*{WITHOUT[name]}") as caught:
        case(name).sweep(3, metrics=("loss_slope",))
    assert any("batch 0" in note and "alpha 0" in note for note in caught.value.__notes__)


def in_inference_mode(model: nn.Module, h: Tensor) -> Tensor:
    with torch.inference_mode():
        h = torch.tanh(h)
    return model[1](h)


@pytest.mark.parametrize(
    ("form", "told"),
    [(lambda model, h: copy.deepcopy(model[1])(h), "forward-mode derivatives"), (in_inference_mode, "inference mode")],
)
def test_what_a_transform_cannot_be_put_through_says_so(form: Any, told: str) -> None:
    a, b = (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)) for _ in range(2))
    data = [(torch.randn(5, 4), torch.arange(5) % 3)]
    with pytest.raises(ValueError, match=f"slopes along the path.*{told}"):
        mli_fast.sweep(
            a, a, b, data, 3, forward=lambda m, d: (form(m, m[0](d[0])), d[1]), metrics=("loss_slope",), progress=False
        )


def test_a_number_taken_from_an_activation_is_refused() -> None:
    """Its derivative would be left out without a word."""
    c = case("item")
    right = differences(lambda a: c.sweep(a, precision="fp64", metrics=()).loss, [0.3])
    try:
        found = sloped(c, [0.3])
    except ValueError as error:
        assert "slope" in str(error)  # noqa: PT017 - either is right: a refusal, or the derivative
    else:
        np.testing.assert_allclose(found, right, rtol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda net, h: h / h.detach().abs().max(),
        lambda net, h: h @ net[1].weight.data.t()[:, :3],
        lambda net, h: torch.detach(h) * h,
        lambda net, h: h * torch.tensor([h[0, 0], h[1, 1], h[2, 2]]),
        lambda net, h: h * torch.tensor(data=h[0, 0]),
        lambda net, h: h * torch.as_tensor([h[0, 0]]),
        lambda net, h: h * h.new_tensor([h[0, 0]]),
    ],
)
def test_a_detached_value_is_refused(form: Any) -> None:
    """Its derivative would be left out without a word."""

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model[1](form(model, model[0](batch[0]))), batch[1]

    a, b = (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)) for _ in range(2))
    with pytest.raises(ValueError, match=r"slopes along the path: the model takes a (detached value|number)"):
        mli_fast.sweep(a, a, b, [(torch.randn(5, 4), torch.arange(5) % 3)], 3, forward=forward, metrics=("loss_slope",))


def test_outputs_that_are_no_one_tensor_slope_as_well(engine: str) -> None:
    """The criterion knows what they are."""
    c = case("mlp")

    def pair(model: nn.Module, batch: Any) -> tuple[Any, Tensor]:
        outputs = model(batch[0])
        return (outputs, 2 * outputs), batch[1]

    def of_pair(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0] + outputs[1], targets, reduction="none")

    def of_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(3 * outputs, targets, reduction="none")

    found = sloped(c, forward=pair, criterion=of_pair)
    np.testing.assert_allclose(found, sloped(c, criterion=of_one), rtol=1e-12)
    with pytest.raises(ValueError, match=r"one tensor.*tuple"):
        c.sweep(3, forward=pair, criterion=of_pair, metrics=("gauss_length_jvp",))


def test_outputs_may_hold_a_number_beside_the_examples(engine: str) -> None:
    """A loss of its own that the model gives along, say."""
    c = case("mlp")

    def with_penalty(model: nn.Module, batch: Any) -> tuple[Any, Tensor]:
        outputs = model(batch[0])
        return (outputs, outputs.square().mean()), batch[1]

    def penalised(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], targets, reduction="none") + outputs[1]

    options = {"forward": with_penalty, "criterion": penalised, "precision": "fp64"}
    found = c.sweep([0.3], metrics=("loss_slope",), **options)["loss_slope"]
    expected = differences(lambda a: c.sweep(a, metrics=(), **options).loss, [0.3])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_without_a_derivative_is_named() -> None:
    with pytest.raises(ValueError, match=r"bias.*derivative"):
        case("mlp").sweep(3, metrics=("loss_slope",), schedule={"bias": lambda alphas: alphas**2})


def test_a_schedule_of_infinite_slope_is_named_with_its_alpha() -> None:
    with pytest.raises(ValueError, match=r"power\(0\.5\).*inf.*alpha=0"):
        case("mlp").sweep(3, metrics=("loss_slope",), schedule={"bias": schedules.power(0.5)})


def test_an_error_of_the_models_own_stays_what_it_is(engine: str) -> None:
    """A RuntimeError that mentions "forward" is not one of forward-mode differentiation."""

    class Picky(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.weight.requires_grad or torch.autograd.forward_ad._current_level >= 0:
                raise RuntimeError("the forward pass is not meant for this")
            return super().forward(x)

    model = Picky(6, 4)
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    with pytest.raises(RuntimeError, match="not meant for this"):
        c.sweep(3, metrics=("loss_slope",))


def test_bends_are_of_the_path() -> None:
    """The cases above can tell a Bezier curve's slopes from the line's."""
    c = case("mlp")
    path = mli_fast.Bezier(c.theta_0, bend("mlp"), c.theta_T)
    bent = evaluate(c, path, [0.3], precision="fp64", metrics=("loss_slope",))["loss_slope"]
    assert not math.isclose(bent[0], sloped(c, [0.3])[0], rel_tol=0.01)
