"""Curves that several tests draw on."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

# Whole numbers, scaled by powers of two and shifted by whole numbers, are exact in fp64: equal means equal.
WHOLE = st.integers(-1000, 1000)
POWERS = st.integers(-20, 20).map(lambda exponent: 2.0**exponent)
CURVES = st.lists(WHOLE, min_size=2, max_size=30).map(lambda values: np.array(values, dtype=np.float64))
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def placed_curves(draw: st.DrawFn, least: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Different alphas in ascending order, multiples of 1/64, and a value at each."""
    alphas = draw(st.lists(st.integers(-64, 128), min_size=least, max_size=20, unique=True).map(sorted))
    values = draw(st.lists(WHOLE, min_size=len(alphas), max_size=len(alphas)))
    return np.array(alphas) / 64, np.array(values, dtype=np.float64)


def reference_curve() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Test loss of a ResNet-20 on CIFAR-10 at 50 alphas, straight between the four points known of it."""
    alphas = np.linspace(0, 1, 50)
    return alphas, np.interp(alphas, alphas[[0, 25, 45, 49]], [2.3244, 1.0373, 0.3339, 0.3538])


def orthogonal(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random orthogonal matrix [size, size]."""
    return np.linalg.qr(rng.standard_normal((size, size)))[0]
