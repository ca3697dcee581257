"""Functionals of a line, taken batch by batch: curves known by hand, and NumPy on the plain loop's outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from mli_fast import measures
from mli_fast.engine import forced
from tests import science_reference as reference
from tests.cases import Case, assert_same_points, case, under_both
from tests.models import endpoints_of
from tests.plain_points import anchors_of, bend, spoilt
from tests.reference import assert_as_exact_as_torch, call, cast, score, standard_error, to_dtype
from tests.test_contracts import Counting
from tests.test_evaluate import evaluate
from tests.test_left_alone import assert_unchanged, lived_in, snapshot

OF_LINE = ("gauss_length", "path_length", "monotone_examples")
PER_ALPHA = ("flips", "agreement", "cka")
ALL = (*OF_LINE, *PER_ALPHA)
UNSORTED = [0.5, 0.0, 1.0, 0.2, -0.1, 0.2, 1.2, 0.7]  # with a duplicate


# ----------------------------------------------------------------------------------------------------------- by hand


class Traces(nn.Module):
    """Outputs that are a function of its one parameter and of each example's number."""

    def __init__(self, curve: Any) -> None:
        super().__init__()
        self.alpha, self.curve = nn.Parameter(torch.zeros(())), curve

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.curve(self.alpha * x[:, 0]), 1)


def traced(curve: Any, speeds: Sequence[float] = (1.0,) * 6, sizes: Sequence[int] = (4, 1, 1)) -> Case:
    """The parameter moves from 0 to 1; example i is at alpha times its speed."""
    x = torch.tensor(speeds)[:, None]
    batches = list(zip(x.split(list(sizes)), (torch.arange(len(x)) % 2).split(list(sizes)), strict=True))
    return Case(Traces(curve), {"alpha": torch.tensor(0.0)}, {"alpha": torch.tensor(1.0)}, batches)


def arc(t: Tensor) -> list[Tensor]:
    """Half a circle."""
    return [torch.cos(math.pi * t), torch.sin(math.pi * t)]


@pytest.mark.parametrize("chords", [2, 3, 10, 100])
def test_an_arc_of_angle_pi(engine: str, chords: int) -> None:
    result = traced(arc).sweep(
        chords + 1, precision="fp64", metrics=("gauss_length", "gauss_length_jvp", "path_length")
    )
    assert float(result["gauss_length"]) == pytest.approx(math.pi * (1 - 1 / chords), rel=1e-12)
    assert float(result["gauss_length_jvp"]) == pytest.approx(math.pi, rel=1e-12)
    assert float(result["path_length"]) == pytest.approx(2 * chords * math.sin(math.pi / 2 / chords), rel=1e-12)
    for name in ("gauss_length", "gauss_length_jvp", "path_length"):
        assert float(result[f"{name}_stderr"]) == pytest.approx(0, abs=1e-12)


def test_arcs_of_several_angles_have_their_mean_and_its_error(engine: str) -> None:
    speeds = (0.25, 0.5, 1.0, 2.0, -1.0)
    c = traced(arc, speeds, (2, 3))
    result = c.sweep(41, precision="fp64", metrics=("gauss_length_jvp", "path_length"))
    angles = math.pi * np.abs(speeds)
    lengths = 80 * np.sin(angles / 80)
    assert float(result["gauss_length_jvp"]) == pytest.approx(angles.mean(), rel=1e-12)
    assert float(result["gauss_length_jvp_stderr"]) == pytest.approx(standard_error(angles[None])[0], rel=1e-12)
    assert float(result["path_length"]) == pytest.approx(lengths.mean(), rel=1e-12)
    assert float(result["path_length_stderr"]) == pytest.approx(standard_error(lengths[None])[0], rel=1e-12)
    assert result.dataset["path_length"].dims == ()


