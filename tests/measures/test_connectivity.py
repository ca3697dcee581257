from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from mli_fast.measures import barrier, mode_connectivity
from tests.measures.curves import CURVES, POWERS, WHOLE, placed_curves

Placed = tuple[NDArray[np.float64], NDArray[np.float64]]
KINDS = pytest.mark.parametrize("kind", ["midpoint", "chord"])
ALPHAS = np.linspace(0, 1, 65)


@KINDS
def test_toy_valley_has_a_barrier_of_one(kind: str) -> None:
    # L = (1 - w1 w2)^2 from (1, 1) to (-1, -1): the hill is at the origin.
    values = (1 - (1 - 2 * ALPHAS) ** 2) ** 2
    assert barrier(values, kind) == 1
    assert barrier(values, kind, alphas=ALPHAS) == 1
    assert mode_connectivity(values) == -1


def test_toy_line_from_the_origin_has_no_hill() -> None:
    # (1 - alpha^2)^2 falls from 1 to 0: the midpoint kind sees half of that, the chord kind its concave start.
    values = (1 - ALPHAS**2) ** 2
    assert barrier(values) == 0.5
    assert barrier(values, "chord") == max(values - (1 - ALPHAS))
    assert mode_connectivity(values) == -0.5


@pytest.mark.parametrize(
    ("values", "alphas", "midpoint", "chord"),
    [
        pytest.param([0, 2, 0], None, 2, 2, id="hill"),
        pytest.param([0, -2, 0], None, 0, 0, id="valley"),
        pytest.param([2, 3, 0], None, 2, 2, id="ends-differ"),
        pytest.param([2, 3, 0], [0, 0.25, 1], 2, 1.5, id="hill-near-the-start"),
        pytest.param([0, 2, 3], [1, 0, 0.25], 2, 1.5, id="same-in-another-order"),
        pytest.param([4, 0], None, 2, 0, id="two-points"),
        pytest.param([1, math.nan, 0], None, math.nan, math.nan, id="nan"),
        pytest.param([1, math.inf, 0], None, math.inf, math.inf, id="infinite-hill"),
    ],
)
def test_barriers_of_hand_made_curves(
    values: list[float], alphas: list[float] | None, midpoint: float, chord: float
) -> None:
    assert barrier(values, alphas=alphas) == pytest.approx(midpoint, nan_ok=True)
    assert barrier(values, "chord", alphas) == pytest.approx(chord, nan_ok=True)


@KINDS
@given(values=CURVES, scale=POWERS, shift=WHOLE)
def test_barrier_scales_with_the_curve_and_has_no_direction(
    kind: str, values: NDArray[np.float64], scale: float, shift: int
) -> None:
    found = barrier(values, kind)
    assert found >= 0
    assert barrier(scale * values + scale * shift, kind) == pytest.approx(scale * found, abs=1e-9 * scale)
    assert barrier(values[::-1], kind) == pytest.approx(found, abs=1e-9)


@given(placed_curves(), WHOLE)
def test_chord_barrier_ignores_a_slope(curve: Placed, slope: int) -> None:
    alphas, values = curve
    tilted = barrier(values + slope * alphas, "chord", alphas)
    assert tilted == pytest.approx(barrier(values, "chord", alphas), abs=1e-9)


@given(placed_curves())
def test_the_two_barriers_differ_by_no_more_than_half_the_ends(curve: Placed) -> None:
    alphas, values = curve
    midpoint, chord = barrier(values, alphas=alphas), barrier(values, "chord", alphas)
    half = abs(values[0] - values[-1]) / 2
    assert midpoint >= half
    assert chord <= midpoint + half + 1e-9
    assert midpoint <= chord + half + 1e-9


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param([10, 30, 12], -19, id="barrier"),
        pytest.param([10, 4, 12], 7, id="better-between"),
        pytest.param([10, 10, 10], 0, id="connected"),
        pytest.param([10, 14, 7, 10], -4, id="the-larger-one-counts"),
        pytest.param([10, 6, 14, 10], 4, id="the-first-of-two-counts"),
        pytest.param([10, math.nan, 12], math.nan, id="nan"),
    ],
)
def test_mode_connectivity_of_hand_made_curves(errors: list[float], expected: float) -> None:
    assert mode_connectivity(errors) == pytest.approx(expected, nan_ok=True)


@given(CURVES, POWERS, WHOLE)
def test_mode_connectivity_follows_affine_maps(errors: NDArray[np.float64], scale: float, shift: int) -> None:
    found = mode_connectivity(errors)
    assert mode_connectivity(scale * errors + scale * shift) == scale * found
    assert mode_connectivity(-errors) == -found
    assert abs(mode_connectivity(errors[::-1])) == abs(found)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: barrier([1, 2], "max"), ValueError, "kind .* got 'max'", id="kind"),
        pytest.param(lambda: barrier([1]), ValueError, "values holds 1", id="one-point"),
        pytest.param(lambda: barrier([]), ValueError, "values is empty", id="empty"),
        pytest.param(lambda: barrier([[1, 2]]), ValueError, "values must be 1-D", id="two-dimensional"),
        pytest.param(lambda: barrier([1, 2], alphas=[0, 0.5, 1]), ValueError, "got 3 and 2", id="lengths"),
        pytest.param(lambda: barrier([1, 2], "chord", [0.5, 0.5]), ValueError, "the same, got 0.5", id="no-span"),
        pytest.param(lambda: mode_connectivity([1]), ValueError, "errors holds 1", id="one-error"),
        pytest.param(lambda: mode_connectivity(["a", "b"]), TypeError, "errors must be real", id="text"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
