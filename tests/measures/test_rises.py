from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import Bump, bumps, largest_step, min_delta
from tests.measures.curves import CURVES, POWERS, WHOLE, placed_curves, reference_curve

Placed = tuple[NDArray[np.float64], NDArray[np.float64]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([2, 1.5, 1, 0.5, 5], [Bump(0.75, 1, 1, 4.5, 0.25)], id="tail-rise"),
        pytest.param([0, 4, 0, 0, 0], [Bump(0, 0.25, 0.5, 4, 0.5)], id="from-the-first-point-back-to-its-level"),
        pytest.param(
            [0, 4, -4, 0, 0], [Bump(0, 0.25, 0.375, 4, 0.375), Bump(0.5, 0.75, 1, 4, 0.5)], id="crosses-level"
        ),
        pytest.param([3, 1, 1, 2, 2], [Bump(0.5, 0.75, 1, 1, 0.5)], id="level-ends-belong-to-no-rise"),
        pytest.param([0, 1, 1, 2, 0], [Bump(0, 0.75, 1, 2, 1)], id="level-piece-within-a-rise"),
        pytest.param([0, 2, 1, 3, 2], [Bump(0, 0.25, 1, 2, 1), Bump(0.5, 0.75, 1, 2, 0.5)], id="dip-makes-two"),
        pytest.param([4, 3, 3, 2, 2], [], id="never-rises"),
        pytest.param([1, 1, 1, 1, 1], [], id="constant"),
        pytest.param([1, math.inf, 0, 0, 0], [Bump(0, 0.25, 0.5, math.inf, 0.5)], id="up-to-infinity"),
    ],
)
def test_bumps_of_hand_made_curves(values: list[float], expected: list[Bump]) -> None:
    assert bumps([0, 0.25, 0.5, 0.75, 1], values) == expected


def test_no_points_no_bumps() -> None:
    assert bumps([], []) == []
    assert bumps([0.5], [1.0]) == []


def test_reference_curve_has_one_bump_at_its_tail() -> None:
    alphas, values = reference_curve()
    (bump,) = bumps(alphas, values)
    assert (bump.start_alpha, bump.peak_alpha, bump.end_alpha) == (alphas[45], 1.0, 1.0)
    assert bump.height == pytest.approx(0.0199, abs=1e-12)
    assert largest_step(values) == pytest.approx(0.0199 / 4, abs=1e-12)


def test_toy_valley_is_one_bump_as_wide_as_the_line() -> None:
    alphas = np.linspace(0, 1, 65)
    assert bumps(alphas, (1 - (1 - 2 * alphas) ** 2) ** 2) == [Bump(0.0, 0.5, 1.0, 1.0, 1.0)]


@given(placed_curves())
def test_bumps_are_all_that_rises(curve: Placed) -> None:
    alphas, values = curve
    found = bumps(alphas, values)
    heights = [bump.height for bump in found]
    assert sum(heights) == np.diff(values).clip(min=0).sum()
    assert largest_step(values) <= max(heights, default=0.0) <= min_delta(values)
    assert (found == []) == (min_delta(values) == 0)
    at = dict(zip(alphas, values, strict=True))
    for bump in found:
        assert at[bump.peak_alpha] - at[bump.start_alpha] == bump.height > 0
        assert bump.width == bump.end_alpha - bump.start_alpha
    assert all(a.peak_alpha < b.start_alpha for a, b in pairwise(found))


@given(placed_curves())
def test_a_bump_ends_where_the_curve_is_back(curve: Placed) -> None:
    alphas, values = curve
    for bump in bumps(alphas, values):
        level = values[alphas == bump.start_alpha][0]
        assert (values[(alphas > bump.start_alpha) & (alphas < bump.end_alpha)] > level).all()
        back = np.interp(bump.end_alpha, alphas, values)
        assert back == pytest.approx(level, abs=1e-9) or (bump.end_alpha == alphas[-1] and back > level)


@given(placed_curves(), POWERS, WHOLE, st.randoms(use_true_random=False))
def test_bumps_follow_affine_maps_and_ignore_order(
    curve: Placed, scale: float, shift: int, shuffler: random.Random
) -> None:
    alphas, values = curve
    order = list(range(alphas.size))
    shuffler.shuffle(order)
    mapped = bumps(4 * alphas[order] - 3, scale * values[order] + scale * shift)
    plain = bumps(alphas, values)
    assert [(b.start_alpha, b.peak_alpha, b.height) for b in mapped] == [
        (4 * b.start_alpha - 3, 4 * b.peak_alpha - 3, scale * b.height) for b in plain
    ]
    assert [b.width for b in mapped] == pytest.approx([4 * b.width for b in plain])


@given(CURVES)
def test_largest_step_equals_its_definition(values: NDArray[np.float64]) -> None:
    assert largest_step(values) == max([0.0, *(b - a for a, b in pairwise(values))])


def test_largest_step_is_not_the_draw_up() -> None:
    values = [3, 1, 2, 3, 0]
    assert (largest_step(values), min_delta(values)) == (1, 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([1], 0, id="one-point"),
        pytest.param([math.inf, math.inf, 1], 0, id="equal-infinities"),
        pytest.param([1, math.inf], math.inf, id="to-infinity"),
        pytest.param([2, math.nan, 1], math.nan, id="nan"),
    ],
)
def test_largest_step_of_special_values(values: list[float], expected: float) -> None:
    assert largest_step(values) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: bumps([0, 0.5, 1], [1, math.nan, 0]), ValueError, "NaN at alpha = 0.5", id="nan"),
        pytest.param(lambda: bumps([0, 1], [1]), ValueError, "same length, got 2 and 1", id="lengths"),
        pytest.param(lambda: bumps([0, math.inf], [1, 2]), ValueError, "finite", id="alpha-infinite"),
        pytest.param(lambda: bumps([0, 1], [1j, 2]), TypeError, "values must be real", id="complex"),
        pytest.param(lambda: largest_step([]), ValueError, "values is empty", id="empty"),
        pytest.param(lambda: largest_step([[1.0]]), ValueError, "1-D", id="two-dimensional"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
