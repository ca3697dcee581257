"""Result files that are damaged, hostile or written under bad conditions: the result, or an error that says which."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from mli_fast.result import SweepResult, load
from mli_fast.storage import netcdf
from tests.results import LAYOUTS, line, runs
from tests.test_result import SUFFIXES, assert_same_bits, make_dataset, make_result


def without_checksum(path: Path) -> Path:
    """The file as earlier versions and other programs write it."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"\nmli_fast sha256 ")])
    return path


def with_checksum(path: Path) -> Path:
    """The file as somebody may forge it."""
    body = path.read_bytes()
    path.write_bytes(body + netcdf._trailer(body))
    return path


def saved(path: Path, dataset: xr.Dataset | None = None) -> Path:
    SweepResult(line() if dataset is None else dataset).save(path)
    return path


def edited(path: Path, edit: Callable[[h5py.File], object]) -> Path:
    """A result that HDF5 changed."""
    saved(path)
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def with_a_loop(path: Path) -> Path:
    """One byte of a file changed, so that HDF5 walks its global heap without end."""
    content = bytearray(without_checksum(path).read_bytes())
    heap = content.index(b"GCOL")
    at = heap + 16
    while index := int.from_bytes(content[at : at + 2], "little"):
        assert index < 100
        at += 16 + -(-int.from_bytes(content[at + 8 : at + 16], "little") // 8) * 8
    # The size of the free space that follows the last object.
    content[at + 9] ^= 4
    path.write_bytes(content)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 1000


def outcome(path: Path) -> xr.Dataset | str:
    """What was loaded, or the message of a ValueError; any other error fails the test."""
    try:
        return load(path).dataset
    except ValueError as error:
        return str(error)


# ------------------------------------------------------------------------------------------- the checksum of a NetCDF


@pytest.mark.parametrize("dataset", [make_dataset(), runs(), LAYOUTS["no-runs"]()], ids=["all", "runs", "no-runs"])
def test_a_netcdf_of_an_earlier_version_is_read(tmp_path: Path, dataset: xr.Dataset) -> None:
    path = without_checksum(saved(tmp_path / "curve.nc", dataset))
    found = load(path).dataset
    assert found.identical(dataset)
    texts = [name for name, variable in dataset.variables.items() if variable.dtype.kind == "U"]
    assert_same_bits(found.drop_vars(texts), dataset.drop_vars(texts))


def test_other_programs_read_a_netcdf_with_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path / "curve.nc")
    with xr.open_dataset(path, engine="h5netcdf") as found:
        assert found.identical(line())
    with h5py.File(path) as file:
        assert file["loss"][:].tolist() == [2.0, 1.0, 1.25]


def test_a_netcdf_that_another_program_changed_is_read(tmp_path: Path) -> None:
    path = edited(tmp_path / "curve.nc", lambda file: file["loss"].__setitem__(0, 7.0))
    assert load(path).loss.tolist() == [7.0, 1.0, 1.25]


def test_a_netcdf_that_was_compressed_since_is_read(tmp_path: Path) -> None:
    path = tmp_path / "curve.nc"
    dataset = line().assign(histogram=(("alpha", "bin"), np.zeros((3, 100_000))))
    dataset.to_netcdf(path, engine="h5netcdf", encoding={"histogram": {"zlib": True}})
    assert path.stat().st_size < 100_000
    assert load(path).dataset.equals(dataset)


def test_any_byte_of_a_netcdf_may_change(tmp_path: Path) -> None:
    path = saved(tmp_path / "curve.nc")
    content = path.read_bytes()
    end = content.rfind(b"\nmli_fast sha256 ")
    for at in random.Random(0).sample(range(end), 300):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        refused(path, "begin like one|the checksum at its end")
    for at in (end + 2, len(content) - 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = outcome(path)
        assert "the checksum at its end" in found if isinstance(found, str) else found.identical(line())


@pytest.mark.parametrize("at", [40, 700, 2100])
def test_a_byte_of_a_netcdf_without_checksum_may_change(tmp_path: Path, at: int) -> None:
    path = without_checksum(saved(tmp_path / "curve.nc"))
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    found = outcome(path)
    assert isinstance(found, xr.Dataset) or found.startswith(f"{path}: ")


def test_a_netcdf_that_hdf5_never_ends_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcdf, "_SECONDS", 4.0)
    provenance = {"provenance": "{}"}
    path = with_a_loop(saved(tmp_path / "curve.nc", line().assign_attrs(provenance)))
    refused(path, "HDF5 has not read it within 4 seconds")


def test_a_netcdf_that_hdf5_crashes_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    refused(without_checksum(saved(tmp_path / "curve.nc")), r"HDF5 crashes on it \(SIGSEGV\)")


# ---------------------------------------------------------------------------------------- what lies outside the file


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("secret", (2,), "f8", external=[(str(other), 0, 16)])


def external_link(file: h5py.File, other: Path) -> None:
    file["secret"] = h5py.ExternalLink(str(other), "loss")


def soft_link(file: h5py.File, other: Path) -> None:
    file["hop"] = h5py.ExternalLink(str(other), "/")
    file["secret"] = h5py.SoftLink("/hop/loss")


def virtual_dataset(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "loss", (3,))
    file.create_virtual_dataset("secret", layout)


def group(file: h5py.File, other: Path) -> None:
    file.create_group("secret")["loss"] = h5py.ExternalLink(str(other), "loss")


