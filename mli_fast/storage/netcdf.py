"""A dataset to and from NetCDF-4, through h5netcdf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr


def write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset with every bit as it is."""
    plain = dataset.drop_encoding()
    # No fill value: it would turn every stored NaN into the canonical one.
    encoding = {name: {"_FillValue": None} for name in plain.variables}
    plain.to_netcdf(path, engine="h5netcdf", encoding=encoding)


def read_netcdf(path: Path) -> xr.Dataset:
    """Read a dataset as it was written: nothing masked, scaled, or taken for a time because of its units."""
    dataset = xr.load_dataset(path, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False)
    dataset = dataset.drop_encoding()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "OT":
            dataset[name] = variable.astype(str)
        dataset[name].attrs = _plain_attrs(dataset[name].attrs)
    dataset.attrs = _plain_attrs(dataset.attrs)
    return dataset


def _plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes with NumPy values as the Python ones that were written."""
    return {
        key: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value for key, value in attrs.items()
    }
