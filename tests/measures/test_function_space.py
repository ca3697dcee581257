from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import gauss_length, gauss_lengths, path_length, path_lengths
from tests.measures.curves import SEEDS, orthogonal

LENGTHS = pytest.mark.parametrize("lengths", [gauss_lengths, path_lengths])


@st.composite
def walks(draw: st.DrawFn) -> NDArray[np.float64]:
    """Outputs [A, N, C] of small whole numbers: with repeated points, reversals and straight pieces."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4)))
    steps = draw(st.lists(st.integers(-2, 2), min_size=math.prod(shape), max_size=math.prod(shape)))
    return np.cumsum(np.array(steps, dtype=np.float64).reshape(shape), axis=0)


def arc(points: int, angle: float = math.pi) -> NDArray[np.float64]:
    t = np.linspace(0, angle, points)
    return np.stack([np.cos(t), np.sin(t)], axis=-1)[:, None, :]


def turning_in_the_plane(path: NDArray[np.float64]) -> float:
    """The sum of turning angles of one path [A, 2], by complex division."""
    chords = np.diff(path @ np.array([1, 1j]))
    chords = chords[chords != 0]
    return float(np.abs(np.angle(chords[1:] / chords[:-1])).sum())


@pytest.mark.parametrize("points", [3, 10, 50])
def test_arc_of_angle_pi(points: int) -> None:
    assert gauss_length(arc(points)) == pytest.approx(math.pi * (1 - 1 / (points - 1)), rel=1e-12)
    assert path_length(arc(points)) == pytest.approx(2 * (points - 1) * math.sin(math.pi / 2 / (points - 1)))


def test_arc_in_the_limit() -> None:
    assert gauss_length(arc(100_001)) == pytest.approx(math.pi, rel=2e-5)
    assert path_length(arc(100_001)) == pytest.approx(math.pi, rel=1e-9)


@pytest.mark.parametrize(
    ("path", "gauss", "length"),
    [
        pytest.param([[0, 0], [1, 0], [3, 0]], 0, 3, id="straight"),
        pytest.param([[0, 0], [2, 0], [1, 0]], math.pi, 3, id="turns-back"),
        pytest.param([[0, 0], [1, 0], [1, 0], [1, 1]], math.pi / 2, 2, id="rests-in-a-corner"),
        pytest.param([[1, 1], [1, 1], [1, 2]], 0, 1, id="rests-at-the-start"),
        pytest.param([[1, 1], [1, 1], [1, 1]], 0, 0, id="never-moves"),
        pytest.param([[0, 0], [3, 4]], 0, 5, id="two-points"),
        pytest.param([[3, 4]], 0, 0, id="one-point"),
        pytest.param([[0, 0], [math.inf, 0], [1, 1]], math.nan, math.nan, id="infinite"),
        pytest.param([[0, 0], [math.nan, 0], [1, 1]], math.nan, math.nan, id="nan"),
    ],
)
def test_lengths_of_hand_made_paths(path: list[list[float]], gauss: float, length: float) -> None:
    outputs = np.array(path)[:, None, :]
    assert gauss_length(outputs) == pytest.approx(gauss, nan_ok=True)
    assert path_length(outputs) == pytest.approx(length, nan_ok=True)


def test_mean_is_over_examples_and_a_nan_stays_with_its_example() -> None:
    outputs = np.concatenate([arc(5), np.linspace([[0, 0]], [[4, 0]], 5)], axis=1)
    assert gauss_lengths(outputs) == pytest.approx([math.pi * 3 / 4, 0])
    assert gauss_length(outputs) == pytest.approx(math.pi * 3 / 8)
    assert path_length(outputs) == pytest.approx((path_length(arc(5)) + 4) / 2)
    outputs[2, 0, 0] = math.nan
    assert gauss_lengths(outputs) == pytest.approx([math.nan, 0], nan_ok=True)
    assert path_lengths(outputs) == pytest.approx([math.nan, 4], nan_ok=True)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, math.pi - 1e-8])
def test_angles_are_exact_where_the_arc_cosine_is_not(angle: float) -> None:
    path = [[[0, 0]], [[-1, 0]], [[-1 - math.cos(angle), math.sin(angle)]]]
    assert gauss_length(path) == pytest.approx(angle, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_outputs_may_be_tiny_or_huge(scale: float) -> None:
    assert gauss_length(scale * arc(9)) == pytest.approx(gauss_length(arc(9)))
    assert path_length(scale * arc(9)) == pytest.approx(scale * path_length(arc(9)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_low_precision_outputs_are_differenced_in_fp64(dtype: type) -> None:
    outputs = np.array([[[2000]], [[-2000]], [[2000]]], dtype=dtype)
    assert path_length(17 * outputs.astype(np.float64)) == 17 * path_length(outputs) == 17 * 8000


@given(walks())
def test_lengths_equal_plain_loops(outputs: NDArray[np.float64]) -> None:
    for i, path in enumerate(np.moveaxis(outputs, 1, 0)):
        assert path_lengths(outputs)[i] == pytest.approx(sum(math.dist(a, b) for a, b in pairwise(path)))
        if path.shape[1] == 2:
            assert gauss_lengths(outputs)[i] == pytest.approx(turning_in_the_plane(path), abs=1e-12)


@LENGTHS
@given(outputs=walks(), seed=SEEDS)
def test_lengths_under_rigid_motion_scaling_and_reversal(lengths, outputs: NDArray[np.float64], seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor = 8.0 if lengths is path_lengths else 1.0
    found = lengths(outputs)
    # Scaling by a power of two and reversal leave a point that rests at rest; a rotation would let it jitter.
    assert lengths(8 * outputs) == pytest.approx(factor * found, abs=1e-12)
    assert lengths(outputs[::-1]) == pytest.approx(found, abs=1e-12)
    noisy = outputs + rng.standard_normal(outputs.shape)
    turned = noisy @ orthogonal(outputs.shape[2], rng) + rng.standard_normal(outputs.shape[2])
    assert lengths(turned) == pytest.approx(lengths(noisy), abs=1e-6)


@LENGTHS
@given(outputs=walks(), where=st.integers(0, 6))
def test_lengths_grow_under_refinement_and_ignore_repeated_points(
    lengths, outputs: NDArray[np.float64], where: int
) -> None:
    where %= len(outputs)
    assert lengths(np.insert(outputs, where, outputs[where], axis=0)) == pytest.approx(lengths(outputs), abs=1e-12)
    if len(outputs) > 1:
        assert (lengths(np.delete(outputs, where, axis=0)) <= lengths(outputs) + 1e-9).all()


@pytest.mark.parametrize("measure", [gauss_length, gauss_lengths, path_length, path_lengths])
@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        pytest.param(np.zeros((3, 2)), ValueError, r"3-D, got shape \(3, 2\)", id="two-dimensional"),
        pytest.param(np.zeros((3, 0, 2)), ValueError, r"empty: shape \(3, 0, 2\)", id="no-examples"),
        pytest.param(np.zeros((0, 1, 2)), ValueError, "empty", id="no-points"),
        pytest.param(np.zeros((3, 1, 2), complex), TypeError, "logits must be real", id="complex"),
    ],
)
def test_bad_input_is_refused(measure, logits: NDArray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(logits)
