"""Where a curve rises: its bumps, and its largest step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import Float64, falls_to, in_order, real_curve


@dataclass(frozen=True)
class Bump:
    """One maximal rise of a curve, from a local minimum up to the next local maximum, and how far it reaches.

    Attributes:
        start_alpha: Where it starts: the last point of the local minimum.
        peak_alpha: Where it is highest: the first point of the local maximum.
        end_alpha: Where the curve, straight between its points, first falls back to the value it started from; the
            last alpha if it never does.
        height: Value at the peak less that at the start, in the curve's own units.
        width: ``end_alpha - start_alpha``.
    """

    start_alpha: float
    peak_alpha: float
    end_alpha: float
    height: float
    width: float


def bumps(alphas: ArrayLike, values: ArrayLike) -> list[Bump]:
    """List every maximal rise of a curve: where it is, how wide and how high.

    A rise is a longest stretch of points over which the curve never falls, level pieces included, and ends higher than
    it started; a first or last point can be its minimum or maximum. A dip on the way up makes two rises of one, so that
    min Delta can be more than the highest bump: ``largest_step <= highest bump <= min_delta``. A bump can lie on the
    flank of an earlier one that has not fallen back yet; their widths then overlap.

    Args:
        alphas: Where the curve was evaluated [A], in any order: points are taken in ascending alpha.
        values: The curve [A], real.

    Returns:
        The bumps in ascending alpha; an empty list for a curve that never rises.

    Raises:
        ValueError: If a shape is not 1-D, the lengths differ, an alpha is not finite, or a value is NaN.
        TypeError: If ``alphas`` or ``values`` is not real.

    Examples:
        >>> bumps([0.0, 0.25, 0.5, 0.75, 1.0], [3.0, 1.0, 2.0, 0.0, 0.5])
        [Bump(start_alpha=0.25, peak_alpha=0.5, end_alpha=0.625, height=1.0, width=0.375),
         Bump(start_alpha=0.75, peak_alpha=1.0, end_alpha=1.0, height=0.5, width=0.25)]
        >>> bumps([0.0, 0.5, 1.0], [2.0, 1.0, 1.0])
        []
    """
    points, curve = in_order(alphas, values)
    gaps = points[np.isnan(curve)]
    if gaps.size:
        raise ValueError(
            f"values is NaN at alpha = {gaps[0]:g}, where it rises is then not known; leave such points out"
        )
    falls = np.flatnonzero(curve[1:] < curve[:-1]) + 1
    bounds = [0, *falls.tolist(), curve.size] if curve.size else [0]
    found = []
    for first, behind in pairwise(bounds):
        stretch = curve[first:behind]  # never falls: it is sorted
        if stretch[-1] > stretch[0]:
            start = first + int(np.searchsorted(stretch, stretch[0], side="right")) - 1
            peak = first + int(np.searchsorted(stretch, stretch[-1], side="left"))
            found.append(_bump(points, curve, start, peak))
    return found


def largest_step(values: ArrayLike) -> float:
    """Largest rise between neighbours, ``max(L[j + 1] - L[j])``: the Delta of some published code.

    min Delta compares every pair of points and adds up a rise that takes several of them; this one sees only
    neighbours, so that it is at most min Delta and shrinks as the grid gets finer.

    Args:
        values: The curve [A] in ascending alpha, real.

    Returns:
        The rise in the units of ``values``; 0.0 if the curve never rises, NaN if it holds a NaN. Two equal infinities
        count as no rise.

    Raises:
        ValueError: If ``values`` is not 1-D or is empty.
        TypeError: If ``values`` is not real.

    Examples:
        >>> largest_step([3.0, 1.0, 2.0, 3.5, 0.0])  # min Delta is 2.5
        1.5
        >>> largest_step([3.0, 2.0, 2.0])
        0.0
    """
    curve = real_curve("values", values, least=1)
    if np.isnan(curve).any():
        return float("nan")
    steps = np.zeros(curve.size - 1)
    # Neighbours that do not rise stay at 0 instead of being subtracted: infinity minus infinity would be NaN.
    np.subtract(curve[1:], curve[:-1], out=steps, where=curve[1:] > curve[:-1])
    return float(steps.max(initial=0.0))


def _bump(points: Float64, curve: Float64, start: int, peak: int) -> Bump:
    below = np.flatnonzero(curve[peak:] <= curve[start])
    end = points[-1]
    if below.size:
        after = peak + int(below[0])
        end = falls_to(curve[start], points[after - 1 : after + 1], curve[after - 1 : after + 1])
    return Bump(
        start_alpha=float(points[start]),
        peak_alpha=float(points[peak]),
        end_alpha=float(end),
        height=float(curve[peak] - curve[start]),
        width=float(end - points[start]),
    )
