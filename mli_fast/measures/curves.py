"""What the measures of a curve share: what counts as a curve, the order of its points, where it falls to a level."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def real_array(name: str, values: ArrayLike, ndim: int) -> Float64:
    """Check that ``values`` is an array of real numbers of ``ndim`` dimensions and return it as float64."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must be {ndim}-D, got shape {array.shape}")
    return array.astype(np.float64)


def real_curve(name: str, values: ArrayLike, least: int = 0) -> Float64:
    """Check that ``values`` is one real curve of at least ``least`` points and return it as float64 [A]."""
    curve = real_array(name, values, ndim=1)
    if curve.size < least:
        has = "is empty" if curve.size == 0 else f"holds {curve.size}"
        raise ValueError(f"{name} {has}: at least {least} needed")
    return curve


def in_order(alphas: ArrayLike, values: ArrayLike, least: int = 0) -> tuple[Float64, Float64]:
    """Check a curve given at ``alphas`` [A] and return both in ascending alpha, equal alphas in the order given."""
    points, curve = real_curve("alphas", alphas), real_curve("values", values, least)
    if points.shape != curve.shape:
        raise ValueError(f"alphas and values must have the same length, got {points.size} and {curve.size}")
    if not np.isfinite(points).all():
        raise ValueError("alphas must be finite, got NaN or infinity")
    order = np.argsort(points, kind="stable")
    return points[order], curve[order]


def falls_to(level: float, alphas: Float64, values: Float64) -> float:
    """Where a straight piece from ``values[0] >= level`` down to ``values[1] <= level`` crosses ``level``.

    Exact at both ends; NaN where that is unknown, as with a NaN. An infinite end counts as a limit: a piece that comes
    down from infinity crosses every level at its lower end.

    >>> falls_to(1.0, np.array([0.0, 0.5]), np.array([2.0, 0.0])), falls_to(1.0, np.ones(2), np.array([np.inf, 0.0]))
    (0.25, 1.0)
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = 1.0 / (1.0 + (level - values[1]) / (values[0] - level))
    return float((1.0 - share) * alphas[0] + share * alphas[1])
