"""Which dimensions the points of a result lie on, and its variables as columns with a row for each point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

# One dimension each of x and y alone is a cut through a surface.
LAYOUTS = (("alpha",), ("x", "y"), ("group", "alpha"), ("run", "alpha"), ("point",), ("x",), ("y",))
_AXES = ("run", "group", "x", "y", "alpha", "point")

Column = tuple[str, np.ndarray[Any, Any]]


def layout_of(dataset: xr.Dataset) -> tuple[str, ...]:
    """The dimensions that the points of a result lie on.

    Args:
        dataset: Of a result. Each of these dimensions has a coordinate of its name; ``point`` has one or more of any
            name, an axis each.

    Returns:
        One of ``LAYOUTS``.

    Raises:
        ValueError: If there is no such layout, a coordinate is missing, or loss, accuracy or count lie on other ones.

    Examples:
        >>> layout_of(xr.Dataset({"loss": ("alpha", [2.0, 1.0]), "count": 7}, coords={"alpha": [0.0, 1.0]}))
        ('alpha',)
    """
    dims = tuple(axis for axis in _AXES if axis in dataset.dims)
    if dims not in LAYOUTS:
        known = ", ".join(f"({', '.join(layout)})" for layout in LAYOUTS[:5])
        raise ValueError(
            f"dataset has dimensions {_listed(dataset.dims)}, but the points of a result lie on one of {known}"
        )
    for dim in dims:
        along = [name for name, coordinate in dataset.coords.items() if coordinate.dims == (dim,)]
        if not along or (dim != "point" and dim not in along):
            lacking = "a coordinate for each axis" if dim == "point" else f"a coordinate {dim!r}"
            raise ValueError(
                f"dataset needs {lacking} along its dimension {dim!r}, its coordinates are {_listed(dataset.coords)}"
            )
    for name, wanted in {"loss": dims, "accuracy": dims, "count": ()}.items():
        if name in dataset and dataset[name].dims != wanted:
            raise ValueError(f"dataset has {name!r} on {_listed(dataset[name].dims)} instead of {_listed(wanted)}")
    return dims


def columns(dataset: xr.Dataset, name: str) -> Iterator[Column]:
    """A variable that lies on all point dimensions as columns [P]: itself, or one per class as ``class_loss[3]``.

    Args:
        dataset: Of a result, for its layout and the labels of the other dimensions.
        name: The variable.

    Yields:
        Column name and values, a row for each point, the last dimension fastest.
    """
    dims = layout_of(dataset)
    variable = dataset[name].transpose(..., *dims)
    others = variable.dims[: -len(dims)]
    shape = variable.shape[: len(others)]
    values = variable.values.reshape(*shape, math.prod(variable.shape[len(others) :]))
    for index in np.ndindex(shape):
        labels = [dataset[dim].values[i] if dim in dataset else i for dim, i in zip(others, index, strict=True)]
        yield f"{name}[{','.join(map(str, labels))}]" if labels else name, values[index]


def on_points(dataset: xr.Dataset) -> list[str]:
    """Names of the variables that lie on all point dimensions, coordinates first."""
    dims = set(layout_of(dataset))
    found = [str(name) for name, variable in dataset.variables.items() if dims <= set(variable.dims)]
    return sorted(found, key=lambda name: name not in dataset.coords)


def labels(dataset: xr.Dataset) -> list[Column]:
    """The coordinates that lie on a part of the point dimensions, such as the run of (run, alpha), as columns [P]."""
    dims = layout_of(dataset)
    shape = [dataset.sizes[dim] for dim in dims]
    found = []
    for dim in dims if len(dims) > 1 else ():
        along = [str(name) for name, coordinate in dataset.coords.items() if coordinate.dims == (dim,)]
        for name in sorted(along, key=lambda name: name != dim):
            place = [-1 if dim == other else 1 for other in dims]
            found.append((name, np.broadcast_to(dataset[name].values.reshape(place), shape).reshape(math.prod(shape))))
    return found


def all_columns(dataset: xr.Dataset) -> list[Column]:
    """Everything that can be said of single points, as columns: where each lies, then what was found there."""
    found = itertools.chain.from_iterable(columns(dataset, name) for name in on_points(dataset))
    return [*labels(dataset), *found]


def _listed(names: Any) -> str:
    return f"({', '.join(map(str, names))})"
