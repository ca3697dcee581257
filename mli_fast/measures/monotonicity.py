"""How far a curve is from never rising: min Delta, the largest draw-up (Lucas et al. 2021, arXiv:2104.11044)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import Float64, in_order, real_curve


@dataclass(frozen=True)
class Monotonicity:
    """Whether a curve has the monotonic linear interpolation property, and where it fails most.

    Attributes:
        min_delta: Largest rise ``max(L[j] - L[i])`` over ``i < j``, in the curve's own units; 0.0 if it never rises,
            NaN if the curve holds a NaN.
        monotone: ``min_delta <= tol``. False where min_delta is NaN: a curve with a gap is not shown to be monotone.
        start_alpha: Where the largest rise starts, NaN if there is none.
        end_alpha: Where the largest rise ends, NaN if there is none.
        tol: The rise that was still allowed.
    """

    min_delta: float
    monotone: bool
    start_alpha: float
    end_alpha: float
    tol: float


def min_delta(values: ArrayLike) -> float:
    """Largest draw-up of a curve, ``max(L[j] - L[i])`` over all ``i < j``: the least tolerance that makes it monotone.

    Unlike the largest adjacent step, it adds up a rise that takes several points; unlike the published
    ``eval_monotonic``, it sees a rise that only starts at the last-but-one point.

    Args:
        values: The curve [A] in ascending alpha, real.

    Returns:
        The rise in the units of ``values``; 0.0 if the curve never rises, NaN if it holds a NaN. Two equal infinities
        count as no rise.

    Raises:
        ValueError: If ``values`` is not 1-D or is empty.
        TypeError: If ``values`` is not real.

    Examples:
        >>> min_delta([2.0, 1.5, 1.0, 0.5, 5.0])
        4.5
        >>> min_delta([3.0, 1.0, 2.0, 1.5, 2.5, 0.0])
        1.5
        >>> min_delta([3.0, 2.0, 2.0, 1.0])
        0.0
    """
    return _largest_rise(real_curve("values", values, least=1))[0]


def monotonicity(alphas: ArrayLike, values: ArrayLike, tol: float = 0.0) -> Monotonicity:
    """Test the monotonic linear interpolation property: the curve does not rise by more than ``tol`` on [0, 1].

    The points may come in any order: they are taken in ascending alpha (points of equal alpha in the order given), and
    those outside [0, 1] are left out, for the property is one of the segment between the two endpoints.

    Args:
        alphas: Where the curve was evaluated [A], finite.
        values: The curve [A], real.
        tol: Rise still taken as monotone, in the units of ``values``.

    Returns:
        min Delta, the verdict, and where the largest rise starts and ends.

    Raises:
        ValueError: If a shape is not 1-D, the lengths differ, an alpha is not finite, none lies in [0, 1], or ``tol``
            is negative or NaN.
        TypeError: If ``alphas`` or ``values`` is not real.

    Examples:
        >>> monotonicity([0.0, 0.5, 1.0], [2.0, 1.0, 1.25])
        Monotonicity(min_delta=0.25, monotone=False, start_alpha=0.5, end_alpha=1.0, tol=0.0)
        >>> monotonicity([1.0, 0.0, 0.5, 1.5], [0.5, 2.0, 1.0, 9.0]).monotone
        True
    """
    points, curve = in_order(alphas, values)
    if not tol >= 0.0:
        raise ValueError(f"tol must be zero or more, got {tol}")
    inside = (points >= 0.0) & (points <= 1.0)
    if not inside.any():
        raise ValueError("no alpha lies in [0, 1], where monotonicity is defined")
    points, curve = points[inside], curve[inside]

    rise, start, end = _largest_rise(curve)
    found = rise > 0.0
    return Monotonicity(
        min_delta=rise,
        monotone=rise <= tol,
        start_alpha=float(points[start]) if found else math.nan,
        end_alpha=float(points[end]) if found else math.nan,
        tol=float(tol),
    )


def _largest_rise(curve: Float64) -> tuple[float, int, int]:
    """Largest rise of a curve [A], A >= 1, and the indices where it starts and ends, in one pass: O(A)."""
    if np.isnan(curve).any():
        return math.nan, 0, 0
    lowest = np.minimum.accumulate(curve)
    rises = np.zeros_like(curve)
    # Equal values are left at 0 instead of subtracted: infinity minus infinity would be NaN.
    np.subtract(curve, lowest, out=rises, where=curve != lowest)
    end = int(np.argmax(rises))
    # The last of several equal minima, so that the interval named is the shortest one.
    start = int(np.flatnonzero(curve[: end + 1] == lowest[end])[-1])
    return float(rises[end]), start, end
