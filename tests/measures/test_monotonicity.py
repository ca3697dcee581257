from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import Monotonicity, min_delta, monotonicity
from tests.measures.curves import CURVES, POWERS, WHOLE, reference_curve

REAL = st.floats(allow_nan=False, allow_infinity=False, width=32)


def pairwise_min_delta(values: list[float]) -> float:
    """The definition as it stands: every pair."""
    rises = [values[j] - values[i] for i in range(len(values)) for j in range(i + 1, len(values))]
    return max([0.0, *rises])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([2, 1.5, 1, 0.5, 5], 4.5, id="rise-that-starts-at-the-last-but-one-point"),
        pytest.param([3, 1, 2, 3, 0], 2.0, id="rise-over-several-points-not-the-largest-step"),
        pytest.param([5, 4, 3, 3, 0], 0.0, id="never-rises-with-a-tie"),
        pytest.param([1, 2, 0, 1.5], 1.5, id="two-rises-the-later-larger"),
        pytest.param([1, 3, 0, 1.5], 2.0, id="two-rises-the-earlier-larger"),
        pytest.param([7], 0.0, id="one-point"),
        pytest.param([1, math.inf], math.inf, id="rises-to-infinity"),
        pytest.param([math.inf, 2, 1], 0.0, id="falls-from-infinity"),
        pytest.param([math.inf, math.inf], 0.0, id="equal-infinities"),
        pytest.param([-math.inf, -math.inf, 3], math.inf, id="rises-from-minus-infinity"),
        pytest.param([2.3244, 1.0373, 0.3339, 0.3538], 0.0199, id="reference-curve-of-a-resnet"),
    ],
)
def test_min_delta_is_the_largest_draw_up(values: list[float], expected: float) -> None:
    assert min_delta(values) == pytest.approx(expected, rel=1e-12)


@given(st.lists(REAL, min_size=1, max_size=40))
@example([0.0, -0.0])
def test_min_delta_equals_the_pairwise_definition(values: list[float]) -> None:
    assert min_delta(values) == pairwise_min_delta(values)


@given(st.lists(REAL, min_size=1, max_size=30), st.integers(0, 29))
def test_min_delta_of_a_curve_with_nan_is_nan(values: list[float], where: int) -> None:
    values.insert(where % (len(values) + 1), math.nan)
    assert math.isnan(min_delta(values))


def test_toy_valley_has_a_barrier_of_one() -> None:
    # L = (1 - w1 w2)^2 from (1, 1) to (-1, -1): (1 - (1 - 2 alpha)^2)^2, highest in the middle.
    alphas = np.linspace(0, 1, 51)
    found = monotonicity(alphas, (1 - (1 - 2 * alphas) ** 2) ** 2)
    assert found.min_delta == pytest.approx(1.0)
    assert (found.start_alpha, found.end_alpha) == (0.0, pytest.approx(0.5, abs=0.01))
    along = monotonicity(alphas, (1 - alphas**2) ** 2)
    assert along == Monotonicity(
        0.0, True, pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True), 0
    )


@given(st.lists(st.tuples(st.floats(-0.5, 1.5), REAL), min_size=1, max_size=30, unique_by=lambda pair: pair[0]))
def test_monotonicity_ignores_order_and_what_lies_outside(pairs: list[tuple[float, float]]) -> None:
    inside = sorted(pair for pair in pairs if 0 <= pair[0] <= 1)
    alphas, values = zip(*pairs, strict=True)
    if not inside:
        with pytest.raises(ValueError, match=r"no alpha lies in \[0, 1\]"):
            monotonicity(alphas, values)
        return
    found = monotonicity(alphas, values)
    assert found.min_delta == pairwise_min_delta([value for _, value in inside])
    if found.min_delta > 0:
        at = dict(inside)
        assert found.start_alpha < found.end_alpha
        assert at[found.end_alpha] - at[found.start_alpha] == found.min_delta
    else:
        assert math.isnan(found.start_alpha)
        assert math.isnan(found.end_alpha)


@pytest.mark.parametrize(
    ("tol", "monotone"),
    [
        pytest.param(0.0, False, id="none-allowed"),
        pytest.param(0.24, False, id="just-below"),
        pytest.param(0.25, True, id="exactly"),
        pytest.param(1.0, True, id="more"),
    ],
)
def test_tolerance_is_inclusive(tol: float, monotone: bool) -> None:
    found = monotonicity([0, 0.5, 1], [1, 0.5, 0.75], tol)
    assert found.monotone is monotone
    assert (found.min_delta, found.tol) == (0.25, tol)


def test_start_is_the_last_of_equal_minima() -> None:
    found = monotonicity([0, 0.25, 0.5, 0.75, 1], [3, 1, 1, 2, 2])
    assert (found.start_alpha, found.end_alpha) == (0.5, 0.75)


def test_a_gap_is_not_monotone() -> None:
    found = monotonicity([0, 0.5, 1], [2, math.nan, 1], tol=10)
    assert math.isnan(found.min_delta)
    assert found.monotone is False


def test_a_gap_outside_does_not_count() -> None:
    assert monotonicity([0, 1, 1.5], [2, 1, math.nan]).monotone


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: min_delta([]), ValueError, "empty", id="empty"),
        pytest.param(lambda: min_delta([[1.0, 2.0]]), ValueError, r"1-D, got shape \(1, 2\)", id="two-dimensional"),
        pytest.param(lambda: min_delta(3.0), ValueError, "1-D", id="scalar"),
        pytest.param(lambda: min_delta([1j]), TypeError, "complex", id="complex"),
        pytest.param(lambda: min_delta(["a"]), TypeError, "real", id="text"),
        pytest.param(lambda: monotonicity([0, 1], [1]), ValueError, "same length, got 2 and 1", id="lengths"),
        pytest.param(lambda: monotonicity([0, math.nan], [1, 2]), ValueError, "finite", id="alpha-nan"),
        pytest.param(lambda: monotonicity([0, 1], [1, 2], -1), ValueError, "tol", id="tol-negative"),
        pytest.param(lambda: monotonicity([0, 1], [1, 2], math.nan), ValueError, "tol", id="tol-nan"),
        pytest.param(lambda: monotonicity([2, 3], [1, 2]), ValueError, "no alpha", id="all-outside"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_reference_curve_rises_at_its_tail() -> None:
    found = monotonicity(*reference_curve())
    assert found.min_delta == pytest.approx(0.0199, abs=1e-12)
    assert (round(found.start_alpha, 4), found.end_alpha, found.monotone) == (0.9184, 1.0, False)


@given(CURVES, POWERS, WHOLE)
def test_min_delta_scales_with_the_curve_and_ignores_its_offset(
    values: NDArray[np.float64], scale: float, shift: int
) -> None:
    assert min_delta(scale * values + scale * shift) == scale * min_delta(values)
