"""A dataset to and from strict JSON, and the header and cells that CSV shares with it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mli_fast.storage.netcdf import check_texts

FORMAT = "mli_fast.result"
VERSION = 1
_NAN_BITS = 0x7FF8000000000000
_DTYPES = {"str", "bool", *(np.dtype(code).name for code in "bhilqBHILQefd")}


def write_json(dataset: xr.Dataset) -> bytes:
    """All variables, with what strict JSON cannot say as text."""
    document = header_of(dataset)
    document["variables"] = {str(name): pack(variable) for name, variable in dataset.variables.items()}
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def read_json(content: bytes) -> xr.Dataset:
    """Read what ``write_json`` wrote."""
    document = json.loads(content.decode())
    check_header(document)
    sizes = document["sizes"]
    return assemble(document, {name: unpack(packed, sizes) for name, packed in document["variables"].items()})


def header_of(dataset: xr.Dataset) -> dict[str, Any]:
    """All of a dataset but its variables."""
    attrs = dict(dataset.attrs)
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    provenance = attrs.get("provenance")
    # Readable where nothing is lost by it: the text must come back as the very same string.
    if isinstance(provenance, str) and _reparses(provenance):
        header["provenance"] = json.loads(attrs.pop("provenance"))
    header["attrs"] = attrs
    header["sizes"] = {str(dim): size for dim, size in dataset.sizes.items()}
    header["coordinates"] = [str(name) for name in dataset.coords]
    header["order"] = [str(name) for name in dataset.variables]
    return header


def check_header(header: Any) -> None:
    """Raise ValueError if this is not the header of a file that can be read here."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"it does not say that it is a {FORMAT} file")
    if header["version"] > VERSION:
        raise ValueError(f"written in version {header['version']} of the format, this mli_fast reads up to {VERSION}")


def assemble(header: Mapping[str, Any], variables: Mapping[str, xr.Variable]) -> xr.Dataset:
    """The dataset that a header and its variables came from."""
    attrs = dict(header["attrs"])
    if "provenance" in header:
        attrs["provenance"] = json.dumps(header["provenance"])
    coordinates = {name: variables[name] for name in header["coordinates"]}
    rest = {name: variables[name] for name in header["order"] if name not in coordinates}
    return xr.Dataset(rest, coords=coordinates, attrs=attrs)


def _reparses(text: str) -> bool:
    try:
        return json.dumps(json.loads(text), allow_nan=False) == text
    except ValueError:
        return False


def pack(variable: xr.Variable) -> dict[str, Any]:
    """A variable as something that JSON can hold."""
    return {
        "dims": list(variable.dims),
        "dtype": variable.dtype.name if variable.dtype.kind != "U" else "str",
        "attrs": dict(variable.attrs),
        "data": _encode(variable.values.tolist()),
    }


def unpack(packed: Mapping[str, Any], sizes: Mapping[str, int]) -> xr.Variable:
    """The variable that ``pack`` was given, from the document's sizes of dimensions."""
    floating = packed["dtype"].startswith("float")
    data = array_of(_decode(packed["data"]) if floating else packed["data"], packed["dtype"])
    if data.size == 0:
        # Nested lists do not say the sizes that follow one of zero.
        data = data.reshape([sizes[dim] for dim in packed["dims"]])
    return xr.Variable(packed["dims"], data, packed["attrs"])


def array_of(data: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Nested lists as an array."""
    check_dtype(dtype)
    if dtype == "str":
        check_texts(np.array(data, dtype=object).ravel().tolist())
    return np.array(data, dtype=dtype)


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless it is one that ``pack`` writes; others may ask for any memory."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of a result")


def _encode(value: Any) -> Any:
    """Nested lists with what JSON has no number for (NaN, infinities) as text."""
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return number_to_text(value)
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return _text_to_number(value) if isinstance(value, str) else float(value)


def number_to_text(value: Any) -> str:
    """Shortest text that reads back as the same bits; a NaN with bits of its own says them."""
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if math.isnan(value):
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        return {_NAN_BITS: "NaN", _NAN_BITS | 1 << 63: "-NaN"}.get(bits, f"NaN:{bits:#x}")
    return repr(value)


def _text_to_number(text: str) -> float:
    if text.startswith("NaN:"):
        (value,) = struct.unpack("<d", struct.pack("<Q", int(text[4:], 16)))
        return float(value)
    return float(text)


def text_to_value(text: str, dtype: str) -> Any:
    """The value of a cell, by the dtype of its column."""
    if dtype.startswith("float"):
        return _text_to_number(text)
    if dtype == "bool":
        return {"True": True, "False": False}[text]
    return text if dtype == "str" else int(text)
