"""Adaptive alphas: the interpolant is within the tolerance everywhere, with fewer points than an even grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mli_fast
from mli_fast.adaptive import NotResolvedWarning, interpolant, refine
from tests.cases import case

Curve = Callable[[Any], Any]
FINE = np.union1d(np.linspace(0, 1, 5001), np.arange(2**12 + 1) / 2**12)


def plateau(edge: float, width: float) -> Curve:
    return lambda a: 1.15 * (1 - np.tanh((a - edge) / width))


def barrier(at: float, width: float) -> Curve:
    return lambda a: 2 * np.exp(-(((a - at) / width) ** 2) / 2) + 0.2 - 0.1 * a


def falling(rate: float) -> Curve:
    return lambda a: 2.3 * np.exp(-rate * a)


def kinked(at: float, slope: float) -> Curve:
    return lambda a: 2 - a + slope * np.maximum(a - at, 0)


def worst(curve: Curve, alphas: Any, values: Any) -> float:
    return float(np.abs(interpolant(alphas, values)(FINE) - curve(FINE)).max())


curves = st.one_of(
    st.builds(plateau, st.floats(0.1, 0.9), st.floats(0.005, 0.3)),
    st.builds(barrier, st.floats(0.1, 0.9), st.floats(0.05, 0.3)),
    st.builds(falling, st.floats(0.1, 60)),
    st.builds(kinked, st.floats(0.05, 0.95), st.floats(-3, 3)),
)


@given(curves, st.sampled_from([0.1, 0.01, 0.001]))
def test_the_interpolant_is_within_the_tolerance(curve: Curve, tol: float) -> None:
    alphas, values = refine(curve, tol, most=1025)
    np.testing.assert_array_equal(values, curve(alphas))
    # Points cannot tell everything: a kink just beside one of them may leave a little more.
    assert worst(curve, alphas, values) <= 1.5 * tol


@pytest.mark.parametrize(
    "curve",
    [plateau(0.7, 0.02), plateau(0.45, 0.005), barrier(0.5, 0.05), barrier(0.37, 0.08), falling(50), kinked(0.3, 2)],
    ids=["plateau", "sharp plateau", "barrier", "wide barrier", "fast fall", "kink"],
)
def test_fewer_points_than_an_even_grid_of_the_same_accuracy(curve: Curve) -> None:
    alphas, values = refine(curve, 0.01)
    reached = worst(curve, alphas, values)
    assert reached <= 0.01
    even = np.linspace(0, 1, len(alphas))
    assert worst(curve, even, curve(even)) > reached


def test_points_are_exact_sorted_and_new_in_every_call() -> None:
    asked: list[float] = []

    def evaluate(alphas: Any) -> Any:
        asked.extend(alphas)
        return plateau(0.6, 0.05)(alphas)

    alphas, _ = refine(evaluate, 0.01)
    assert sorted(asked) == list(alphas)
    assert len(set(asked)) == len(asked)
    assert alphas[[0, -1]].tolist() == [0.0, 1.0]
    assert all((alpha * 2**20).is_integer() for alpha in alphas), "halves of halves: exact in binary"


def test_where_points_do_not_suffice_it_says_so() -> None:
    with pytest.warns(NotResolvedWarning, match=r"with 17 points .* 0.001 between alpha 0\.\d+"):
        alphas, _ = refine(plateau(0.5, 0.003), 1e-3, most=17)
    assert len(alphas) <= 17


def test_a_jump_and_nan_end() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jump, _ = refine(lambda a: np.where(a < 0.3, 2.0, 1.0), 0.01)
        holed, values = refine(lambda a: np.where(np.abs(a - 0.5) < 0.1, np.nan, a**2), 0.01)
    assert np.diff(jump).min() <= 2**-14
    assert len(holed) == 9
    assert np.isnan(values).sum() == 1


def test_the_interpolant_goes_through_the_points_and_nowhere_else() -> None:
    alphas, values = np.array([1.0, 0.0, 0.5, 0.25, 0.75]), np.array([1.0, 0.0, np.nan, 0.0625, 0.5625])
    curve = interpolant(alphas, values)
    np.testing.assert_allclose(curve(alphas), values)
    np.testing.assert_allclose(curve([0.1, 0.9]), [0.01, 0.81])
    assert np.isnan(curve([0.3, 0.7, -0.1, 1.1])).all()
    np.testing.assert_array_equal(interpolant([0.5], [2.0])([0.5]), [2.0])
    assert np.isnan(interpolant([0.0, 1.0], [np.nan, np.inf])([0.5])).all()


@pytest.mark.parametrize(
    ("alphas", "values", "told"),
    [([], [], "not empty"), ([0.0, 1.0], [1.0], "alike"), ([0.0, 0.5, 0.5], [1.0, 2.0, 3.0], "0.5 is there twice")],
)
def test_what_is_no_curve_is_refused(alphas: Any, values: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        interpolant(alphas, values)


@pytest.mark.parametrize("tol", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tol: float) -> None:
    with pytest.raises(ValueError, match=f"tol={tol}"):
        refine(falling(1), tol)


# ------------------------------------------------------------------------------------------------------- in a sweep


def once(batches: Any) -> Iterator[Any]:
    yield from batches


def test_a_sweep_finds_its_alphas_reading_a_generator_once() -> None:
    c = case("cnn-bn")
    found = c.sweep("adaptive", tol=0.01, loader=once(c.batches), precision="fp64")
    assert found.provenance["tol"] == 0.01
    assert found.provenance["points"] == len(found.alphas) >= 9
    even = c.sweep(np.linspace(0, 1, 201), precision="fp64")
    assert np.abs(found.at(even.alphas) - even.loss).max() <= 0.01
    same = c.sweep(found.alphas, precision="fp64")
    for name in ("loss", "loss_stderr", "accuracy", "class_loss", "prediction_histogram"):
        assert found[name].tobytes() == same[name].tobytes(), name
    assert "loss_step" not in found, "steps were paired within rounds only"


def test_what_adaptive_alphas_cannot_do_is_said() -> None:
    c = case("mlp")
    with pytest.raises(ValueError, match=r"'gauss_length' needs all points"):
        c.sweep("adaptive", metrics=("gauss_length",))
    with pytest.raises(ValueError, match=r"expected 'adaptive'"):
        c.sweep("adaptiv")
    with pytest.raises(ValueError, match=r"tol is for alphas='adaptive'"):
        c.sweep(5, tol=0.1)


def test_at_is_for_one_curve() -> None:
    result = case("mlp").sweep(5)
    np.testing.assert_allclose(result.at(result.alphas), result.loss, rtol=1e-12)
    with pytest.raises(ValueError, match="not one curve"):
        result.at([0.5], "class_loss")
    assert mli_fast.SweepResult is type(result)
