"""Paths whose points are theta_0 plus multiples of displacements: task vectors and random directions."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mli_fast.checkpoints import Source, load_state

from .base import Path
from .geometry import State, counted, load_alike, nearest, step


class Displacements(Path):
    """theta_0 + sum_t x_t (anchor_t - theta_0), one coordinate for each further anchor, or one shared by all.

    Attributes:
        shared: whether the one coordinate multiplies every displacement.
    """

    shared = False

    def coefficients(self, points: ArrayLike) -> NDArray[np.float64]:
        """The coefficients [P, R] of theta_0 and the further anchors at points [P], or [P, R - 1] of several axes."""
        moved = self._moved(points)
        return np.concatenate([1.0 - moved.sum(axis=1, keepdims=True), moved], axis=1)

    def derivatives(self, points: ArrayLike) -> NDArray[np.float64]:
        """Their derivatives [P, R] along the one axis, the same everywhere."""
        if len(self.axes) > 1:
            return super().derivatives(points)
        moved = self._moved(np.ones(len(np.asarray(points))))
        return np.concatenate([-moved.sum(axis=1, keepdims=True), moved], axis=1)

    def project(self, theta: Source) -> tuple[float, ...]:
        """Where the point of the path lies that is nearest to a network.

        Args:
            theta: a state dict, a module, or the path of a checkpoint.

        Returns:
            Its coordinate on every axis, and the distance of the network from it. Running statistics do not count.

        Raises:
            ValueError: keys or shapes are not those of the first anchor, or the displacements depend on each other.
        """
        state = load_alike(theta, "theta", self._states[0], self.names[0])
        try:
            return nearest(
                self._states[0], [partial(self._direction, i) for i in range(len(self.axes))], state, self._counted
            )
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the displacements of this {self.kind} depend on each other: no place is the one"
            ) from None

    @cached_property
    def _states(self) -> tuple[State, ...]:
        origin = load_state(self.anchors[0], self.names[0])
        others = zip(self.anchors[1:], self.names[1:], strict=True)
        return origin, *(load_alike(source, name, origin, self.names[0]) for source, name in others)

    @cached_property
    def _counted(self) -> dict[str, tuple[str, ...]]:
        return counted(self._states[0])

    def _direction(self, axis: int, name: str) -> Tensor:
        """One entry of what a step along an axis adds."""
        one = np.ones(1) if len(self.axes) == 1 else np.eye(len(self.axes))[axis : axis + 1]
        shares = zip(self._moved(one)[0].tolist(), self._states[1:], strict=True)
        parts = [share * step(self._states[0], state, name) for share, state in shares if share]
        return sum(parts[1:], parts[0])

    def _moved(self, points: ArrayLike) -> NDArray[np.float64]:
        """How much of each displacement, [P, R - 1]."""
        given = np.asarray(points, dtype=np.float64)
        if self.shared:
            return np.tile(given[:, None], (1, len(self.anchors) - 1))
        return given.reshape(len(given), len(self.anchors) - 1)

    def _ends(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """Where the anchors lie if each has an axis of its own: the origin and a unit step along each axis."""
        places = np.concatenate([np.zeros((1, len(self.axes))), np.eye(len(self.axes))])
        return tuple((name, tuple(place.tolist())) for name, place in zip(self.names, places, strict=True))


class TaskVectors(Displacements):
    """Task arithmetic: theta_0 + lambda sum_t (tuned_t - theta_0) (Ilharco et al. 2023, arXiv:2212.04089).

    Args:
        theta_0: the pre-trained network: a state dict, a module, or the path of a checkpoint.
        tuned: networks fine-tuned from it, likewise.
        separate: one scale per task, the axes task_1, task_2, ...; else all share one scale, the axis alpha.

    Raises:
        ValueError: no fine-tuned network.

    Example:
        >>> TaskVectors("base.pt", "cars.pt", "digits.pt").coefficients([0.0, 0.25])
        array([[1.  , 0.  , 0.  ],
               [0.5 , 0.25, 0.25]])
        >>> TaskVectors("base.pt", "cars.pt", "digits.pt", separate=True).coefficients([[0.5, -1.0]])
        array([[ 1.5,  0.5, -1. ]])
    """

    kind = "task_vectors"

    def __init__(self, theta_0: Source, *tuned: Source, separate: bool = False) -> None:
        if not tuned:
            raise ValueError("TaskVectors: at least one fine-tuned network is needed beside theta_0")
        tasks = tuple(f"task_{t}" for t in range(1, len(tuned) + 1))
        self.anchors, self.names = (theta_0, *tuned), ("theta_0", *tasks)
        self.shared = not separate
        self.axes = tasks if separate else ("alpha",)
        # A scale shared by several tasks passes through none of the fine-tuned networks.
        self.marks = self._ends() if separate or len(tuned) == 1 else (("theta_0", (0.0,)),)
