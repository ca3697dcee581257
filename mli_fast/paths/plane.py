"""The plane through three networks, with coordinates in parameter distance."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mli_fast.checkpoints import Source, load_state

from .base import Path
from .geometry import State, counted, dot, load_alike, nearest, step, total

MARGIN = 0.2  # of the anchors' extent, on either side


class Plane(Path):
    """theta_0 + x u + y v: the plane through three networks (Garipov et al. 2018, arXiv:1802.10026).

    u points from theta_0 to theta_1, v is the part of theta_2 - theta_0 orthogonal to it (Gram-Schmidt, in float64);
    both have length 1, so that distances in (x, y) are distances between parameters. Floating-point entries count,
    running_mean and running_var do not, and values tied in theta_0 count once.

    Args:
        theta_0: the origin: a state dict, a module, or the path of a checkpoint.
        theta_1: a network on the positive x axis.
        theta_2: a network in the upper half.

    Raises:
        ValueError: keys or shapes differ, NaN or Inf, two networks are equal, or the three lie on one line up to the
            rounding of their dtype.
        TypeError: a source is of a wrong type.

    Example:
        >>> def net(*values):
        ...     return {"weight": torch.tensor(values)}
        >>> plane = Plane(net(0.0, 0.0, 1.0), net(4.0, 0.0, 1.0), net(1.0, 2.0, 1.0))
        >>> plane.marks
        (('theta_0', (0.0, 0.0)), ('theta_1', (4.0, 0.0)), ('theta_2', (1.0, 2.0)))
        >>> plane.project(net(2.0, 1.0, 4.0))
        (2.0, 1.0, 3.0)
        >>> plane.coefficients([[4.0, 0.0], [1.0, 1.0]])
        array([[0.   , 1.   , 0.   ],
               [0.375, 0.125, 0.5  ]])
    """

    kind = "plane"
    axes = ("x", "y")
    names = ("theta_0", "theta_1", "theta_2")

    def __init__(self, theta_0: Source, theta_1: Source, theta_2: Source) -> None:
        self.anchors = (theta_0, theta_1, theta_2)
        origin = load_state(theta_0, "theta_0")
        others = [load_alike(s, n, origin, "theta_0") for s, n in zip((theta_1, theta_2), self.names[1:], strict=True)]
        self._states: tuple[State, ...] = (origin, *others)
        self._counted = counted(origin)
        for name, source, state in zip(self.names, self.anchors, self._states, strict=True):
            self.remember(name, source, {entry: state[entry] for entry in self._counted})
        self._check_apart()
        self._width = math.sqrt(total(self._counted, lambda n: dot(self._to(1, n), self._to(1, n))))
        # theta_2 - theta_0 = shift (theta_1 - theta_0) + height v
        self._shift = total(self._counted, lambda n: dot(self._to(1, n), self._to(2, n))) / self._width**2
        self._height = math.sqrt(total(self._counted, lambda n: dot(self._upward(n), self._upward(n))))
        self._check_collinear()
        self.marks = (
            ("theta_0", (0.0, 0.0)),
            ("theta_1", (self._width, 0.0)),
            ("theta_2", (self._shift * self._width, self._height)),
        )

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The anchors' coefficients [P, 3] at points (x, y) [P, 2]."""
        x, y = np.asarray(points, dtype=np.float64).T
        second = y / self._height
        first = (x - second * (self._shift * self._width)) / self._width
        return np.stack([1.0 - first - second, first, second], axis=1)

    def span(self, axis: str) -> tuple[float, float]:
        """The range of the anchors on an axis and 20 % of it on either side."""
        places = [place[self._index(axis)] for _, place in self.marks]
        margin = MARGIN * (max(places) - min(places))
        return min(places) - margin, max(places) + margin

    def project(self, theta: Source) -> tuple[float, float, float]:
        """Where a network's orthogonal projection onto the plane lies.

        Args:
            theta: a state dict, a module, or the path of a checkpoint.

        Returns:
            (x, y, distance from the plane), all in parameter distance.

        Raises:
            ValueError: keys or shapes are not those of theta_0.
        """
        state = load_alike(theta, "theta", self._states[0], "theta_0")
        frame = [lambda name: self._to(1, name) / self._width, lambda name: self._upward(name) / self._height]
        x, y, distance = nearest(self._states[0], frame, state, self._counted)
        return x, y, distance

    def _to(self, anchor: int, name: str) -> Tensor:
        return step(self._states[0], self._states[anchor], name)

    def _upward(self, name: str) -> Tensor:
        """The part of theta_2 - theta_0 that is orthogonal to theta_1 - theta_0."""
        return self._to(2, name) - self._shift * self._to(1, name)

    def _check_apart(self) -> None:
        for label, state in zip(self.names, self._states, strict=True):
            for name in self._counted:
                if not state[name].isfinite().all():
                    raise ValueError(f"{label}: {name!r} holds NaN or Inf; a plane needs finite networks")
        for a, b in combinations(range(3), 2):
            if all(not step(self._states[a], self._states[b], n).any() for n in self._counted):
                raise ValueError(
                    f"{self.names[a]} and {self.names[b]} are equal in every parameter: a plane needs three networks "
                    "that do not lie on one line"
                )

    def _check_collinear(self) -> None:
        rounding = self._rounding()
        if self._height <= rounding:
            raise ValueError(
                f"theta_0, theta_1 and theta_2 lie on one line: theta_2 is {self._height:.3g} off the line through the "
                f"others, and rounding to {self._dtypes()} alone makes {rounding:.3g}; a plane needs a third network "
                "off the line"
            )

    def _rounding(self) -> float:
        """How far off the line theta_2 would typically be if three networks on one line were rounded to their dtypes.

        A rounded value is off by a twelfth of the squared step in the mean square; entries that are equal in all three
        take no part. The products of Gram-Schmidt are themselves rounded to float64.
        """

        def squared(name: str) -> Tensor:
            moving = (self._to(1, name) != 0) | (self._to(2, name) != 0)
            parts = []
            for share, state in zip((1.0 - self._shift, self._shift, 1.0), self._states, strict=True):
                steps = share * torch.finfo(state[name].dtype).eps * state[name].to(moving.device, torch.float64)
                parts.append((steps * moving).square().sum() / 12)
            return sum(parts[1:], parts[0])

        length = math.hypot(self._shift * self._width, self._height)
        return math.sqrt(total(self._counted, squared)) + 8 * np.finfo(np.float64).eps * length

    def _dtypes(self) -> str:
        found = dict.fromkeys(str(state[name].dtype) for state in self._states for name in self._counted)
        return ", ".join(dtype.removeprefix("torch.") for dtype in found)
