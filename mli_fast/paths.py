"""Paths through parameter space: which points, and each as coefficients of the anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Line:
    """The straight line theta(alpha) = (1 - alpha) theta_0 + alpha theta_T.

    Args:
        alphas: a count (that many from 0 to 1, both ends included), or any 1-D sequence, array or tensor of numbers;
            values outside [0, 1] extrapolate.

    Raises:
        ValueError: no alphas, not 1-D, NaN or infinite.
        TypeError: not numbers.

    Example:
        >>> Line(3).alphas
        array([0. , 0.5, 1. ])
        >>> Line([0.25]).coefficients()
        array([[0.75, 0.25]])
    """

    def __init__(self, alphas: int | Sequence[float] | Any) -> None:
        if isinstance(alphas, bool):
            raise TypeError("alphas: expected a count or a 1-D sequence of numbers, got a bool")
        if isinstance(alphas, (int, np.integer)):
            if alphas < 1:
                raise ValueError(f"alphas={alphas}: at least one point is needed")
            alphas = np.linspace(0.0, 1.0, int(alphas))
        if hasattr(alphas, "detach"):
            alphas = alphas.detach().cpu().double().numpy()
        try:
            values = np.array(alphas, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"alphas: expected a count or a 1-D sequence of numbers, got {alphas!r}") from error
        if values.ndim != 1:
            raise ValueError(f"alphas: expected a 1-D sequence, got shape {values.shape}")
        if values.size == 0:
            raise ValueError("alphas is empty: at least one point is needed")
        if not np.isfinite(values).all():
            where = np.flatnonzero(~np.isfinite(values))[0]
            raise ValueError(f"alphas[{where}] is {values[where]}: every alpha has to be a finite number")
        self.alphas: NDArray[np.float64] = values

    def coefficients(self) -> NDArray[np.float64]:
        """The coefficients [P, 2] of theta_0 and theta_T."""
        return np.stack([1.0 - self.alphas, self.alphas], axis=1)
