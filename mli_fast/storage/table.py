"""A dataset to and from CSV: one row per point, under a header line that holds all that is no column."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from typing import Any

import numpy as np
import xarray as xr

from mli_fast.storage.document import (
    array_of,
    assemble,
    check_dtype,
    check_header,
    header_of,
    number_to_text,
    pack,
    text_to_value,
    unpack,
)
from mli_fast.storage.layout import all_columns, labels, layout_of, on_points


def write_csv(dataset: xr.Dataset) -> bytes:
    """What lies on all point dimensions as columns, and all else in the header line.

    A coordinate that lies on a part of them is in the header too, and as a column only for who reads the table.
    """
    header = header_of(dataset)
    dims, names = layout_of(dataset), on_points(dataset)
    header["points"] = list(dims)
    header["rows"] = math.prod(dataset.sizes[dim] for dim in dims)
    header["labels"] = [name for name, _ in labels(dataset)]
    packed = {str(name): pack(variable) for name, variable in dataset.variables.items()}
    header["columns"] = {name: {key: packed[name][key] for key in ("dims", "dtype", "attrs")} for name in names}
    header["variables"] = {name: entry for name, entry in packed.items() if name not in names}
    table = all_columns(dataset)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for name, _ in table])
    writer.writerows(zip(*(_texts(values) for _, values in table), strict=True))
    return f"# {json.dumps(header, allow_nan=False)}\n{buffer.getvalue()}".encode()


def read_csv(content: bytes) -> xr.Dataset:
    """Read what ``write_csv`` wrote; ValueError, saying what does not fit, if it is not whole."""
    first, *lines = io.StringIO(content.decode(), newline="")
    if not first.startswith("# {"):
        raise ValueError("its first line is not the '# {...}' header that describes the columns")
    header = json.loads(first[2:])
    check_header(header)
    if not lines or not lines[-1].endswith("\n"):
        raise ValueError("its last line is cut short")
    names, *rows = csv.reader(lines)
    if len(rows) != header["rows"]:
        raise ValueError(f"{header['rows']} rows announced, {len(rows)} found")
    columns = iter(list(zip(*rows, strict=True)) if rows else [()] * len(names))
    # Files of before there were other layouts do not name theirs.
    points, label_names = header.get("points", ["alpha"]), header.get("labels", [])
    found_labels = list(itertools.islice(columns, len(label_names)))
    sizes = header["sizes"]
    variables = {name: unpack(packed, sizes) for name, packed in header["variables"].items()}
    for name, packed in header["columns"].items():
        check_dtype(packed["dtype"])
        others = [dim for dim in packed["dims"] if dim not in points]
        shape = [sizes[dim] for dim in others]
        texts = list(itertools.islice(columns, math.prod(shape)))
        if len(texts) < math.prod(shape):
            raise ValueError(f"fewer columns than its header describes, {name!r} is not whole")
        data = [[text_to_value(text, packed["dtype"]) for text in column] for column in texts]
        array = array_of(data, packed["dtype"]).reshape([*shape, *(sizes[dim] for dim in points)])
        variables[name] = xr.Variable([*others, *points], array, packed["attrs"]).transpose(*packed["dims"])
    if next(columns, None) is not None:
        raise ValueError("more columns than its header describes")
    dataset = assemble(header, variables)
    # Before the labels are repeated for each point.
    if math.prod(dataset.sizes[dim] for dim in layout_of(dataset)) != len(rows):
        raise ValueError(f"{len(rows)} rows, but its coordinates make {dict(dataset.sizes)}")
    for (name, values), texts in zip(labels(dataset), found_labels, strict=True):
        if _texts(values) != list(texts):
            raise ValueError(f"its rows are not in the order they were written in: column {name!r} differs")
    return dataset


def _texts(values: np.ndarray[Any, Any]) -> list[str]:
    return [number_to_text(value) for value in values.tolist()]
