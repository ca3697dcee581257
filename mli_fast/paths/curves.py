"""Curves through or along several networks: Bezier curves and polylines."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mli_fast.checkpoints import Source

from .base import Path


class Bezier(Path):
    """The Bezier curve of degree n = R - 1: theta(alpha) = sum_k C(n, k) (1 - alpha)^(n - k) alpha^k anchor_k.

    Two anchors are a line, three a quadratic curve (Garipov et al. 2018, arXiv:1802.10026). The curve passes through
    the first and the last anchor; those in between bend it.

    Args:
        anchors: two or more sources, in order.

    Raises:
        ValueError: fewer than two anchors.

    Example:
        >>> Bezier("theta_0.pt", "bend.pt", "theta_T.pt").coefficients([0.0, 0.5, 1.0])
        array([[1.  , 0.  , 0.  ],
               [0.25, 0.5 , 0.25],
               [0.  , 0.  , 1.  ]])
    """

    kind = "bezier"

    def __init__(self, *anchors: Source) -> None:
        self.anchors, self.names = anchors, _names("Bezier", anchors)
        self.marks = ((self.names[0], (0.0,)), (self.names[-1], (1.0,)))

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The Bernstein polynomials [P, R] at alphas [P]."""
        return _bernstein(np.asarray(points, dtype=np.float64), len(self.anchors) - 1)

    def derivatives(self, points: ArrayLike) -> NDArray[np.float64]:
        """Their derivatives [P, R]."""
        degree = len(self.anchors) - 1
        lower = np.pad(_bernstein(np.asarray(points, dtype=np.float64), degree - 1), ((0, 0), (1, 1)))
        return degree * (lower[:, :-1] - lower[:, 1:])


class Polyline(Path):
    """Straight segments from anchor to anchor, each an equal share of alpha: anchor k is at alpha = k / (R - 1).

    Args:
        anchors: two or more sources, in order.

    Raises:
        ValueError: fewer than two anchors.

    Example:
        >>> Polyline("theta_0.pt", "bend.pt", "theta_T.pt").coefficients([0.25, 0.5, 1.0])
        array([[0.5, 0.5, 0. ],
               [0. , 1. , 0. ],
               [0. , 0. , 1. ]])
    """

    kind = "polyline"

    def __init__(self, *anchors: Source) -> None:
        self.anchors, self.names = anchors, _names("Polyline", anchors)
        self.marks = tuple((name, (k / (len(anchors) - 1),)) for k, name in enumerate(self.names))

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The coefficients [P, R] at alphas [P]: two neighbours' at most, one anchor's alone at a bend."""
        segment, share = self._segments(points)
        held, rows = np.zeros((len(segment), len(self.anchors))), np.arange(len(segment))
        held[rows, segment], held[rows, segment + 1] = 1.0 - share, share
        return held

    def derivatives(self, points: ArrayLike) -> NDArray[np.float64]:
        """Their derivatives [P, R]: at a bend those of the segment that begins there, at alpha = 1 of the last one."""
        segment, _ = self._segments(points)
        held, rows, count = np.zeros((len(segment), len(self.anchors))), np.arange(len(segment)), len(self.anchors) - 1
        held[rows, segment], held[rows, segment + 1] = -count, count
        return held

    def _segments(self, points: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The segment each alpha [P] lies on and how far along it; the outer ones extrapolate."""
        count = len(self.anchors) - 1
        along = np.asarray(points, dtype=np.float64) * count
        nearest = np.rint(along)
        at_bend = np.abs(along - nearest) <= 4 * np.spacing(np.abs(nearest))  # 1 / 49 * 49 is not 1
        along = np.where(at_bend, nearest, along)
        segment = np.clip(np.floor(along), 0, count - 1)
        return segment.astype(np.intp), along - segment


def _names(kind: str, anchors: tuple[Source, ...]) -> tuple[str, ...]:
    """What the anchors are called: the ends, and the bends, numbered where there are several."""
    count = len(anchors)
    if count < 2:
        raise ValueError(f"{kind}: at least two anchors are needed, got {count}")
    bends = ["bend"] if count == 3 else [f"bend_{k}" for k in range(1, count - 1)]
    return ("theta_0", *bends, "theta_T")


def _bernstein(t: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """The Bernstein polynomials [P, degree + 1]; exactly one-hot at t = 0 and 1."""
    return np.stack([math.comb(degree, k) * (1.0 - t) ** (degree - k) * t**k for k in range(degree + 1)], axis=1)
