"""Which file is in which format, what a path must be, and what is wrong with one that cannot be read."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from mli_fast.storage.document import read_json, write_json
from mli_fast.storage.netcdf import read_netcdf, write_netcdf
from mli_fast.storage.table import read_csv, write_csv

_KINDS = "fiubU"
_WRITERS: dict[str, Callable[[xr.Dataset, Path], None]]
_WRITERS = {".nc": write_netcdf, ".json": write_json, ".csv": write_csv}
_READERS: dict[str, Callable[[Path], xr.Dataset]]
_READERS = {".nc": read_netcdf, ".json": read_json, ".csv": read_csv}


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
    _known(target, _WRITERS)
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
    """
    target = check_target(path)
    _check_storable(dataset)
    # Through a symbolic link to the file it names: replacing must not turn the link into a file.
    real = Path(os.path.realpath(target))
    temporary = real.with_name(f".{real.name}.{os.getpid()}.tmp")
    try:
        _WRITERS[target.suffix.lower()](dataset, temporary)
        os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)


def load_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset that ``save_dataset`` wrote.

    Args:
        path: File to read, ``.nc``, ``.json`` or ``.csv``.

    Returns:
        The dataset, in memory; the file is closed again.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is not a known one, or the file is damaged or holds something else.
    """
    source = Path(path)
    reader = _known(source, _READERS)
    if source.is_dir():
        raise ValueError(f"{path}: is a folder, not a result file")
    if not source.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if source.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        return reader(source)
    # What h5py, json and csv raise on a damaged file varies with where the damage is.
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, csv.Error) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path}: not a readable result file, or damaged ({_first_line(error)})") from error


def _check_storable(dataset: xr.Dataset) -> None:
    for name, variable in dataset.variables.items():
        if variable.dtype.kind not in _KINDS or (variable.dtype.itemsize > 8 and variable.dtype.kind == "f"):
            raise ValueError(f"variable {name!r} has dtype {variable.dtype}, which cannot be stored")
        if "/" in str(name):
            raise ValueError(f"variable {name!r} has a '/' in its name, which NetCDF takes for a folder; rename it")
        if " " in str(name) and name in dataset.coords and name not in dataset.dims:
            raise ValueError(f"coordinate {name!r} has a space in its name, where NetCDF ends it; rename it")


def _known(path: Path, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    suffix = path.suffix.lower()
    if suffix not in table:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(table)}")
    return table[suffix]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
