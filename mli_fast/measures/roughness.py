"""How rough a landscape is: total variation of a curve, and its spread over directions (Wu et al. 2021)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import real_array, real_curve


def total_variation(values: ArrayLike) -> float:
    """Normalised total variation ``T = sum |J[j + 1] - J[j]| / (max J - min J)`` (Wu et al. 2021, arXiv:2103.11069).

    T is at least 1, and 1 on a monotone curve only; every detour adds its ups and downs. A constant curve, where it is
    0 / 0, counts as the monotone curve it is: 1.

    Args:
        values: The curve [A] in ascending alpha, at least two points, real.

    Returns:
        T, without unit; NaN if the curve is not finite.

    Raises:
        ValueError: If ``values`` is not 1-D or has fewer than two points.
        TypeError: If ``values`` is not real.

    Examples:
        >>> total_variation([3.0, 2.0, 0.5])
        1.0
        >>> total_variation([1.0, 0.0, 1.0])
        2.0
    """
    curve = real_curve("values", values, least=2)
    with np.errstate(invalid="ignore"):
        span = curve.max() - curve.min()
        return 1.0 if span == 0.0 else float(np.abs(np.diff(curve)).sum() / span)


def roughness_index(curves: ArrayLike) -> float:
    """Roughness index ``RI = std(T) / mean(T)`` over curves along random directions (Wu et al. 2021, arXiv:2103.11069).

    T is `total_variation` of each curve; std is that of the population (divided by M, as NumPy's default), so that RI
    describes the M directions drawn. 0 where all directions are equally rough.

    Args:
        curves: A curve per direction [M, points], at least two of each, real.

    Returns:
        RI, without unit; NaN if a curve is not finite.

    Raises:
        ValueError: If ``curves`` is not 2-D or has fewer than two curves or points.
        TypeError: If ``curves`` is not real.

    Examples:
        >>> roughness_index([[2.0, 1.0, 0.0], [1.0, 0.0, 1.0]])  # T = 1 and 2
        0.3333333333333333
        >>> roughness_index([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
        0.0
    """
    checked = real_array("curves", curves, ndim=2)
    if min(checked.shape) < 2:
        raise ValueError(f"curves must hold at least 2 curves of at least 2 points, got shape {checked.shape}")
    variations = [total_variation(curve) for curve in checked]
    return float(np.std(variations) / np.mean(variations))
