"""Schedules as functions, and the coefficients they give along a path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.paths import Bezier, Line, Path, Plane, Polyline, TaskVectors
from mli_fast.schedules import assign, coefficients, derivatives, power
from tests.paths.cases import network
from tests.schedules.networks import Plain

NETWORKS = tuple(network(seed) for seed in range(3))
LINE = Line(*NETWORKS[:2])
PATHS = [LINE, Bezier(*NETWORKS), Polyline(*NETWORKS), TaskVectors(*NETWORKS)]

alphas = st.lists(st.floats(0, 1.5, allow_subnormal=False), min_size=1, max_size=9)


class Sine:
    def __call__(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sin(a)

    def derivative(self, a: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cos(a)

    def __str__(self) -> str:
        return "sine"


def table(path: Path, points: Any, schedule: Any, key: str = "fc1.bias") -> NDArray[np.float64]:
    return coefficients(path, points, assign(Plain(), {key: schedule}))[key]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)
@given(points=alphas, exponent=st.floats(0.1, 5))
def test_powers_are_the_path_at_the_power(path: Path, points: list[float], exponent: float) -> None:
    a = np.array(points)
    np.testing.assert_array_equal(table(path, a, power(exponent)), path.coefficients(a**exponent))
    np.testing.assert_array_equal(table(path, a, "linear"), path.coefficients(a))
    np.testing.assert_array_equal(table(path, a, Sine()), path.coefficients(np.sin(a)))
    np.testing.assert_allclose(table(path, a, power(exponent)).sum(1), 1.0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("path", PATHS[:3], ids=lambda path: path.kind)
def test_frozen_is_one_hot(path: Path) -> None:
    a = np.linspace(-1, 2, 7)
    first, last = np.eye(len(path.anchors))[[0, -1]]
    assert (table(path, a, "start") == first).all()
    assert (table(path, a, "end") == last).all()


@pytest.mark.parametrize("schedule", [power(0.5), power(3), "linear", "homogeneous"])
def test_endpoints_are_one_hot_on_every_schedule(schedule: Any) -> None:
    np.testing.assert_array_equal(table(LINE, [0.0, 1.0], schedule), np.eye(2))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.kind)
@pytest.mark.parametrize("schedule", [power(0.5), power(2), power(3.5), "linear", "start", "end", Sine()], ids=str)
def test_derivatives_follow_the_chain_rule(path: Path, schedule: Any) -> None:
    a, h = np.array([0.1, 0.3, 0.7, 0.9, 1.2]), 1e-6  # off the bends, also after a schedule
    assigned = assign(Plain(), {"head.bias": schedule})
    up, down = (coefficients(path, a + d, assigned)["head.bias"] for d in (h, -h))
    np.testing.assert_allclose(derivatives(path, a, assigned)["head.bias"], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)


def test_equal_schedules_share_one_array() -> None:
    wave = Sine()
    schedule = {"fc1": power(2), "fc2.bias": power(2.0), "fc2.weight": wave, "head.weight": wave, "head.bias": "start"}
    assigned = assign(Plain(), schedule)
    for tables in (coefficients(LINE, [0.25, 1.0], assigned), derivatives(LINE, [0.25, 1.0], assigned)):
        assert tables.keys() == assigned.keys()
        assert tables["fc1.weight"] is tables["fc1.bias"] is tables["fc2.bias"]
        assert tables["fc2.weight"] is tables["head.weight"]
        assert len({id(value) for value in tables.values()}) == 3


def test_functions_may_return_tensors_and_cannot_change_the_alphas() -> None:
    def squared(a: Any) -> torch.Tensor:
        a *= a
        return torch.from_numpy(a)

    points = np.array([0.5, 1.0])
    np.testing.assert_array_equal(table(LINE, points, squared), LINE.coefficients([0.25, 1.0]))
    assert points.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda a: a[:1], r"^group 'fc1.bias': schedule <lambda> gave shape \(1,\) for alphas of shape \(2,\)"),
        (lambda a: 0.5, r"^group 'fc1.bias': schedule <lambda> gave shape \(\) for alphas"),
        (lambda a: a / 0 * 0, r"^group 'fc1.bias': schedule <lambda> is nan at alpha=-0.5$"),
        (lambda a: ["x", "y"], r"^group 'fc1.bias': schedule <lambda> gave \['x', 'y'\], not numbers"),
        (power(0.5), r"^group 'fc1.bias': schedule power\(0.5\) is nan at alpha=-0.5$"),
    ],
    ids=["short", "scalar", "nan", "strings", "root"],
)
def test_functions_that_give_no_schedule(schedule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(LINE, np.array([-0.5, 1.0]), schedule)


def test_a_group_is_called_what_the_caller_called_it() -> None:
    with pytest.raises(ValueError, match=r"^group 'fc\?\.bias': "):
        coefficients(LINE, [0.5], assign(Plain(), {"fc?.bias": lambda a: np.zeros(5)}))


def test_derivatives_that_are_not_there() -> None:
    with pytest.raises(
        ValueError, match=r"^group 'fc1': the derivative of schedule <lambda> is needed; give the funct"
    ):
        derivatives(LINE, [0.5], assign(Plain(), {"fc1": lambda a: a}))
    with pytest.raises(ValueError, match=r"^group 'fc1': the derivative of schedule power\(0.5\) is inf at alpha=0.0$"):
        derivatives(LINE, [0.0, 0.5], assign(Plain(), {"fc1": power(0.5)}))


@pytest.mark.parametrize("exponent", [0, -1.0, np.inf, np.nan])
def test_powers_that_leave_the_endpoints(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"the exponent has to be a finite number above 0$"):
        power(exponent)


@pytest.mark.parametrize("function", [coefficients, derivatives])
def test_a_plane_takes_no_schedule(function: Any) -> None:
    with pytest.raises(ValueError, match=r"^schedule: a plane with the axes x, y takes none"):
        function(Plane(*NETWORKS), np.zeros((1, 2)), assign(Plain(), {"bias": "start"}))
