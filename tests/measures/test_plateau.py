from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import homogeneous_crossing, plateau_length
from tests.measures.curves import POWERS, placed_curves

Placed = tuple[NDArray[np.float64], NDArray[np.float64]]
THRESHOLDS = st.integers(1, 64).map(lambda share: share / 64)


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        pytest.param([4, 4, 4, 2, 0], 0.75, 0.625, id="crossing-between-two-points"),
        pytest.param([4, 4, 3, 2, 0], 0.75, 0.5, id="crossing-at-a-point"),
        pytest.param([4, 4, 4, 4, 4], 0.5, 1, id="never-leaves"),
        pytest.param([4, 8, 4, 0, 9], 0.5, 0.625, id="only-the-first-interval"),
        pytest.param([4, 4, 3, 3, 3], 1, 0.25, id="whole-starting-value"),
        pytest.param([4, 3, 4, 4, 4], 1, 0, id="falls-at-once"),
        pytest.param([4, math.inf, 0, 0, 0], 0.5, 0.5, id="down-from-infinity"),
        pytest.param([4, 4, 0, math.nan, 0], 0.5, 0.375, id="nan-afterwards"),
        pytest.param([4, 4, math.nan, 0, 0], 0.5, math.nan, id="nan-before"),
        pytest.param([math.nan, 4, 4, 4, 4], 0.5, math.nan, id="nan-at-the-start"),
    ],
)
def test_plateaus_of_hand_made_curves(values: list[float], threshold: float, expected: float) -> None:
    assert plateau_length([0, 0.25, 0.5, 0.75, 1], values, threshold) == pytest.approx(expected, nan_ok=True)
    backwards = plateau_length([1, 0.75, 0.5, 0.25, 0], values[::-1], threshold)
    assert backwards == pytest.approx(expected, nan_ok=True)


@given(placed_curves(least=1), THRESHOLDS)
def test_the_curve_stays_above_up_to_there_and_not_further(curve: Placed, threshold: float) -> None:
    alphas, values = curve
    values[0] = abs(values[0]) + 1
    level, end = threshold * values[0], alphas[0] + plateau_length(alphas, values, threshold)
    # 1e-12 of alpha is past rounding, and the least slope here is 1/64 per alpha step.
    assert (values[alphas < end - 1e-12] >= level).all()
    if end < alphas[-1]:
        assert np.interp(end, alphas, values) == pytest.approx(level, abs=1e-9)
        assert values[alphas > end + 1e-12][0] < level


@given(placed_curves(), THRESHOLDS, THRESHOLDS, POWERS)
def test_plateau_of_a_scaled_curve_and_of_another_share(
    curve: Placed, threshold: float, other: float, scale: float
) -> None:
    alphas, values = curve
    values[0] = abs(values[0]) + 1
    found = plateau_length(alphas, values, threshold)
    assert plateau_length(alphas, scale * values, threshold) == found
    assert plateau_length(2 * alphas + 1, values, threshold) == pytest.approx(2 * found)
    low, high = sorted((threshold, other))
    assert plateau_length(alphas, values, low) >= plateau_length(alphas, values, high) - 1e-12


@given(st.floats(0.01, 10), st.floats(1.01, 10), st.floats(1.1, 10))
def test_homogeneous_crossing_is_where_the_logits_meet(lead: float, factor: float, r: float) -> None:
    margin = factor * lead
    alpha = homogeneous_crossing(lead, margin, r)
    assert 0 < alpha < 1
    assert alpha**r * margin == pytest.approx(alpha * lead)


@pytest.mark.parametrize("r", [2, 3, 6])
def test_error_of_the_homogeneous_model_leaves_its_plateau_there(r: int) -> None:
    # logit_k = alpha^r s_k + alpha b_k; the start, where all logits are 0, is left out.
    alphas = np.linspace(0, 1, 2001)[1:, None]
    s, b = np.array([5.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.5])
    error = (np.argmax(alphas**r * s + alphas * b, axis=1) != 0).astype(float)
    expected = homogeneous_crossing(lead=1.0, margin=4.0, r=r)
    assert alphas[0, 0] + plateau_length(alphas[:, 0], error, 0.5) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: plateau_length([0, 1], [1, 0], 0), ValueError, "threshold .* got 0", id="zero"),
        pytest.param(lambda: plateau_length([0, 1], [1, 0], 1.5), ValueError, "threshold .* got 1.5", id="above-one"),
        pytest.param(lambda: plateau_length([0, 1], [1, 0], -0.1), ValueError, "threshold .* got -0.1", id="negative"),
        pytest.param(lambda: plateau_length([0, 1], [1, 0], math.nan), ValueError, "threshold .* got nan", id="nan"),
        pytest.param(
            lambda: plateau_length([0, 1], [0, 1], 0.5), ValueError, "above zero .* got 0", id="starts-at-zero"
        ),
        pytest.param(lambda: plateau_length([], [], 0.5), ValueError, "values is empty", id="empty"),
        pytest.param(lambda: plateau_length([0], [1, 2], 0.5), ValueError, "got 1 and 2", id="lengths"),
        pytest.param(lambda: homogeneous_crossing(0, 1, 2), ValueError, "lead .* got 0", id="no-lead"),
        pytest.param(lambda: homogeneous_crossing(2, 2, 2), ValueError, "margin .* got 2", id="margin-too-small"),
        pytest.param(lambda: homogeneous_crossing(1, math.inf, 2), ValueError, "margin .* got inf", id="margin-inf"),
        pytest.param(lambda: homogeneous_crossing(1, 2, 1), ValueError, "r must .* got 1", id="degree-one"),
        pytest.param(lambda: homogeneous_crossing(1, 2, math.nan), ValueError, "r must .* got nan", id="degree-nan"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
