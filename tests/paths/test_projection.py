"""Where networks lie on paths of displacements: the nearest point, as least squares finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mli_fast.paths import TaskVectors, random_directions
from mli_fast.paths.affine import Displacements
from tests.paths.cases import State, at, combined, flat, network, numbers

NETWORKS = tuple(network(seed) for seed in range(4))
PATHS: dict[str, Displacements] = {
    "one-random": random_directions(NETWORKS[0], 1),
    "two-random": random_directions(NETWORKS[0], normalize="layer", zero_vectors=False),
    "three-random": random_directions(NETWORKS[0], 3, normalize=None),
    "one-task": TaskVectors(*NETWORKS[:2]),
    "a-sum-of-tasks": TaskVectors(*NETWORKS[:3]),
    "separate-tasks": TaskVectors(*NETWORKS[:3], separate=True),
}


@pytest.mark.parametrize("case", PATHS)
@given(point=st.lists(numbers, min_size=3, max_size=3))
def test_a_point_of_the_path_lies_there(case: str, point: list[float]) -> None:
    path = PATHS[case]
    place = point[0] if len(path.axes) == 1 else point[: len(path.axes)]
    row = path.coefficients(path.points([place]))[0]
    theta = combined(dict(enumerate(row.tolist())), dict(enumerate(path.anchors)))  # type: ignore[arg-type]
    expected = [*point[: len(path.axes)], 0.0]
    np.testing.assert_allclose(path.project(theta), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", PATHS)
def test_a_network_off_the_path_is_projected_as_by_least_squares(case: str) -> None:
    path, theta = PATHS[case], NETWORKS[3]
    origin = at(path, 0.0 if len(path.axes) == 1 else [0.0] * len(path.axes))
    units = [1.0] if len(path.axes) == 1 else np.eye(len(path.axes)).tolist()
    directions = np.stack([at(path, unit) - origin for unit in units], axis=1)
    places, *_ = np.linalg.lstsq(directions, flat(theta) - origin, rcond=None)
    distance = np.linalg.norm(flat(theta) - origin - directions @ places)
    np.testing.assert_allclose(path.project(theta), [*places, distance], rtol=1e-10, atol=1e-12)


def test_the_origin_is_at_zero_whatever_its_running_statistics_are() -> None:
    moved: State = {**NETWORKS[0], "norm.running_mean": NETWORKS[0]["norm.running_mean"] + 5}
    assert PATHS["two-random"].project(moved) == (0.0, 0.0, 0.0)


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task_vectors depend on each other"):
        TaskVectors(NETWORKS[0], NETWORKS[1], NETWORKS[1], separate=True).project(NETWORKS[2])
    with pytest.raises(ValueError, match=r"head\.weight"):
        PATHS["one-random"].project({**NETWORKS[0], "head.weight": torch.zeros(2, 2, dtype=torch.float64)})
