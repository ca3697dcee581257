"""A dataset to and from CSV: one row per alpha, under a header line that holds all that is no column."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mli_fast.storage.document import assemble, check_header, header_of, number_to_text, pack, text_to_value, unpack


def write_csv(dataset: xr.Dataset, path: Path) -> None:
    """Write what has an alpha dimension as columns, and all else into the header line."""
    header = header_of(dataset)
    header["rows"] = dataset.sizes["alpha"]
    header["columns"] = {}
    header["variables"] = {}
    names: list[str] = []
    columns: list[list[str]] = []
    for name in sorted(dataset.variables, key=lambda name: name != "alpha"):
        variable = dataset.variables[name]
        if "alpha" not in variable.dims:
            header["variables"][str(name)] = pack(variable)
            continue
        header["columns"][str(name)] = {key: value for key, value in pack(variable).items() if key != "data"}
        for column, values in split_columns(dataset, str(name)):
            names.append(column)
            columns.append([number_to_text(value) for value in values.tolist()])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    path.write_text(f"# {json.dumps(header, allow_nan=False)}\n{buffer.getvalue()}", encoding="utf-8", newline="")


def read_csv(path: Path) -> xr.Dataset:
    """Read what ``write_csv`` wrote; ValueError, saying what does not fit, if the file is not whole."""
    with path.open(encoding="utf-8", newline="") as file:
        first, *lines = file
    if not first.startswith("# {"):
        raise ValueError("its first line is not the '# {...}' header that describes the columns")
    header = json.loads(first[2:])
    check_header(header)
    if not lines or not lines[-1].endswith("\n"):
        raise ValueError("its last line is cut short")
    _, *rows = csv.reader(lines)
    if len(rows) != header["rows"]:
        raise ValueError(f"{header['rows']} rows announced, {len(rows)} found")
    columns = iter(list(zip(*rows, strict=True)))
    variables = {name: unpack(packed) for name, packed in header["variables"].items()}
    for name, packed in header["columns"].items():
        dims = packed["dims"]
        others = [dim for dim in dims if dim != "alpha"]
        shape = [header["sizes"][dim] for dim in others]
        texts = list(itertools.islice(columns, math.prod(shape)))
        if len(texts) < math.prod(shape):
            raise ValueError(f"fewer columns than its header describes, {name!r} is not whole")
        data = [[text_to_value(text, packed["dtype"]) for text in column] for column in texts]
        array = np.array(data, dtype=packed["dtype"]).reshape([*shape, header["rows"]])
        variables[name] = xr.Variable([*others, "alpha"], array, packed["attrs"]).transpose(*dims)
    if next(columns, None) is not None:
        raise ValueError("more columns than its header describes")
    return assemble(header, variables)


def split_columns(dataset: xr.Dataset, name: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """A variable with an alpha dimension as columns [A]: itself, or one per class as ``class_loss[3]``.

    Args:
        dataset: The dataset, for the labels of the other dimensions.
        name: The variable.

    Yields:
        Column name and values.
    """
    variable = dataset[name].transpose(..., "alpha")
    others = variable.dims[:-1]
    for index in np.ndindex(variable.shape[:-1]):
        labels = [dataset[dim].values[i] if dim in dataset else i for dim, i in zip(others, index, strict=True)]
        yield f"{name}[{','.join(map(str, labels))}]" if labels else name, variable.values[index]
