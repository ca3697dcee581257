"""The straight line between two networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mli_fast.checkpoints import Source

from .base import Path


class Line(Path):
    """The straight line theta(alpha) = (1 - alpha) theta_0 + alpha theta_T (Goodfellow et al. 2014).

    Args:
        theta_0: a state dict, a module, or the path of a checkpoint; alpha = 0.
        theta_T: likewise; alpha = 1.

    Example:
        >>> line = Line("theta_0.pt", "theta_T.pt")
        >>> line.points(3)
        array([0. , 0.5, 1. ])
        >>> line.coefficients([0.25])
        array([[0.75, 0.25]])
    """

    kind = "line"
    names = ("theta_0", "theta_T")
    marks = (("theta_0", (0.0,)), ("theta_T", (1.0,)))

    def __init__(self, theta_0: Source, theta_T: Source) -> None:
        self.anchors = (theta_0, theta_T)

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The coefficients [P, 2] of theta_0 and theta_T at alphas [P]."""
        alphas = np.asarray(points, dtype=np.float64)
        return np.stack([1.0 - alphas, alphas], axis=1)

    def derivatives(self, points: ArrayLike) -> NDArray[np.float64]:
        """Their derivatives [P, 2], -1 and 1 everywhere."""
        return np.tile([-1.0, 1.0], (len(np.asarray(points)), 1))
