"""Where a curve has to be evaluated so that what is between its points is known as well."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
START = 9  # alphas of the first round
SAFETY = 0.25  # of the tolerance: what a left-out point may be missed by, for its interval is twice as wide as any left
NEIGHBOURS = 6  # points on either side that predict a left-out one; further ones hardly count
NARROWEST = 2.0**-14


class NotResolvedWarning(UserWarning):
    """The curve bends more than the points allowed can follow."""


def interpolant(alphas: ArrayLike, values: ArrayLike) -> Callable[[ArrayLike], Array]:
    """The cubic spline through the points of a curve (not-a-knot; a parabola, line or constant through 3, 2, 1).

    Args:
        alphas: [A], in any order, each once.
        values: [A]; those that are not finite are left out, and next to them the curve is NaN.

    Returns:
        A function of alphas [...] -> values [...]; NaN outside the points' range.

    Raises:
        ValueError: no points, unequal lengths, or an alpha twice.

    Example:
        >>> curve = interpolant([0.0, 0.5, 1.0], [1.0, 0.25, 0.0])
        >>> curve([0.25, 0.75, 2.0])
        array([0.5625, 0.0625,    nan])
    """
    x, y = np.asarray(alphas, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"alphas and values must be 1-D, alike and not empty, got shapes {x.shape} and {y.shape}")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if (np.diff(x) == 0).any():
        raise ValueError(f"alpha {x[:-1][np.diff(x) == 0][0]:g} is there twice: which of its values holds?")
    finite = np.isfinite(y)
    known = _spline(x[finite], y[finite]) if finite.any() else lambda at: np.full(np.shape(at), np.nan)

    def curve(at: ArrayLike) -> Array:
        at = np.asarray(at, np.float64)
        right = np.clip(np.searchsorted(x, at), 0, len(x) - 1)
        left = np.where(x[right] == at, right, np.maximum(right - 1, 0))
        inside = (at >= x[0]) & (at <= x[-1]) & finite[left] & finite[right]
        return np.where(inside, known(at), np.nan)

    return curve


def refine(
    evaluate: Callable[[Array], ArrayLike], tol: float, *, start: int = START, most: int = 257
) -> tuple[Array, Array]:
    """Bisects [0, 1] where a curve bends, until its `interpolant` is within `tol` of it as far as its points can tell.

    Each point but the ends is predicted from its neighbours without it. Where the prediction misses by more than a
    quarter of `tol`, the intervals on both sides get a point in the middle; all of these are one call of `evaluate`.
    What lies whole between two points of a straight part, such as a barrier much narrower than the first round's
    spacing, cannot be seen.

    Args:
        evaluate: new alphas [n] -> values [n].
        tol: the error allowed, in units of the values.
        start: alphas of the first round, evenly spaced over [0, 1]; at least 3.
        most: alphas in all; where they do not suffice, a `NotResolvedWarning` says where the curve is not known.

    Returns:
        The alphas, ascending, ends included, and the values. Values that are not finite end the search around them.

    Raises:
        ValueError: `tol` not above 0, or counts that do not fit.

    Example:
        >>> alphas, values = refine(lambda alphas: (1 - alphas**2) ** 2, tol=1e-3)
        >>> len(alphas), bool(abs(interpolant(alphas, values)(0.3) - 0.91**2) < 1e-3)
        (17, True)
    """
    if not 0.0 < tol < np.inf:
        raise ValueError(f"tol={tol}: expected a number above 0, in units of the loss")
    if not 3 <= start <= most:
        raise ValueError(f"start={start}, most={most}: at least 3 alphas are needed to begin with, and most of them")
    alphas = np.linspace(0.0, 1.0, start)
    values = np.asarray(evaluate(alphas), np.float64)
    while True:
        missed = _missed(alphas, values) > SAFETY * tol
        wanted = (missed[:-1] | missed[1:]) & (np.diff(alphas) > NARROWEST)
        wanted &= np.isfinite(values[:-1]) & np.isfinite(values[1:])
        if not wanted.any():
            return alphas, values
        new = ((alphas[:-1] + alphas[1:]) / 2)[wanted]
        if len(alphas) + len(new) > most:
            where = f"between alpha {new[0]:.4g} and {new[-1]:.4g}"
            text = f"with {most} points the curve is not known to {tol:g} {where}"
            warnings.warn(text, NotResolvedWarning, stacklevel=2)
            return alphas, values
        joined = np.append(alphas, new), np.append(values, np.asarray(evaluate(new), np.float64))
        order = np.argsort(joined[0])
        alphas, values = joined[0][order], joined[1][order]


def _missed(alphas: Array, values: Array) -> Array:
    """By how much each point is missed by the curve through its neighbours; the ends as the points next to them."""
    errors = np.zeros(len(alphas))
    for i in range(1, len(alphas) - 1):
        near = [j for j in range(max(0, i - NEIGHBOURS), i + NEIGHBOURS + 1) if j != i and j < len(alphas)]
        near = [j for j in near if np.isfinite(values[j])]
        if np.isfinite(values[i]) and len(near) > 1:
            errors[i] = abs(_spline(alphas[near], values[near])(alphas[i]) - values[i])
    errors[0], errors[-1] = errors[1], errors[-2]
    return errors


def _spline(x: Array, y: Array) -> Callable[[ArrayLike], Array]:
    from scipy.interpolate import CubicSpline  # takes a good part of a second to import

    return CubicSpline(x, y) if len(x) > 1 else lambda at: np.full(np.shape(at), y[0])