def test_a_straight_path_turns_nowhere_and_a_reversal_by_pi(engine: str) -> None:
    straight = traced(lambda t: [t, -2 * t]).sweep(
        9, precision="fp64", metrics=("gauss_length", "gauss_length_jvp", "path_length")
    )
    assert float(straight["gauss_length"]) == pytest.approx(0, abs=1e-12)
    assert float(straight["gauss_length_jvp"]) == pytest.approx(0, abs=1e-12)
    assert float(straight["path_length"]) == pytest.approx(math.sqrt(5), rel=1e-12)
    back = traced(lambda t: [(t - 0.5).abs(), 0 * t]).sweep(
        5, precision="fp64", metrics=("gauss_length", "path_length")
    )
    assert float(back["gauss_length"]) == pytest.approx(math.pi, rel=1e-12)
    assert float(back["path_length"]) == pytest.approx(1.0, rel=1e-12)


def test_where_nothing_moves_there_is_no_direction(engine: str) -> None:
    """It stands still on [0.25, 0.75] between two legs at right angles."""

    def corner(t: Tensor) -> list[Tensor]:
        return [t.clamp(max=0.25), t.clamp(min=0.75)]

    found = traced(corner).sweep(9, precision="fp64", metrics=("gauss_length", "gauss_length_jvp", "path_length"))
    assert float(found["gauss_length"]) == pytest.approx(math.pi / 2, rel=1e-12)
    assert float(found["path_length"]) == pytest.approx(0.5, rel=1e-12)
    still = traced(lambda t: [0 * t + 1, 0 * t]).sweep(4, metrics=ALL)
    assert [float(still[name]) for name in OF_LINE] == [0.0, 0.0, 1.0]


def test_small_angles_keep_their_digits(engine: str) -> None:
    """Of 1e-7 and less per step in fp64, where an arc cosine knows nothing."""
    c = traced(lambda t: [torch.cos(1e-5 * t), torch.sin(1e-5 * t)])
    result = c.sweep(101, precision="fp64", metrics=("gauss_length_jvp",))
    assert float(result["gauss_length_jvp"]) == pytest.approx(1e-5, rel=1e-6)


def test_examples_that_are_monotone_are_counted_on_the_unit_interval(engine: str) -> None:
    """Losses |alpha - turn| rise behind the turn; what lies outside [0, 1] is not seen."""
    turns = torch.tensor([1.0, 0.5, 1.5, 0.0, 1.0, 0.9])
    c = traced(lambda t: [t, t])

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - turns[targets]).abs()

    batches = [(torch.ones(n, 1), y) for n, y in zip((4, 2), torch.arange(6).split([4, 2]), strict=True)]
    result = c.sweep(
        [1.5, 0.0, 0.25, 0.5, 0.75, 1.0, -1.0], loader=batches, criterion=criterion, metrics=("monotone_examples",)
    )
    monotone = np.array([1, 0, 1, 0, 1, 1])  # the last is 0.15 at 0.75 and 0.1 at 1: no point shows it rise
    assert float(result["monotone_examples"]) == monotone.mean()
    assert float(result["monotone_examples_stderr"]) == pytest.approx(standard_error(monotone[None].astype(float))[0])


@pytest.mark.parametrize("offset", [0.0, -100.0, 100.0], ids=["zero", "below", "above"])
def test_a_falling_loss_is_monotone_wherever_it_lies(engine: str, offset: float) -> None:
    """A log-density may be positive, and its loss below zero."""

    def falls(outputs: Tensor, targets: Tensor) -> Tensor:
        return offset - outputs[:, 0]

    def rises(outputs: Tensor, targets: Tensor) -> Tensor:
        return offset + outputs[:, 0]

    c = traced(lambda t: [t, t])
    for criterion, share in ((falls, 1.0), (rises, 0.0)):
        found = c.sweep(5, criterion=criterion, metrics=("monotone_examples",))
        assert float(found["monotone_examples"]) == share


def test_a_rise_of_rounding_is_none(engine: str) -> None:
    """A constant loss that float32 does not hold still."""

    def wobbles(outputs: Tensor, targets: Tensor) -> Tensor:
        return 3.0 + 1e-7 * torch.cos(40 * outputs[:, 0])

    c = traced(lambda t: [t, t])
    assert float(c.sweep(30, criterion=wobbles, metrics=("monotone_examples",))["monotone_examples"]) == 1.0


