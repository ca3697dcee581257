"""What every path has: axes, anchors, and each point as coefficients of the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mli_fast.checkpoints import Source, stamp

Mark = tuple[str, tuple[float, ...]]


class Path:
    """A family of points theta(p) = sum_r c[p, r] anchor_r; the coefficients of a point sum to 1.

    Attributes:
        kind: "line", "plane", ...
        axes: what the coordinates of a point are called, ("alpha",) for a path of one parameter.
        anchors: R sources, each a whole network of the model: state dicts, modules, paths of files.
        names: what messages and plots call the anchors, one each.
        marks: (name, coordinates) of those anchors that are points of the path.
    """

    kind: ClassVar[str]
    axes: tuple[str, ...] = ("alpha",)
    anchors: tuple[Source, ...]
    names: tuple[str, ...]
    marks: tuple[Mark, ...]
    _read: tuple[tuple[str, Source, Mapping[str, Tensor], Any], ...] = ()

    def remember(self, name: str, source: Source, state: Mapping[str, Tensor]) -> None:
        """Note that the path was made from the values of a checkpoint as they are now."""
        self._read += ((name, source, state, stamp(source, state)),)

    def check_unchanged(self) -> None:
        """Raise where a checkpoint that the path was made from has other values now.

        Raises:
            ValueError: it was written to or replaced.
        """
        for name, source, state, before in self._read:
            if stamp(source, state) != before:
                raise ValueError(
                    f"{name} was changed after this {self.kind} was made from its values: make it anew, from a "
                    "checkpoint that nothing writes to"
                )

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The anchors' coefficients [P, R] at points [P], or [P, k] where the path has k axes."""
        raise NotImplementedError

    def derivatives(self, points: ArrayLike) -> NDArray[np.float64]:
        """The derivatives [P, R] of the coefficients along the one axis, at points [P].

        Raises:
            ValueError: the path has several axes.
        """
        raise ValueError(f"a {self.kind} with the axes {', '.join(self.axes)} has no single derivative")

    def span(self, axis: str) -> tuple[float, float]:
        """The range of an axis that a count of points is spread over.

        Raises:
            ValueError: the path has no such axis.
        """
        self._index(axis)
        return 0.0, 1.0

    def along(self, axis: str, given: int | ArrayLike | Any) -> NDArray[np.float64]:
        """The coordinates [n] on one axis.

        Args:
            axis: one of `axes`.
            given: a count (that many over `span(axis)`, both ends included), or any 1-D sequence, array or tensor of
                numbers; values outside the span extrapolate.

        Raises:
            ValueError: none, not 1-D, NaN or infinite.
            TypeError: not numbers.
        """
        low, high = self.span(axis)
        what = "alphas" if axis == "alpha" else axis
        if isinstance(given, bool):
            raise TypeError(f"{what}: expected a count or a 1-D sequence of numbers, got a bool")
        if isinstance(given, (int, np.integer)):
            if given < 1:
                raise ValueError(f"{what}={given}: at least one point is needed")
            return np.linspace(low, high, int(given))
        values = _numbers(given, what, "a count or a 1-D sequence of numbers")
        if values.ndim != 1:
            raise ValueError(f"{what}: expected a 1-D sequence, got shape {values.shape}")
        if values.size == 0:
            raise ValueError(f"{what} is empty: at least one point is needed")
        if not np.isfinite(values).all():
            where = np.flatnonzero(~np.isfinite(values))[0]
            raise ValueError(f"{what}[{where}] is {values[where]}: every {axis} has to be a finite number")
        return values

    def points(self, given: int | ArrayLike | Any) -> NDArray[np.float64]:
        """The points [P] of a path with one axis, checked as `along` does, or [P, k] of one with k axes.

        Raises:
            ValueError: none, not of that shape, NaN or infinite.
            TypeError: not numbers, or a count where the path has several axes.
        """
        if len(self.axes) == 1:
            return self.along(self.axes[0], given)
        k, what = len(self.axes), f"coordinates ({', '.join(self.axes)})"
        if isinstance(given, (int, np.integer)):
            raise TypeError(f"points: expected an array [P, {k}] of {what}, got {given!r}; a count is for one axis")
        values = _numbers(given, "points", f"an array [P, {k}] of {what}")
        if values.ndim != 2 or values.shape[1] != k:
            raise ValueError(f"points: expected an array [P, {k}] of {what}, got shape {values.shape}")
        if len(values) == 0:
            raise ValueError("points is empty: at least one point is needed")
        if not np.isfinite(values).all():
            where = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"points[{where[0]}] is {values[where[0]]}: every coordinate has to be a finite number")
        return values

    def _index(self, axis: str) -> int:
        if axis not in self.axes:
            raise ValueError(f"axis {axis!r}: this {self.kind} has {', '.join(map(repr, self.axes))}")
        return self.axes.index(axis)


def _numbers(given: Any, what: str, expected: str) -> NDArray[np.float64]:
    """A float64 copy of anything that holds numbers."""
    if hasattr(given, "detach"):
        given = given.detach().cpu().double().numpy()
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}: expected {expected}, got {given!r}") from error
