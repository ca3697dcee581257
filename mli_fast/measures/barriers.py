"""How far apart two solutions are along a path between them: barriers and mode connectivity."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import in_order, real_curve


def barrier(
    values: ArrayLike, kind: Literal["midpoint", "chord"] = "midpoint", alphas: ArrayLike | None = None
) -> float:
    """Barrier between the two ends of a curve: how far it rises above what its ends would let expect.

    "midpoint" is ``max L - (L[0] + L[-1]) / 2`` (Frankle et al. 2020, arXiv:1912.05671, who call a network stable to
    noise if it is below 2 % error); it is at least half the difference of the ends, also without any hill. "chord" is
    ``max(L - ((1 - t) L[0] + t L[-1]))`` with t from 0 to 1 in proportion to alpha (Entezari et al. 2021,
    arXiv:2110.06296); it is 0 where the curve stays on or below the chord, as every convex one does. Both maxima
    include the ends, and neither depends on the direction of travel.

    Args:
        values: The curve [A], real, of loss or error; in ascending alpha unless ``alphas`` are given.
        kind: Which of the two.
        alphas: Where the curve was evaluated [A], in any order; the ends are at the least and the largest. None: spaced
            evenly.

    Returns:
        The barrier in the units of ``values``, zero or more; NaN if the curve holds a NaN.

    Raises:
        ValueError: If ``kind`` is unknown, a shape is not 1-D, the lengths differ, there are fewer than two points, or
            ``alphas`` are not finite or all the same.
        TypeError: If ``values`` or ``alphas`` is not real.

    Examples:
        >>> barrier([1.0, 4.0, 0.0])
        3.5
        >>> barrier([1.0, 4.0, 0.0], kind="chord", alphas=[0.0, 0.25, 1.0])
        3.25
        >>> barrier([1.0, 0.25, 0.0]), barrier([1.0, 0.25, 0.0], kind="chord")
        (0.5, 0.0)
    """
    if kind not in ("midpoint", "chord"):
        raise ValueError(f"kind must be 'midpoint' or 'chord', got {kind!r}")
    points = np.linspace(0.0, 1.0, np.size(values)) if alphas is None else alphas
    points, curve = in_order(points, values, least=2)
    if points[0] == points[-1]:
        raise ValueError(f"alphas must not all be the same, got {points[0]:g}")
    with np.errstate(invalid="ignore"):
        if kind == "midpoint":
            return float(np.max(curve - (curve[0] + curve[-1]) / 2))
        t = (points - points[0]) / (points[-1] - points[0])
        return float(np.max(curve - ((1.0 - t) * curve[0] + t * curve[-1])))


def mode_connectivity(errors: ArrayLike) -> float:
    """Mode connectivity mc: half the sum of the end errors less the error where that differs most (Yang et al. 2021).

    ``mc = (E[0] + E[-1]) / 2 - E[t*]`` with ``t* = argmax |(E[0] + E[-1]) / 2 - E[t]|`` (arXiv:2107.11228, on a trained
    quadratic Bezier curve, error in percent). Negative: a barrier lies between the two; positive: the path leads
    through something better than both; near 0: they are connected. Unlike `barrier`, it keeps the sign. Of points that
    differ equally the first counts.

    Args:
        errors: The curve [A] in ascending t, both ends included, real.

    Returns:
        mc in the units of ``errors``; NaN if the curve holds a NaN.

    Raises:
        ValueError: If ``errors`` is not 1-D or has fewer than two points.
        TypeError: If ``errors`` is not real.

    Examples:
        >>> mode_connectivity([10.0, 30.0, 12.0])
        -19.0
        >>> mode_connectivity([10.0, 4.0, 12.0])
        7.0
    """
    curve = real_curve("errors", errors, least=2)
    with np.errstate(invalid="ignore"):
        gaps = (curve[0] + curve[-1]) / 2 - curve
    return float(gaps[np.argmax(np.abs(gaps))])
