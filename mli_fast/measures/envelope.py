"""How far a curve is from convex: its gap to its lower convex envelope."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import Float64, in_order


def convexity(alphas: ArrayLike, values: ArrayLike) -> float:
    """Largest violation of convexity: how far the curve rises above a chord between two of its points; 0 if convex.

    It is ``max over i < j < k of L_j - chord(L_i, L_k)(alpha_j)``, 0 if that is negative, and equals the largest gap
    between the curve and its lower convex envelope, from which it is computed: exactly, in one pass (Andrew's monotone
    chain). It is at least the chord barrier, whose one chord joins the two ends. (A definition of ours; what it tests
    is convexity along the path as Goodfellow et al. 2014, arXiv:1412.6544, look at it.)

    Args:
        alphas: Where the curve was evaluated [A], in any order, all different: points are taken in ascending alpha.
        values: The curve [A], real.

    Returns:
        The violation in the units of ``values``, zero or more; NaN if the curve is not finite.

    Raises:
        ValueError: If a shape is not 1-D, the lengths differ, there is no point, or an alpha is not finite or comes
            twice.
        TypeError: If ``alphas`` or ``values`` is not real.

    Examples:
        >>> convexity([0.0, 0.5, 1.0], [1.0, 0.25, 0.0])
        0.0
        >>> convexity([0.0, 0.25, 0.5, 1.0], [1.0, 1.0, 0.0, 2.0])  # the chord from 0 to 0.5
        0.5
    """
    points, curve = in_order(alphas, values, least=1)
    twice = points[1:][np.diff(points) == 0.0]
    if twice.size:
        raise ValueError(f"alphas must all be different, got {twice[0]:g} twice")
    if not np.isfinite(curve).all():
        return float("nan")
    hull = _lower_hull(points, curve)
    return float(np.max(curve - np.interp(points, points[hull], curve[hull])))


def _lower_hull(x: Float64, y: Float64) -> list[int]:
    """Indices of the corners of the lower convex hull of points in ascending x, the first and the last included."""
    hull: list[int] = []
    for k in range(x.size):
        while len(hull) > 1:
            i, j = hull[-2:]
            if (y[j] - y[i]) * (x[k] - x[i]) < (y[k] - y[i]) * (x[j] - x[i]):
                break
            hull.pop()  # j lies on or above the line from i to k
        hull.append(k)
    return hull
