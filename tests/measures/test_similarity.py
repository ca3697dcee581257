from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import cka
from tests.measures.curves import SEEDS, orthogonal

# examples, features of x, features of y: both sides of the choice between features and Gram matrices
SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 12), st.integers(1, 12))


def by_definition(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) with the centring matrix written out."""
    h = np.eye(len(x)) - 1 / len(x)

    def hsic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.trace(a @ a.T @ h @ b @ b.T @ h))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def representations(seed: int, n: int, d1: int, d2: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d1)), rng.standard_normal((n, d2))


@given(SEEDS, SHAPES)
def test_cka_equals_its_definition(seed: int, shape: tuple[int, int, int]) -> None:
    x, y = representations(seed, *shape)
    assert cka(x, y) == pytest.approx(by_definition(x, y), rel=1e-9, abs=1e-12)
    assert -1e-12 <= cka(x, y) <= 1 + 1e-12
    assert cka(x, y) == pytest.approx(cka(y, x), rel=1e-12)


@given(SEEDS, SHAPES, st.sampled_from([1e-200, -3.0, 1e200]))
def test_cka_ignores_orthogonal_maps_scale_shift_and_order(
    seed: int, shape: tuple[int, int, int], scale: float
) -> None:
    x, y = representations(seed, *shape)
    rng = np.random.default_rng(seed)
    found = cka(x, y)
    assert cka(x @ orthogonal(shape[1], rng), y) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert cka(x, scale * y) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert cka(x + 5 * rng.standard_normal(shape[1]), y) == pytest.approx(found, rel=1e-9, abs=1e-12)
    order = rng.permutation(shape[0])
    assert cka(x[order], y[order]) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert cka(x, -2 * x @ orthogonal(shape[1], rng) + 1) == pytest.approx(1)


def test_cka_sees_a_map_that_is_not_orthogonal() -> None:
    x, _ = representations(0, 200, 2, 1)
    assert cka(x, x * [1, 10]) < 0.9


def test_cka_of_unrelated_outputs_is_small() -> None:
    assert cka(*representations(0, 5000, 10, 10)) < 0.01
    assert cka([[1], [-1], [0]], [[1], [1], [-2]]) == 0


@pytest.mark.parametrize("shape", [(3, 1), (3, 50)], ids=["by-features", "by-gram"])
def test_cka_of_outputs_that_do_not_vary_is_nan(shape: tuple[int, int]) -> None:
    x, _ = representations(0, *shape, 1)
    assert math.isnan(cka(np.full(shape, 0.1), x))
    assert math.isnan(cka(x, np.full(shape, 0.1)))
    x[0, 0] = math.inf
    assert math.isnan(cka(x, x))


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        pytest.param(np.zeros((3, 2)), np.zeros((4, 2)), ValueError, "same examples, got 3 and 4", id="examples"),
        pytest.param(np.zeros((1, 2)), np.zeros((1, 2)), ValueError, r"x must .* shape \(1, 2\)", id="one-example"),
        pytest.param(np.zeros((3, 2)), np.zeros((3, 0)), ValueError, r"y must .* shape \(3, 0\)", id="no-features"),
        pytest.param(np.zeros(3), np.zeros((3, 1)), ValueError, "x must be 2-D", id="one-dimensional"),
        pytest.param(np.zeros((3, 1)), np.zeros((3, 1), complex), TypeError, "y must be real", id="complex"),
    ],
)
def test_bad_input_is_refused(x, y, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cka(x, y)
