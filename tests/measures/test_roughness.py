from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import roughness_index, total_variation
from tests.measures.curves import CURVES, POWERS, WHOLE, reference_curve

STACKS = (
    st.integers(2, 8)
    .flatmap(lambda points: st.lists(st.lists(WHOLE, min_size=points, max_size=points), min_size=2, max_size=6))
    .map(lambda curves: np.array(curves, dtype=np.float64))
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([5, 3, 3, 1], 1, id="monotone"),
        pytest.param([1, 3, 9], 1, id="monotone-upwards"),
        pytest.param([2, 0, 2], 2, id="valley"),
        pytest.param([0, 2, 1, 3], 5 / 3, id="detour"),
        pytest.param([1, 1, 1], 1, id="constant"),
        pytest.param([1, math.nan, 0], math.nan, id="nan"),
        pytest.param([1, math.inf, 0], math.nan, id="infinite"),
        pytest.param([math.inf, math.inf], math.nan, id="infinite-throughout"),
    ],
)
def test_total_variation_of_hand_made_curves(values: list[float], expected: float) -> None:
    assert total_variation(values) == pytest.approx(expected, rel=1e-14, nan_ok=True)


def test_total_variation_of_the_reference_curve() -> None:
    fall, rise = 2.3244 - 0.3339, 0.0199
    assert total_variation(reference_curve()[1]) == pytest.approx((fall + rise) / fall)


@given(CURVES)
def test_total_variation_is_one_on_a_monotone_curve_only(values: NDArray[np.float64]) -> None:
    assert total_variation(np.sort(values)) == 1
    steps = np.diff(values)
    monotone = (steps >= 0).all() or (steps <= 0).all()
    assert (total_variation(values) == 1) == monotone
    assert total_variation(values) >= 1


@given(CURVES, POWERS, WHOLE)
def test_total_variation_ignores_affine_maps_and_direction(
    values: NDArray[np.float64], scale: float, shift: int
) -> None:
    found = total_variation(values)
    assert total_variation(scale * values + scale * shift) == found
    assert total_variation(-values) == found
    assert total_variation(values[::-1]) == found


def test_roughness_index_of_hand_made_curves() -> None:
    smooth, valley, jagged = [2, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]  # T = 1, 2, 4
    assert roughness_index([smooth, smooth]) == 0
    assert roughness_index([smooth, valley, jagged]) == pytest.approx(math.sqrt(14 / 9) / (7 / 3))
    assert math.isnan(roughness_index([smooth, [1, math.nan, 0, 0, 0]]))


@given(STACKS)
def test_roughness_index_is_population_spread_over_mean(curves: NDArray[np.float64]) -> None:
    t = [total_variation(curve) for curve in curves]
    mean = math.fsum(t) / len(t)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in t) / len(t))
    assert roughness_index(curves) == pytest.approx(spread / mean, abs=1e-12)


@given(STACKS, POWERS, WHOLE)
def test_roughness_index_ignores_the_units_of_each_direction(
    curves: NDArray[np.float64], scale: float, shift: int
) -> None:
    mapped = curves.copy()
    mapped[0] = scale * curves[0] + scale * shift
    assert roughness_index(mapped) == roughness_index(curves)
    assert roughness_index(curves[::-1]) == pytest.approx(roughness_index(curves), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: total_variation([1]), ValueError, "values holds 1", id="one-point"),
        pytest.param(lambda: total_variation([[1, 2]]), ValueError, "1-D", id="two-dimensional"),
        pytest.param(lambda: total_variation([1j, 2]), TypeError, "real", id="complex"),
        pytest.param(lambda: roughness_index([1, 2, 3]), ValueError, "curves must be 2-D", id="one-curve-flat"),
        pytest.param(lambda: roughness_index([[1, 2, 3]]), ValueError, r"2 curves .* shape \(1, 3\)", id="one-curve"),
        pytest.param(lambda: roughness_index([[1], [2]]), ValueError, r"2 points, got shape \(2, 1\)", id="points"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
