"""Which file is in which format, what a path must be, and what is wrong with one that cannot be read."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import xarray as xr

from mli_fast.storage.document import read_json, write_json
from mli_fast.storage.netcdf import check_texts, read_netcdf, write_netcdf
from mli_fast.storage.table import read_csv, write_csv

_KINDS = "fiubU"
_SECONDS_LEFT_OVER = 600.0


class _Format(NamedTuple):
    signature: bytes
    write: Callable[[xr.Dataset], bytes]
    read: Callable[[bytes], xr.Dataset]


_FORMATS = {
    ".nc": _Format(b"\x89HDF\r\n\x1a\n", write_netcdf, read_netcdf),
    ".json": _Format(b"{", write_json, read_json),
    ".csv": _Format(b"# {", write_csv, read_csv),
}


def check_target(path: str | os.PathLike[str]) -> Path:
    """Check, before any work is done for it, that a result can be written to ``path``.

    Args:
        path: File to write; its suffix names the format.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is not a known one, or the path is a folder.
        FileNotFoundError: If the folder to write into does not exist.
    """
    target = Path(path)
    _format_of(target)
    if target.is_dir():
        raise ValueError(f"{path}: is a folder, not a file")
    check_folder(target)
    return target


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError if the folder that ``path`` is to be written into does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it first")


def save_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a dataset, by the suffix of ``path``; an existing file is replaced in one step or left as it was.

    Args:
        dataset: Variables of real, integer, boolean or string dtype.
        path: File to write, ``.nc`` (NetCDF-4), ``.json`` or ``.csv`` (one row per point).

    Raises:
        ValueError: If the suffix is not a known one, or a variable cannot be stored.
        FileNotFoundError: If the folder to write into does not exist.
        OSError: If it cannot be written, such as on a full disk.
    """
    target = check_target(path)
    _check_storable(dataset)
    content = _format_of(target).write(dataset)
    # Through a symbolic link to the file it names: replacing must not turn the link into a file.
    real = Path(os.path.realpath(target))
    _remove_left_over(real)
    # Not by the number of the process, which threads and the machines at a shared disk have in common.
    temporary = real.with_name(f".{real.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left_over(real: Path) -> None:
    """Remove what writers of this file left that were killed; those of the last minutes may be alive."""
    for left in real.parent.glob(f".{glob.escape(real.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _SECONDS_LEFT_OVER:
                left.unlink()


def load_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset that ``save_dataset`` wrote.

    Args:
        path: File to read, ``.nc``, ``.json`` or ``.csv``.

    Returns:
        The dataset, in memory.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is not a known one, or the file is damaged, refers to others or holds something else.
    """
    source = Path(path)
    form = _format_of(source)
    content = _content(source, form.signature)
    try:
        return form.read(content)
    # What h5py, json and NumPy raise on a damaged file varies with where the damage is.
    except Exception as error:
        raise ValueError(f"{path}: not a readable result file, or damaged ({_first_line(error)})") from error


def _content(source: Path, signature: bytes) -> bytes:
    """The bytes of a file that begins like one of its format."""
    try:
        status = source.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: no such file") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{source}: is a folder, not a result file")
    # Others may block, or never end.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{source}: is not a regular file")
    with source.open("rb") as file:
        head = file.read(64)
        if not head:
            raise ValueError(f"{source}: the file is empty")
        if not head.lstrip().startswith(signature):
            raise ValueError(f"{source}: not a readable result file, or damaged (it does not begin like one)")
        return head + file.read()


def _check_storable(dataset: xr.Dataset) -> None:
    for name, variable in dataset.variables.items():
        if variable.dtype.kind not in _KINDS or (variable.dtype.itemsize > 8 and variable.dtype.kind == "f"):
            raise ValueError(f"variable {name!r} has dtype {variable.dtype}, which cannot be stored")
        if variable.dtype.kind == "U":
            check_texts(variable.values.ravel().tolist())
        if "/" in str(name):
            raise ValueError(f"variable {name!r} has a '/' in its name, which NetCDF takes for a folder; rename it")
        if " " in str(name) and name in dataset.coords and name not in dataset.dims:
            raise ValueError(f"coordinate {name!r} has a space in its name, where NetCDF ends it; rename it")


def _format_of(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
