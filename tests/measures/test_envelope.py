from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from mli_fast.measures import barrier, convexity
from tests.measures.curves import POWERS, WHOLE, placed_curves

Placed = tuple[NDArray[np.float64], NDArray[np.float64]]


def over_triples(alphas: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """The definition as it stands: every chord, and every point under it."""
    found = [0.0]
    for i, j, k in combinations(range(alphas.size), 3):
        t = (alphas[j] - alphas[i]) / (alphas[k] - alphas[i])
        found.append(values[j] - ((1 - t) * values[i] + t * values[k]))
    return max(found)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([4, 1, 0, 1, 4], 0, id="convex"),
        pytest.param([4, 3, 2, 1, 0], 0, id="straight"),
        pytest.param([1, 1, 1, 1, 1], 0, id="constant"),
        pytest.param([0, 3, 4, 3, 0], 4, id="concave"),
        pytest.param([4, 0, 2, 0, 4], 2, id="hill-between-two-valleys"),
        pytest.param([4, 4, 4, 4, 0], 3, id="plateau"),
        pytest.param([4, math.nan, 0, 0, 0], math.nan, id="nan"),
        pytest.param([4, math.inf, 0, 0, 0], math.nan, id="infinite"),
    ],
)
def test_convexity_of_hand_made_curves(values: list[float], expected: float) -> None:
    assert convexity([0, 0.25, 0.5, 0.75, 1], values) == pytest.approx(expected, nan_ok=True)


def test_toy_lines() -> None:
    alphas = np.linspace(0, 1, 65)
    assert convexity(alphas, (1 - (1 - 2 * alphas) ** 2) ** 2) == 1
    along = (1 - alphas**2) ** 2  # concave up to 1/sqrt(3), convex afterwards
    assert convexity(alphas, along) == pytest.approx(over_triples(alphas, along), rel=1e-12)


@given(placed_curves(least=1))
def test_convexity_equals_the_largest_over_all_triples(curve: Placed) -> None:
    assert convexity(*curve) == pytest.approx(over_triples(*curve), abs=1e-9)


@given(placed_curves(), POWERS, WHOLE, WHOLE)
def test_convexity_ignores_lines_direction_and_order(curve: Placed, scale: float, slope: int, shift: int) -> None:
    alphas, values = curve
    found = convexity(alphas, values)
    tilted = convexity(alphas, scale * (values + slope * alphas + shift))
    assert tilted == pytest.approx(scale * found, abs=1e-9 * scale)
    assert convexity(-3 * alphas, values) == pytest.approx(found, abs=1e-9)
    assert convexity(alphas[::-1], values[::-1]) == found
    assert found >= barrier(values, "chord", alphas) - 1e-9


@given(placed_curves())
def test_a_convex_curve_has_none(curve: Placed) -> None:
    alphas, values = curve
    steepness = np.sort(np.diff(values)) * 64  # per alpha; slopes that never fall make a convex curve
    assert convexity(alphas, np.append(0.0, np.cumsum(steepness * np.diff(alphas)))) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: convexity([0, 0.5, 0.5], [1, 2, 3]), ValueError, "got 0.5 twice", id="alpha-twice"),
        pytest.param(lambda: convexity([], []), ValueError, "values is empty", id="empty"),
        pytest.param(lambda: convexity([0, 1], [1]), ValueError, "got 2 and 1", id="lengths"),
        pytest.param(lambda: convexity([0, math.nan], [1, 2]), ValueError, "finite", id="alpha-nan"),
        pytest.param(lambda: convexity([0, 1], ["a", "b"]), TypeError, "values must be real", id="text"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
