"""A dataset to and from the bytes of a NetCDF-4 file, with a checksum or else in a process of its own.

HDF5 loops without end or crashes on some damaged files. Ours end in a checksum of all before it, which other readers
ignore; files without one are of an earlier version or of another program. This file is also the script of the process
that reads these. It imports nothing of ours, because that would take seconds.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

_MARK = b"\nmli_fast sha256 "
_TRAILER_BYTES = len(_MARK) + 2 * hashlib.sha256().digest_size + 1
_SECONDS, _SECONDS_PER_BYTE = 20.0, 1e-6
_MEMORY, _MEMORY_PER_BYTE = 1 << 28, 128
_TEXT_BYTES = 1 << 28
# More than a file's own bytes for those that other programs compressed.
_CLAIMED, _CLAIMED_PER_BYTE = 1 << 24, 16


def write_netcdf(dataset: xr.Dataset) -> bytes:
    """A file with every bit as it is and a checksum; in memory, because HDF5 crashes where a disk is full."""
    plain = dataset.drop_encoding()
    # No fill value: it would turn every stored NaN into the canonical one.
    encoding = {name: {"_FillValue": None} for name in plain.variables}
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        plain.dump_to_store(H5NetCDFStore(file), encoding=encoding)
    body = buffer.getvalue()
    return body + _trailer(body)


def read_netcdf(content: bytes) -> xr.Dataset:
    """Read a dataset as it was written: nothing masked, scaled, or taken for a time because of its units.

    Args:
        content: All bytes of the file.

    Returns:
        The dataset, in memory.

    Raises:
        ValueError: If the file is damaged, refers to other files, or needs more time or memory than a result would.
    """
    found = content.rfind(_MARK, max(len(content) - _TRAILER_BYTES, 0))
    if found < 0:
        content = _rewritten(content)
        found = len(content) - _TRAILER_BYTES
    body = content[:found]
    if content[found:] != _trailer(body):
        raise ValueError("its bytes are not those that were written, by the checksum at its end")
    return _read(body)


def _trailer(body: bytes) -> bytes:
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _rewritten(content: bytes) -> bytes:
    """The same dataset with a checksum, by a process that may hang, crash or ask for any memory."""
    seconds = _SECONDS + _SECONDS_PER_BYTE * len(content)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=content, env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"HDF5 has not read it within {seconds:.0f} seconds") from error
    if done.returncode < 0:
        raise ValueError(f"HDF5 crashes on it ({signal.Signals(-done.returncode).name})")
    if done.returncode > 0:
        raise ValueError((done.stdout or done.stderr).decode(errors="replace").strip().splitlines()[-1])
    return done.stdout


def _read(body: bytes) -> xr.Dataset:
    with h5py.File(io.BytesIO(body)) as file:
        _check_contents(file, len(body))
    dataset = xr.load_dataset(
        io.BytesIO(body), engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    ).drop_encoding()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OT":
            dataset[name] = variable.astype(str)
        dataset[name].attrs = _plain_attrs(dataset[name].attrs)
    dataset.attrs = _plain_attrs(dataset.attrs)
    return dataset


def _check_contents(file: h5py.File, size: int) -> None:
    """Raise ValueError unless all is within the file, before HDF5 follows a link or anything is allocated."""
    items = {}
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is a link, a result has its variables in the file itself")
        items[name] = file[name]
        if not isinstance(items[name], h5py.Dataset):
            raise ValueError(f"{name!r} is not a variable, a result has nothing else")
        stored = items[name].id.get_create_plist()
        if stored.get_external_count() or stored.get_layout() == h5py.h5d.VIRTUAL:
            raise ValueError(f"{name!r} is stored in another file, a result has its variables in the file itself")
    # A dimension without coordinate is a variable that is never stored nor read.
    read = {name: item for name, item in items.items() if not _is_dimension_alone(item)}
    attributes = [item.attrs.get_id(name) for item in (file, *items.values()) for name in item.attrs]
    claimed = sum(attribute.get_storage_size() for attribute in attributes)
    claimed += sum(map(_bytes_read, read.values()))
    if claimed > _CLAIMED + _CLAIMED_PER_BYTE * size:
        raise ValueError(f"its variables and attributes would be {claimed} bytes, the file has {size}")
    for name, item in read.items():
        if item.dtype.kind == "O" and not h5py.check_ref_dtype(item.dtype):
            if not h5py.check_string_dtype(item.dtype):
                raise ValueError(f"{name!r} has neither numbers nor texts")
            check_texts(np.asarray(item.asstr()[()]).ravel().tolist())


def check_texts(texts: Sequence[str]) -> None:
    """Raise ValueError if an array of these texts, whose every element has the memory of the longest, is too large."""
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("something else than a text among its texts")
    size = 4 * len(texts) * max(map(len, texts), default=0)
    if size > _TEXT_BYTES:
        raise ValueError(f"its texts would be an array of {size} bytes, a result has up to {_TEXT_BYTES}")


def _bytes_read(item: h5py.Dataset) -> int:
    """Memory of a variable, or of the one chunk of it that is read at a time."""
    # Not item.size, which overflows.
    shapes = [shape for shape in (item.shape, item.chunks) if shape is not None]
    return max(map(math.prod, shapes), default=0) * int(item.dtype.itemsize)


def _is_dimension_alone(item: h5py.Dataset) -> bool:
    if "NAME" not in item.attrs or item.attrs.get_id("NAME").get_storage_size() > 256:
        return False
    name = item.attrs["NAME"]
    return isinstance(name, bytes) and name.startswith(b"This is a netCDF dimension but not a netCDF variable")


def _plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes with NumPy values as the Python ones that were written."""
    return {
        key: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value for key, value in attrs.items()
    }


def _rewrite() -> None:
    """The process of ``_rewritten``: a file on standard input, on standard output its dataset or what is wrong."""
    content = sys.stdin.buffer.read()
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    memory = mapped + _MEMORY + _MEMORY_PER_BYTE * len(content)
    memory = memory if allowed == resource.RLIM_INFINITY else min(memory, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (memory, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sys.stdout.buffer.write(write_netcdf(_read(content)))
    except Exception as error:
        sys.stdout.buffer.write((str(error) or type(error).__name__).encode())
        raise SystemExit(1) from error


if __name__ == "__main__":
    _rewrite()
