"""Schedules: how far a group of parameters has moved, s(alpha), where the others have moved by alpha."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Function = Callable[[NDArray[np.float64]], ArrayLike]


@dataclass(frozen=True)
class Power:
    """s(alpha) = alpha^p, with its derivative."""

    exponent: float

    def __call__(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        return alphas**self.exponent

    def derivative(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.exponent * alphas ** (self.exponent - 1.0)

    def __str__(self) -> str:
        return "linear" if self.exponent == 1.0 else f"power({self.exponent:g})"


@dataclass(frozen=True)
class Frozen:
    """s(alpha) = 0 or 1 everywhere."""

    at: float

    def __call__(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full_like(alphas, self.at)

    def derivative(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros_like(alphas)

    def __str__(self) -> str:
        return "end" if self.at else "start"


def power(exponent: float) -> Power:
    """s(alpha) = alpha^p.

    Args:
        exponent: p, above 0; if it is no integer, s has no value at a negative alpha.

    Raises:
        ValueError: p is not above 0, or not finite.

    Example:
        >>> power(2)(np.array([0.0, 0.5, 1.0]))
        array([0.  , 0.25, 1.  ])
    """
    if not 0.0 < exponent < math.inf:
        raise ValueError(f"power({exponent}): the exponent has to be a finite number above 0")
    return Power(float(exponent))


NAMED: dict[str, Function] = {"linear": Power(1.0), "start": Frozen(0.0), "end": Frozen(1.0)}


@dataclass(frozen=True)
class Schedule:
    """A function of alpha with the checks of what it gives; equal where the functions are.

    Attributes:
        function: alphas [A] -> s [A]; its attribute `derivative`, if it has one, likewise ds / dalpha.
        group: what messages call the parameters that move so.
    """

    function: Function
    group: str = field(compare=False)

    def value(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        """s [A], float64.

        Raises:
            ValueError: the function's result is not of the shape of alphas, not of numbers, or not finite.
        """
        return self._checked(self.function, f"schedule {self}", alphas)

    def slope(self, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ds / dalpha [A], float64.

        Raises:
            ValueError: the function has no derivative, or one that is not of the shape of alphas or not finite.
        """
        derivative = getattr(self.function, "derivative", None)
        if not callable(derivative):
            raise ValueError(
                f"group {self.group!r}: the derivative of schedule {self} is needed; give the function an attribute "
                "`derivative`, a function alphas [A] -> ds/dalpha [A]"
            )
        return self._checked(derivative, f"the derivative of schedule {self}", alphas)

    def _checked(self, function: Function, what: str, alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            given: Any = function(alphas.copy())
        if hasattr(given, "detach"):
            given = given.detach().cpu().numpy()
        try:
            values = np.array(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"group {self.group!r}: {what} gave {given!r}, not numbers [A]") from error
        if values.shape != alphas.shape:
            raise ValueError(
                f"group {self.group!r}: {what} gave shape {values.shape} for alphas of shape {alphas.shape}; it takes "
                "all alphas at once, and gives a number for each"
            )
        if not np.isfinite(values).all():
            where = np.flatnonzero(~np.isfinite(values))[0]
            raise ValueError(f"group {self.group!r}: {what} is {values[where]} at alpha={alphas[where]}")
        return values

    def __str__(self) -> str:
        plain = isinstance(self.function, Power | Frozen)
        return str(self.function) if plain else getattr(self.function, "__name__", repr(self.function))
