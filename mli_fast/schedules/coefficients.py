"""The anchors' coefficients of parameters that move on a schedule of their own along a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mli_fast.paths import Path

from .schedule import Schedule

Table = NDArray[np.float64]


def coefficients(path: Path, points: ArrayLike, assigned: Mapping[str, Schedule]) -> dict[str, Table]:
    """The coefficients [P, R] of each name, those of the path at s(alpha).

    Names of equal schedules get one array object.

    Args:
        path: of one axis.
        points: alphas [P].
        assigned: name -> schedule.

    Raises:
        ValueError: the path has several axes, or a schedule gives no number for an alpha.

    Example:
        >>> from mli_fast.paths import Line
        >>> frozen = {"bias": Schedule(lambda alphas: 0 * alphas, "bias")}
        >>> coefficients(Line("theta_0.pt", "theta_T.pt"), [0.5, 1.0], frozen)["bias"]
        array([[1., 0.],
               [1., 0.]])
    """
    alphas = _alphas(path, points)
    return _shared(assigned, lambda schedule: path.coefficients(schedule.value(alphas)))


def derivatives(path: Path, points: ArrayLike, assigned: Mapping[str, Schedule]) -> dict[str, Table]:
    """The derivatives [P, R] of `coefficients` in alpha, by the chain rule.

    Raises:
        ValueError: as `coefficients`, or a schedule has no derivative there.
    """
    alphas = _alphas(path, points)
    return _shared(assigned, lambda s: path.derivatives(s.value(alphas)) * s.slope(alphas)[:, None])


def _alphas(path: Path, points: ArrayLike) -> NDArray[np.float64]:
    if len(path.axes) != 1:
        raise ValueError(
            f"schedule: a {path.kind} with the axes {', '.join(path.axes)} takes none; schedules are functions of the "
            "one parameter of a line or a curve"
        )
    return np.asarray(points, dtype=np.float64)


def _shared(assigned: Mapping[str, Schedule], table: Callable[[Schedule], Table]) -> dict[str, Table]:
    tables = {schedule: table(schedule) for schedule in dict.fromkeys(assigned.values())}
    return {name: tables[schedule] for name, schedule in assigned.items()}