@pytest.mark.parametrize("reach", [external_storage, external_link, soft_link, virtual_dataset, group])
def test_a_netcdf_that_reaches_out_of_itself_is_refused(tmp_path: Path, reach: Callable) -> None:
    other = saved(tmp_path / "other.nc")
    path = edited(tmp_path / "curve.nc", lambda file: reach(file, other))
    # A forged checksum is read in this process, and one without in another.
    refused(with_checksum(path), "'(secret|hop)' is (a link|stored in another file|not a variable)")
    refused(without_checksum(path), "'(secret|hop)' is (a link|stored in another file|not a variable)")


# ------------------------------------------------------------------------------------------------- small files, large


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"shape": (1,), "dtype": "S1000000000"}, "would be 1000", id="text-width"),
        pytest.param({"shape": (10**13,), "dtype": "f8"}, "would be 80000", id="shape"),
        pytest.param(
            {"shape": (2**31, 2**31, 4), "dtype": "f8", "chunks": (1, 1, 1)}, "would be 1475739", id="overflow"
        ),
        pytest.param({"shape": (10**9,), "dtype": "f8", "compression": "gzip"}, "would be 80000", id="compressed"),
        pytest.param(
            {"shape": (1,), "dtype": "f8", "chunks": (10**8,), "maxshape": (None,)}, "would be 8000", id="chunk"
        ),
    ],
)
def test_a_netcdf_larger_than_its_file_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    path = edited(tmp_path / "curve.nc", lambda file: file.create_dataset("huge", **options))
    assert path.stat().st_size < 100_000
    refused(with_checksum(path), message)


def changed_text(path: Path, old: str, new: str) -> Path:
    text = saved(path).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("suffix", [".json", ".csv"])
@pytest.mark.parametrize("dtype", ["S1000000000", "U1000000000", "V1000000000", "f8,(1000000000,)f8", "object"])
def test_a_dtype_that_no_result_has_is_refused(tmp_path: Path, suffix: str, dtype: str) -> None:
    path = changed_text(tmp_path / f"curve{suffix}", '"float64"', json.dumps(dtype))
    refused(path, f"dtype {re.escape(repr(dtype))} is not one of a result")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_long_text_among_many_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a" * 1000, *map(str, range(999))]
    path = saved(tmp_path / f"curve{suffix}", runs().isel(run=[0] * 1000).assign_coords(run=texts))
    result = load(path)
    monkeypatch.setattr(netcdf, "_TEXT_BYTES", 3_999_999)
    refused(path, "its texts would be an array of 4000000 bytes")
    with pytest.raises(ValueError, match="an array of 4000000 bytes"):
        result.save(path)


def test_a_csv_whose_coordinates_make_more_points_than_rows_is_refused(tmp_path: Path) -> None:
    header = {
        "format": "mli_fast.result",
        "version": 1,
        "attrs": {},
        "sizes": {"run": 100_000, "alpha": 100_000},
        "coordinates": ["run", "alpha"],
        "order": [],
        "points": ["run", "alpha"],
        "rows": 0,
        "columns": {},
        "labels": [],
        "variables": {
            dim: {"dims": [dim], "dtype": "int64", "attrs": {}, "data": [0] * 100_000} for dim in ("run", "alpha")
        },
    }
    (tmp_path / "curve.csv").write_text(f"# {json.dumps(header)}\n\n")
    refused(tmp_path / "curve.csv", "0 rows, but its coordinates make")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / f"fifo{suffix}")
    refused(tmp_path / f"zero{suffix}", "is not a regular file")
    refused(tmp_path / f"fifo{suffix}", "is not a regular file")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_holes_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curve{suffix}"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(path, "does not begin like one")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('"attrs": {', '"deep": ' + "[" * 200_000 + "]" * 200_000 + ', "attrs": {', "recursion", id="deep"),
        pytest.param("100", "1" + 30 * "0", "too large", id="integer"),
        pytest.param("1.25", '"NaN:0x' + "f" * 40 + '"', "too large|required|out of range", id="nan-bits"),
        pytest.param("1.25", '"' + "x" * 1_000_000 + '"', "could not convert", id="long-message"),
        pytest.param('"version": 1', '"version": [1]', "'>' not supported", id="version"),
    ],
)
def test_what_json_may_hold_is_refused_as_value_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = changed_text(tmp_path / "curve.json", old, new)
    refused(path, message)


# ------------------------------------------------------------------------------------------------------------ writing


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """What a full disk does: writing on is an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"curve{suffix}")
    before = path.read_bytes()
    with files_limited_to(100), pytest.raises(OSError, match="too large"):
        make_result([9.0, 8.0]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    assert load(path).loss.tolist() == [2.0, 1.0, 1.25]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threads_that_save_to_one_path_leave_one_of_their_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curve{suffix}"
    results = [make_result(np.full(length, float(length))) for length in (3, 2000)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: results[i % 2].save(path), range(24)))
        assert load(path).loss.tolist() in [result.loss.tolist() for result in results]
    assert os.listdir(tmp_path) == [path.name]


def test_saving_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    names = [".curve.json.123.tmp", ".curve.json.0abc.tmp", ".curve.json.alive.tmp", ".other.json.123.tmp"]
    for name in names:
        (tmp_path / name).touch()
        if "alive" not in name:
            os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    saved(tmp_path / "curve.json")
    assert sorted(os.listdir(tmp_path)) == [".curve.json.alive.tmp", ".other.json.123.tmp", "curve.json"]


def test_a_saved_file_has_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(saved(tmp_path / "curve.nc").stat().st_mode) == mode
