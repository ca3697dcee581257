"""Which points are asked for: counts, sequences, spans, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from mli_fast.paths import Bezier, Line, Path, Plane, Polyline, TaskVectors, random_directions
from tests.paths.cases import network

THREE = tuple(network(seed) for seed in range(3))
LINE = Line(*THREE[:2])
PLANE = Plane(*THREE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1, [0.0]),
        (np.int64(3), [0.0, 0.5, 1.0]),
        ((1, 0), [1.0, 0.0]),
        (range(2), [0.0, 1.0]),
        (np.array([0.5], dtype=np.float16), [0.5]),
        (torch.tensor([0.25, -2.0], requires_grad=True), [0.25, -2.0]),
    ],
    ids=["one", "numpy-count", "tuple", "range", "half", "tensor"],
)
def test_points_of_one_axis_in_any_form(given: Any, expected: list[float]) -> None:
    points = LINE.points(given)
    assert points.dtype == np.float64
    assert points.tolist() == expected


def test_points_are_a_copy() -> None:
    mine = np.array([0.0, 1.0])
    LINE.points(mine)[0] = 5.0
    assert mine[0] == 0.0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0, ValueError, "alphas=0: at least one point is needed"),
        (True, TypeError, "alphas: expected a count or a 1-D sequence of numbers, got a bool"),
        ("50", ValueError, "alphas: expected a 1-D sequence, got shape ()"),
        (None, ValueError, "alphas: expected a 1-D sequence, got shape ()"),
        (["a"], TypeError, "alphas: expected a count or a 1-D sequence of numbers, got ['a']"),
        ([], ValueError, "alphas is empty: at least one point is needed"),
        ([[0.5]], ValueError, "alphas: expected a 1-D sequence, got shape (1, 1)"),
        ([0.5, np.nan], ValueError, "alphas[1] is nan: every alpha has to be a finite number"),
    ],
)
def test_alphas_that_make_no_curve(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        LINE.points(given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (5, TypeError, "points: expected an array [P, 2] of coordinates (x, y), got 5; a count is for one axis"),
        ([0.5, 0.5], ValueError, "points: expected an array [P, 2] of coordinates (x, y), got shape (2,)"),
        (np.zeros((4, 3)), ValueError, "points: expected an array [P, 2] of coordinates (x, y), got shape (4, 3)"),
        (np.zeros((0, 2)), ValueError, "points is empty: at least one point is needed"),
        ([[0, 0], [1, np.inf]], ValueError, "points[1] is [ 1. inf]: every coordinate has to be a finite number"),
        ([["a", "b"]], TypeError, "points: expected an array [P, 2] of coordinates (x, y), got"),
    ],
)
def test_points_that_lie_on_no_plane(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        PLANE.points(given)


def test_points_of_a_plane_keep_their_order() -> None:
    assert PLANE.points(torch.tensor([[1.0, 2.0], [0.0, -1.0]])).tolist() == [[1.0, 2.0], [0.0, -1.0]]


def test_a_count_spreads_over_the_span_of_an_axis() -> None:
    low, high = PLANE.span("y")
    np.testing.assert_array_equal(PLANE.along("y", 7), np.linspace(low, high, 7))
    assert random_directions(THREE[0], 1).points(3).tolist() == [-1.0, 0.0, 1.0]


def test_messages_name_the_axis() -> None:
    with pytest.raises(ValueError, match=r"^x\[0\] is nan: every x has to be a finite number$"):
        PLANE.along("x", [np.nan])
    with pytest.raises(ValueError, match=r"^axis 'z': this plane has 'x', 'y'$"):
        PLANE.span("z")
    with pytest.raises(ValueError, match=r"^axis 'x': this line has 'alpha'$"):
        LINE.along("x", 3)


@pytest.mark.parametrize(
    ("path", "kind", "axes", "names"),
    [
        (LINE, "line", ("alpha",), ("theta_0", "theta_T")),
        (PLANE, "plane", ("x", "y"), ("theta_0", "theta_1", "theta_2")),
        (Bezier(*THREE), "bezier", ("alpha",), ("theta_0", "bend", "theta_T")),
        (Polyline(*THREE, THREE[0]), "polyline", ("alpha",), ("theta_0", "bend_1", "bend_2", "theta_T")),
        (TaskVectors(*THREE), "task_vectors", ("alpha",), ("theta_0", "task_1", "task_2")),
        (TaskVectors(*THREE, separate=True), "task_vectors", ("task_1", "task_2"), ("theta_0", "task_1", "task_2")),
        (random_directions(THREE[0], 1), "random_directions", ("alpha",), ("theta", "direction_1")),
        (random_directions(THREE[0]), "random_directions", ("x", "y"), ("theta", "direction_1", "direction_2")),
        (
            random_directions(THREE[0], 3),
            "random_directions",
            ("x1", "x2", "x3"),
            ("theta", "direction_1", "direction_2", "direction_3"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_path_says_of_itself(path: Path, kind: str, axes: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert (path.kind, path.axes, path.names) == (kind, axes, names)
    assert len(path.anchors) == len(names)
    for axis in axes:
        low, high = path.span(axis)
        assert low < high
    # A mark is where the coefficients single its anchor out.
    assert path.marks[0][0] == names[0]
    for name, place in path.marks:
        point = place[0] if len(axes) == 1 else place
        assert path.coefficients(path.points([point]))[0].tolist() == np.eye(len(names))[names.index(name)].tolist()


@pytest.mark.parametrize("make", [Bezier, Polyline])
def test_curves_need_two_anchors(make: Any) -> None:
    with pytest.raises(ValueError, match=f"^{make.__name__}: at least two anchors are needed, got 1$"):
        make(THREE[0])


def test_task_vectors_need_a_task() -> None:
    with pytest.raises(ValueError, match="at least one fine-tuned network"):
        TaskVectors(THREE[0])
