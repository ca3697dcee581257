"""Coefficients against the formulas summed directly, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.paths import Bezier, Line, Path, Plane, Polyline, TaskVectors, random_directions
from tests.paths.cases import alphas, at, counts, flat, network, numbers

NETWORKS = tuple(network(seed) for seed in range(7))
VECTORS = np.stack([flat(state) for state in NETWORKS])

ONE_AXIS: dict[str, Callable[[int], Path]] = {
    "line": lambda _: Line(*NETWORKS[:2]),
    "bezier": lambda r: Bezier(*NETWORKS[:r]),
    "polyline": lambda r: Polyline(*NETWORKS[:r]),
    "task_vectors": lambda r: TaskVectors(*NETWORKS[:r]),
    "random_directions": lambda _: random_directions(NETWORKS[0], 1),
}


def de_casteljau(anchors: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """A Bezier curve's point by repeated linear interpolation."""
    while len(anchors) > 1:
        anchors = (1 - t) * anchors[:-1] + t * anchors[1:]
    return anchors[0]


@given(alphas)
def test_line(points: list[float]) -> None:
    line = Line(*NETWORKS[:2])
    expected = np.stack([1.0 - np.array(points), points], axis=1)
    np.testing.assert_array_equal(line.coefficients(line.points(points)), expected)


@given(counts, st.floats(-1, 2))
def test_bezier_is_de_casteljau(r: int, t: float) -> None:
    np.testing.assert_allclose(at(Bezier(*NETWORKS[:r]), t), de_casteljau(VECTORS[:r], t), rtol=0, atol=1e-11)


def test_bezier_of_two_anchors_is_the_line() -> None:
    t = np.linspace(-1, 2, 13)
    np.testing.assert_array_equal(Bezier(*NETWORKS[:2]).coefficients(t), Line(*NETWORKS[:2]).coefficients(t))


@given(counts, numbers)
def test_polyline_is_linear_between_its_bends(r: int, t: float) -> None:
    k = min(max(int(np.floor(t * (r - 1))), 0), r - 2)
    share = t * (r - 1) - k
    expected = (1 - share) * VECTORS[k] + share * VECTORS[k + 1]
    np.testing.assert_allclose(at(Polyline(*NETWORKS[:r]), t), expected, rtol=0, atol=1e-12)


@given(st.integers(1, 120), st.integers(1, 4))
def test_polyline_is_one_hot_at_its_bends_however_they_are_computed(segments: int, finer: int) -> None:
    path = Polyline(*NETWORKS[:1] * (segments + 1))
    for bends in (
        path.points(segments * finer + 1)[::finer],
        np.arange(segments + 1) / segments,
        np.array([place[0] for _, place in path.marks]),
    ):
        np.testing.assert_array_equal(path.coefficients(bends), np.eye(segments + 1))


@given(counts, numbers)
def test_task_vectors_with_one_scale(r: int, scale: float) -> None:
    expected = VECTORS[0] + scale * (VECTORS[1:r] - VECTORS[0]).sum(0)
    np.testing.assert_allclose(at(TaskVectors(*NETWORKS[:r]), scale), expected, rtol=0, atol=1e-11)


@given(st.lists(numbers, min_size=2, max_size=6))
def test_task_vectors_with_a_scale_each(scales: list[float]) -> None:
    tasks = VECTORS[1 : len(scales) + 1] - VECTORS[0]
    expected = VECTORS[0] + np.array(scales) @ tasks
    path = TaskVectors(*NETWORKS[: len(scales) + 1], separate=True)
    np.testing.assert_allclose(at(path, scales), expected, rtol=0, atol=1e-11)


@given(st.lists(numbers, min_size=2, max_size=4), st.integers(0, 5))
def test_random_directions_add_up(steps: list[float], seed: int) -> None:
    path = random_directions(NETWORKS[0], len(steps), seed=seed)
    directions = np.stack([flat(anchor) for anchor in path.anchors[1:]]) - VECTORS[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(at(path, steps), VECTORS[0] + np.array(steps) @ directions, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ONE_AXIS)
@given(r=counts, points=alphas)
def test_coefficients_sum_to_one_and_stand_alone(kind: str, r: int, points: list[float]) -> None:
    path = ONE_AXIS[kind](r)
    table = path.coefficients(path.points(points))
    assert table.dtype == np.float64
    assert table.shape == (len(points), len(path.anchors))
    np.testing.assert_allclose(table.sum(1), 1.0, rtol=0, atol=1e-12 * np.abs(table).sum(1).max())
    for point, row in zip(points, table, strict=True):
        assert path.coefficients(path.points([point]))[0].tolist() == row.tolist()


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_coefficients_of_planes_sum_to_one(points: list[tuple[float, float]]) -> None:
    for path in (Plane(*NETWORKS[:3]), random_directions(NETWORKS[0]), TaskVectors(*NETWORKS[:3], separate=True)):
        table = path.coefficients(path.points(points))
        assert table.shape == (len(points), 3)
        np.testing.assert_allclose(table.sum(1), 1.0, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ONE_AXIS)
@given(r=counts, points=alphas)
def test_derivatives_are_the_slopes_of_the_coefficients(kind: str, r: int, points: list[float]) -> None:
    path, h = ONE_AXIS[kind](r), 1e-6
    t = path.points(points)
    bends = np.array([place[0] for _, place in path.marks])
    t = np.where(np.abs(t[:, None] - bends).min(1) < 1e-3, t + 0.01, t)  # differences would straddle a bend
    slopes = (path.coefficients(t + h) - path.coefficients(t - h)) / (2 * h)
    np.testing.assert_allclose(path.derivatives(t), slopes, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(path.derivatives(t).sum(1), 0.0, rtol=0, atol=1e-10)


def test_a_polyline_turns_to_the_right_at_a_bend_and_has_the_last_slope_at_its_end() -> None:
    path = Polyline(*NETWORKS[:3])
    assert path.derivatives([0.0, 0.5, 1.0, 1.5]).tolist() == [[-2, 2, 0], [0, -2, 2], [0, -2, 2], [0, -2, 2]]


@pytest.mark.parametrize(
    "path",
    [Plane(*NETWORKS[:3]), random_directions(NETWORKS[0]), TaskVectors(*NETWORKS[:3], separate=True)],
    ids=lambda path: path.kind,
)
def test_paths_of_several_axes_have_no_single_derivative(path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^a {path.kind} with the axes \w+, \w+ has no single derivative$"):
        path.derivatives(np.zeros((1, 2)))
