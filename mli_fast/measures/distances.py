"""How far apart two networks are in parameter space, as a whole and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Distance:
    """Euclidean distances between two networks' parameters.

    Attributes:
        absolute: ``norm(theta_T - theta_0)`` over everything that counts.
        relative: That over ``norm(theta_0)``; infinite if theta_0 is zero and theta_T is not, NaN if both are.
        per_layer: Layer name -> its distance; their squares add up to that of ``absolute``.
        per_layer_relative: Layer name -> its distance over the norm of the layer of theta_0, infinite or NaN alike.
    """

    absolute: float
    relative: float
    per_layer: dict[str, float]
    per_layer_relative: dict[str, float]


def distance(theta_0: Mapping[str, Any], theta_T: Mapping[str, Any]) -> Distance:
    """Distance between two networks, absolute and relative to the first (Lucas et al. 2021, arXiv:2104.11044).

    What counts are the floating-point entries, but not those whose name ends in ``running_mean`` or ``running_var``:
    the statistics of batch norm are no parameters. An entry belongs to the layer of its name without the last part:
    ``conv1.weight`` and ``conv1.bias`` to ``conv1``; a name of one part is a layer of its own. A tied parameter counts
    under each of its names. Differences and sums are taken in float64.

    Args:
        theta_0: Name -> array or tensor (any device, any floating-point type), such as a state dict.
        theta_T: The same names and shapes.

    Returns:
        The distances; ``distance(...).absolute`` is the number.

    Raises:
        ValueError: If the entries that count differ in names or shapes, or there are none.
        TypeError: If an argument is not a mapping.

    Examples:
        >>> theta_0 = {"fc.weight": np.array([[3.0, 0.0]]), "fc.bias": np.array([4.0])}
        >>> theta_T = {"fc.weight": np.array([[0.0, 0.0]]), "fc.bias": np.array([0.0])}
        >>> distance(theta_0, theta_T)
        Distance(absolute=5.0, relative=1.0, per_layer={'fc': 5.0}, per_layer_relative={'fc': 1.0})
    """
    names = _counted("theta_0", theta_0)
    _same_names(names, _counted("theta_T", theta_T))
    moved: dict[str, list[float]] = {}
    started: dict[str, list[float]] = {}
    for name in names:
        start, end = _float64(theta_0[name]), _float64(theta_T[name])
        if start.shape != end.shape:
            raise ValueError(f"{name!r} has shape {start.shape} in theta_0 and {end.shape} in theta_T")
        layer = name.rpartition(".")[0] or name
        moved.setdefault(layer, []).append(_norm(end - start))
        started.setdefault(layer, []).append(_norm(start))
    per_layer = {layer: math.hypot(*norms) for layer, norms in moved.items()}
    norm_0 = {layer: math.hypot(*norms) for layer, norms in started.items()}
    absolute = math.hypot(*per_layer.values())
    return Distance(
        absolute=absolute,
        relative=_ratio(absolute, math.hypot(*norm_0.values())),
        per_layer=per_layer,
        per_layer_relative={layer: _ratio(per_layer[layer], norm_0[layer]) for layer in per_layer},
    )


def _counted(what: str, theta: Mapping[str, Any]) -> list[str]:
    if not isinstance(theta, Mapping):
        raise TypeError(f"{what} must be a mapping of names to arrays, got {type(theta).__name__}")
    names = [n for n, value in theta.items() if n.rpartition(".")[2] not in RUNNING and _is_floating(value)]
    if not names:
        raise ValueError(f"{what} has no floating-point parameters among its {len(theta)} entries")
    return names


def _same_names(names_0: Iterable[str], names_T: Iterable[str]) -> None:
    lacking = {"theta_T": set(names_0) - set(names_T), "theta_0": set(names_T) - set(names_0)}
    found = [f"{what} has no floating-point {', '.join(map(repr, sorted(n)))}" for what, n in lacking.items() if n]
    if found:
        raise ValueError(f"the two networks differ in their entries: {'; '.join(found)}")


def _is_floating(value: Any) -> bool:
    if hasattr(value, "is_floating_point"):  # a torch tensor
        return bool(value.is_floating_point() or value.is_complex())
    name = np.asarray(value).dtype.name  # bfloat16 and the 8-bit floats of ml_dtypes included
    return "float" in name or "complex" in name


def _float64(value: Any) -> NDArray[np.float64]:
    if hasattr(value, "detach"):  # a torch tensor; NumPy has no bfloat16, so torch widens it
        value = value.detach().cpu()
        value = (value.resolve_conj().cdouble() if value.is_complex() else value.double()).numpy()
    value = np.asarray(value)
    if np.iscomplexobj(value):  # as pairs of real numbers, of which the norm is the same
        return np.ascontiguousarray(value, np.complex128).reshape(-1).view(np.float64)
    return value.astype(np.float64)


def _norm(values: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(values.ravel()))


def _ratio(moved: float, start: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(moved, start))