def test_flips_and_agreement_by_hand(engine: str) -> None:
    """Example i is of class 1 from alpha = 1 / speed on."""
    c = traced(lambda t: [0 * t + 1, t], (1 / 0.3, 1 / 0.6, 1 / 2.0), (2, 1))
    result = c.sweep([0.7, 0.0, 0.4, 1.0, 0.5], metrics=("flips", "agreement"))
    np.testing.assert_allclose(result["flips"], [1 / 3, np.nan, 1 / 3, 0, 0])
    np.testing.assert_allclose(result["agreement"], [1, 1 / 3, 2 / 3, 1, 2 / 3])
    flipped = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=float)
    np.testing.assert_allclose(
        result["flips_stderr"], [*standard_error(flipped[:1]), np.nan, *standard_error(flipped[1:])]
    )


# ------------------------------------------------------------------------------------------ NumPy on the plain outputs


def seen(c: Case, states: Any, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """What the plain loop sees at each state: outputs [P, N, D], losses, predictions and what counts, per term."""
    network, rows = cast(copy.deepcopy(c.model).eval(), dtype), []
    for state in states:
        network.load_state_dict(state)
        columns: list[list[Tensor]] = [[], [], [], []]
        for batch in c.batches:
            with torch.no_grad():
                outputs, targets = call(network, to_dtype(batch, dtype))
            losses, weights, _, _ = score(c.criterion, outputs, targets)
            if c.criterion == "causal_lm":
                predicted, counts = outputs[:, :-1].argmax(-1), targets[:, 1:] != -100
            else:
                predicted, counts = outputs.argmax(1), targets != -100
            found = (outputs.flatten(1), (losses * weights)[:, None], predicted, counts)
            for column, value in zip(columns, found, strict=True):
                column.append(value.reshape(len(outputs), -1))
        rows.append([torch.cat(column).double().numpy() for column in columns])
    outputs, losses, predictions, counts = (np.stack(column) for column in zip(*rows, strict=True))
    return {"outputs": outputs, "losses": losses[..., 0], "predictions": predictions, "counts": counts[0] > 0}


def functionals_of(z: dict[str, np.ndarray], alphas: Sequence[float]) -> dict[str, np.ndarray]:
    """Every functional of what the plain loop saw at ascending alphas."""
    inside = (np.array(alphas) >= 0) & (np.array(alphas) <= 1)
    losses, outputs, counts = z["losses"][inside], z["outputs"], z["counts"]
    rise = (losses - np.minimum.accumulate(losses, axis=0)).max(0)
    weights = counts.sum(1)

    def share(hits: np.ndarray) -> float:
        return hits[counts].mean()

    def spread(hits: np.ndarray) -> float:
        return standard_error(np.where(counts, hits, 0).sum(1)[None] / np.maximum(weights, 1), weights)[0]

    turned = measures.gauss_lengths(outputs) if hasattr(measures, "gauss_lengths") else None
    flips = [p != q for p, q in zip(z["predictions"][1:], z["predictions"], strict=False)]
    agreement = [p == z["predictions"][-1] for p in z["predictions"]]
    found = {
        "gauss_length": np.array(measures.gauss_length(outputs)),
        "path_length": np.array(measures.path_length(outputs)),
        "monotone_examples": np.mean(rise <= 1e-6 * losses.max(0)),
        "monotone_examples_stderr": standard_error((rise <= 1e-6 * losses.max(0))[None].astype(float))[0],
        "flips": np.array([np.nan, *map(share, flips)]),
        "flips_stderr": np.array([np.nan, *map(spread, flips)]),
        "agreement": np.array([*map(share, agreement)]),
        "agreement_stderr": np.array([*map(spread, agreement)]),
        "cka": np.array([measures.cka(x, outputs[-1]) for x in outputs]),
    }
    if turned is not None:
        found["gauss_length_stderr"] = standard_error(turned[None])[0]
    return found


FUNCTIONAL_CASES = ("mlp", "cnn-bn", "segmentation", "vit-plain", "gpt2", "bert", "two-named-inputs", "lstm", "item")


@under_both(*FUNCTIONAL_CASES)
def test_functionals_equal_numpy_on_the_plain_outputs(name: str, under: str) -> None:
    """Alphas out of order, one of them twice, two outside the unit interval; ragged batches, ignored targets."""
    c = case(name)
    with forced(under):
        result = c.sweep(UNSORTED, precision="fp64", metrics=("accuracy", *ALL))
    order = np.argsort(UNSORTED, kind="stable")
    alphas = np.array(UNSORTED)[order]
    expected = functionals_of(seen(c, reference.line(c.theta_0, c.theta_T, alphas)), alphas)
    for variable, value in expected.items():
        ours = np.asarray(result[variable])
        ours = ours[order] if ours.ndim else ours
        np.testing.assert_allclose(ours, value, rtol=1e-9, atol=1e-13, err_msg=variable)
    assert result.accuracy.shape == (8,)


@under_both("mlp", "cnn-bn", "vit-plain")
def test_functionals_of_curves_and_of_many_lines(name: str, under: str) -> None:
    c, alphas = case(name), [0.0, 0.3, 0.6, 1.0]
    bent = mli_fast.Bezier(c.theta_0, bend(name), c.theta_T)
    options = {"precision": "fp64", "metrics": ALL, "progress": False}
    with forced(under):
        curve = evaluate(c, bent, alphas, **options)
        many = mli_fast.sweep_many(c.model, {"a": bent, "b": (c.theta_T, c.theta_0)}, c.batches, alphas, **options)
    states = [reference.combine(anchors_of(bent), row) for row in bent.coefficients(alphas).tolist()]
    for result, points in (
        (curve, states),
        (many.select(run="a"), states),
        (many.select(run="b"), reference.line(c.theta_T, c.theta_0, alphas)),
    ):
        for variable, value in functionals_of(seen(c, points), alphas).items():
            np.testing.assert_allclose(result[variable], value, rtol=1e-9, atol=1e-13, err_msg=variable)
    assert many.dataset["gauss_length"].dims == ("run",)
    assert many.dataset["flips"].dims == ("run", "alpha")
    assert many.table()["gauss_length"].tolist() == many["gauss_length"].tolist()


@under_both("mlp", "cnn-bn", "vit-plain")
def test_functionals_are_as_exact_as_torch_in_fp32(name: str, under: str) -> None:
    c, alphas = case(name), np.linspace(0, 1, 6)
    with forced(under):
        result = c.sweep(alphas, metrics=ALL)
    exact = functionals_of(seen(c, reference.line(c.theta_0, c.theta_T, alphas)), alphas)
    single = functionals_of(seen(c, reference.line(c.theta_0, c.theta_T, alphas), torch.float32), alphas)
    for variable in ("gauss_length", "path_length", "cka"):
        ours = np.atleast_1d(result[variable])
        assert_as_exact_as_torch(ours, np.atleast_1d(exact[variable]), np.atleast_1d(single[variable]))
    np.testing.assert_array_equal(result["flips"], exact["flips"])


@settings(max_examples=12)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_the_order_of_the_alphas_does_not_matter(alphas: list[float], random: Any) -> None:
    c, shuffled = case("mlp"), random.sample(alphas, len(alphas))
    one, other = (c.sweep(a, metrics=ALL) for a in (sorted(alphas), shuffled))
    for name in OF_LINE:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    for name in ("agreement", "cka"):
        at = dict(zip(sorted(alphas), one[name], strict=True))
        np.testing.assert_array_equal([at[alpha] for alpha in shuffled], other[name], err_msg=name)


@pytest.mark.parametrize("sizes", [[13], [1] * 13, [2, 11]], ids=["one", "ones", "ragged"])
def test_the_cut_into_batches_does_not_matter(engine: str, sizes: list[int]) -> None:
    c = case("cnn-bn")
    x, y = (torch.cat(column) for column in zip(*c.batches, strict=True))
    loader = list(zip(x.split(sizes), y.split(sizes), strict=True))
    found, expected = (c.sweep(5, precision="fp64", metrics=ALL, loader=b) for b in (loader, c.batches))
    for name in ALL:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


def test_cka_keeps_its_digits_where_outputs_are_far_from_zero(engine: str) -> None:
    """A head whose bias is a thousand times what varies: E[xx'] - E[x]E[x]' in one go would lose six digits."""
    c = case("mlp")
    far = [state | {"4.bias": state["4.bias"] + 1000} for state in (c.theta_0, c.theta_T)]
    result = c.sweep(4, precision="fp64", theta_0=far[0], theta_T=far[1], metrics=("cka",))
    alphas = np.linspace(0, 1, 4)
    expected = functionals_of(seen(c, reference.line(*far, alphas)), alphas)["cka"]
    np.testing.assert_allclose(result["cka"], expected, rtol=1e-8)


# ------------------------------------------------------------------------------------------------ where there is little


def test_one_alpha_alone(engine: str) -> None:
    result = case("cnn-bn").sweep([0.3], metrics=ALL)
    assert [float(result[name]) for name in OF_LINE] == [0.0, 0.0, 1.0]
    assert np.isnan(result["flips"]).all()
    assert result["agreement"].tolist() == [1.0]
    np.testing.assert_allclose(result["cka"], [1.0], rtol=1e-6)


def test_two_alphas_turn_nowhere(engine: str) -> None:
    result = case("cnn-bn").sweep(2, metrics=("gauss_length", "path_length"))
    assert float(result["gauss_length"]) == 0.0
    assert float(result["path_length"]) > 0.0


def test_one_example_has_no_spread_and_no_similarity(engine: str) -> None:
    c = case("mlp")
    result = c.sweep(3, metrics=ALL, loader=[(c.batches[0][0][:1], c.batches[0][1][:1])])
    assert np.isfinite([float(result[name]) for name in OF_LINE]).all()
    for name in (*OF_LINE, "flips", "agreement"):
        assert np.isnan(result[f"{name}_stderr"]).all(), name
    assert np.isnan(result["cka"]).all()


def test_outputs_that_do_not_vary_have_no_similarity(engine: str) -> None:
    c = case("mlp")
    flat = c.theta_0 | {"4.weight": torch.zeros_like(c.theta_0["4.weight"])}
    for precision in (None, "fp64"):
        found = c.sweep(3, theta_0=flat, metrics=("cka",), precision=precision)["cka"]
        assert np.isnan(found).tolist() == [True, False, False]


def test_no_example_on_the_unit_interval_is_nan_not_monotone(engine: str) -> None:
    assert np.isnan(case("mlp").sweep([-0.5, 1.5], metrics=("monotone_examples",))["monotone_examples"])


def test_a_batch_without_examples_changes_nothing(engine: str) -> None:
    c = case("mlp")
    empty = (torch.empty(0, 6), torch.empty(0, dtype=torch.long))
    expected = c.sweep(4, metrics=ALL)
    for loader in ([empty, *c.batches], [*c.batches, empty]):
        found = c.sweep(4, metrics=ALL, loader=loader)
        for name in ("loss", *ALL):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# ----------------------------------------------------------------------------------------------------------- not finite


def test_what_is_nan_is_nan(engine: str) -> None:
    """The end is NaN: the line's functionals are, and so is every comparison with a point that is."""
    c = case("mlp")
    with pytest.warns(mli_fast.evaluation.NonFiniteWarning):
        result = c.sweep([0.0, 0.5, 1.0], theta_T=spoilt(c.theta_T), metrics=("accuracy", *ALL))
    assert np.isnan(result.accuracy).tolist() == [False, True, True]
    for name in OF_LINE:
        assert np.isnan(result[name]), name
    for name in PER_ALPHA:
        assert np.isnan(result[name]).all(), name


def test_nan_in_one_example_is_nan_in_its_mean(engine: str) -> None:
    c = case("mlp")
    batches = [(x.clone(), y) for x, y in c.batches]
    batches[1][0][2] = float("nan")
    result = c.sweep(4, loader=batches, metrics=ALL)
    for name in ALL:
        assert np.isnan(result[name]).all(), name


# ------------------------------------------------------------------------------------------------------------ contracts


@under_both("mlp", "cnn-bn", "lstm")
def test_functionals_do_not_change_the_sweep(name: str, under: str) -> None:
    c = case(name)
    with forced(under):
        plain, found = c.sweep(5), c.sweep(5, metrics=(*c.metrics, *ALL))
        assert_same_points(found, plain, range(5))
        for chunk in (1, 2):
            again = c.sweep(5, metrics=(*c.metrics, *ALL), chunk=chunk)
            assert_same_points(again, plain, range(5))
            for variable in ALL:
                assert np.asarray(again[variable]).tobytes() == np.asarray(found[variable]).tobytes(), variable


@pytest.mark.parametrize("name", ["cnn-bn", "writes-into-its-input"])
def test_the_callers_things_are_as_they_were(engine: str, name: str) -> None:
    c = lived_in(name)
    before, loader = snapshot(c), Counting(c.batches)
    c.sweep(4, metrics=(*ALL, "gauss_length_jvp", "loss_slope"), loader=loader)
    assert_unchanged(before, snapshot(c))
    assert (loader.iterations, loader.drawn) == (1, 3)


def test_functionals_survive_a_change_of_engine() -> None:
    """What takes numbers from its activations goes by plain PyTorch, where it has to."""
    for name in ("item", "control-flow", "gru"):
        c = case(name)
        with forced("plain"):
            expected = c.sweep(4, metrics=ALL)
        found = c.sweep(4, metrics=ALL)
        for variable in ALL:
            np.testing.assert_allclose(found[variable], expected[variable], rtol=1e-5, atol=1e-6, err_msg=variable)


# --------------------------------------------------------------------------------------------------------------- errors


class TwoOutputs(nn.Module):
    """A pair."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.last(x)


def pair_forward(model: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """The pair is what is scored."""
    return model(batch[0]), batch[1]


def on_pairs(outputs: Any, targets: Tensor) -> Tensor:
    """A loss of it."""
    return F.cross_entropy(outputs[0] + outputs[1], targets, reduction="none")


@pytest.mark.parametrize("metric", ["gauss_length", "path_length", "cka"])
def test_outputs_that_are_no_one_tensor_are_refused(engine: str, metric: str) -> None:
    model = TwoOutputs()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    assert np.isfinite(c.sweep(2, forward=pair_forward, criterion=on_pairs, metrics=("monotone_examples",)).loss).all()
    with pytest.raises(ValueError, match=r"one tensor.*tuple"):
        c.sweep(2, forward=pair_forward, criterion=on_pairs, metrics=(metric,))


@pytest.mark.parametrize("metric", ["flips", "agreement"])
@pytest.mark.parametrize("name", ["regression-mse", "multi-label-bce"])
def test_predictions_need_classes(engine: str, metric: str, name: str) -> None:
    c = case(name)
    with pytest.raises(ValueError, match=f"{metric}.*class.*{c.criterion}"):
        c.sweep(3, metrics=(metric,))


def test_what_needs_no_classes_goes_with_regression(engine: str) -> None:
    c = case("regression-mse")
    result = c.sweep(4, precision="fp64", metrics=("gauss_length", "monotone_examples", "cka"))
    path = reference.logit_path(c.model, reference.line(c.theta_0, c.theta_T, np.linspace(0, 1, 4)), c.batches[0][0])
    assert np.isfinite(result["cka"]).all()
    first = c.sweep(4, precision="fp64", metrics=("gauss_length",), loader=c.batches[:1])
    assert float(first["gauss_length"]) == pytest.approx(measures.gauss_length(path), rel=1e-12)


def test_a_mean_of_the_batch_tells_nothing_of_examples(engine: str) -> None:
    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    result = case("mlp").sweep(4, criterion=mean, metrics=("loss_slope", "monotone_examples"))
    for name in ("loss_stderr", "loss_slope_stderr", "monotone_examples", "monotone_examples_stderr"):
        assert np.isnan(result[name]).all(), name
    assert np.isfinite(result["loss_slope"]).all()


def test_outputs_too_wide_for_cka_are_refused_with_both_numbers() -> None:
    model = nn.Linear(6, 2049)
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    with pytest.raises(ValueError, match=r"cka.*2,049.*2,048"):
        c.sweep(2, metrics=("cka",))


def test_outputs_whose_width_changes_are_refused_for_cka_alone(engine: str) -> None:
    c = case("gpt2")
    shorter = [{key: value[:, :7] for key, value in c.batches[0].items()}, *c.batches[1:]]
    assert np.isfinite(c.sweep(3, loader=shorter, metrics=("gauss_length", "path_length"))["gauss_length"])
    with pytest.raises(ValueError, match=r"(?s)cka(?=.*119)(?=.*153)"):
        c.sweep(3, loader=shorter, metrics=("cka",))
