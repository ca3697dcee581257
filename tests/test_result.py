from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mli_fast.measures import monotonicity
from mli_fast.result import SweepResult, load

SUFFIXES = [".nc", ".json", ".csv"]
# The bits of a NaN differ with what made it; these are NumPy's, what 0/0 gives on x86, and one with a payload.
NANS = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000123], dtype=np.uint64).view(np.float64)


def make_dataset() -> xr.Dataset:
    """One of everything that a sweep may put into a result, with the values that get lost first."""
    classes = np.arange(12.0).reshape(3, 4) / 7
    classes[1, 2] = np.nan
    return xr.Dataset(
        {
            "loss": ("alpha", [np.inf, -0.0, 5e-324]),
            "loss_stderr": ("alpha", [0.1, 0.1 + 0.2, 1 / 3]),
            "loss_step": ("alpha", NANS),
            "accuracy": (
                "alpha",
                [0.0, -np.inf, np.nextafter(1.0, 0.0)],
                {"units": "seconds", "long_name": "fraction"},
            ),
            "class_loss": (("alpha", "class"), classes),
            "prediction_histogram": (("alpha", "class"), np.arange(12).reshape(3, 4) + 2**62),
            "half": ("alpha", np.array([0.1, np.nan, -0.0], dtype=np.float32)),
            "good": ("alpha", [True, False, True]),
            "tag": ("alpha", ["a", 'b,"c"', "ü\n# {"]),
            "count": np.int64(1797),
            "class_count": ("class", np.arange(4)),
        },
        coords={"alpha": [1.0, 0.1 + 0.2, -0.0], "class": np.arange(4)},
        attrs={
            # Longer than the 64 KiB that HDF5 keeps within an object's header.
            "provenance": json.dumps({"criterion": "cross_entropy", "dtypes": ["ü" * 70_000], "seconds": 0.1 + 0.2}),
            "number": 3,
            "fraction": 0.1,
            "empty": "",
            "several": [1.5, 2.5],
        },
    )


def make_result(loss=(2.0, 1.0, 1.25), alphas=None, **variables) -> SweepResult:
    alphas = np.linspace(0, 1, len(loss)) if alphas is None else alphas
    return SweepResult(xr.Dataset({"loss": ("alpha", list(loss)), **variables}, coords={"alpha": alphas}))


def assert_same_bits(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert list(found.variables) == list(expected.variables)
    assert set(found.coords) == set(expected.coords)
    assert found.attrs == expected.attrs
    assert {key: type(value) for key, value in found.attrs.items()} == {k: type(v) for k, v in expected.attrs.items()}
    for name, variable in expected.variables.items():
        other = found.variables[name]
        assert (other.dims, other.dtype, other.attrs) == (variable.dims, variable.dtype, variable.attrs), name
        assert other.values.tobytes() == variable.values.tobytes(), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_keeps_every_bit(tmp_path: Path, suffix: str) -> None:
    dataset = make_dataset()
    path = tmp_path / f"curve{suffix}"
    SweepResult(dataset).save(path)
    assert_same_bits(load(path).dataset, dataset)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_second_round_trip_is_the_same(tmp_path: Path, suffix: str) -> None:
    SweepResult(make_dataset()).save(tmp_path / f"a{suffix}")
    load(tmp_path / f"a{suffix}").save(tmp_path / f"b{suffix}")
    assert_same_bits(load(tmp_path / f"b{suffix}").dataset, make_dataset())


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(width=64)),
    names=st.lists(st.text("abc_[], ü\"'", min_size=1).map("m{}".format), unique=True, min_size=1, max_size=3),
)
def test_any_floats_and_names_come_back(tmp_path: Path, suffix: str, values: np.ndarray, names: list[str]) -> None:
    alphas = np.arange(values.size, dtype=float)
    dataset = xr.Dataset(dict.fromkeys(names, ("alpha", values)), coords={"alpha": alphas})
    SweepResult(dataset).save(tmp_path / f"curve{suffix}")
    assert_same_bits(load(tmp_path / f"curve{suffix}").dataset, dataset)


def test_json_is_strict_and_its_provenance_readable(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    SweepResult(make_dataset()).save(path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["provenance"]["criterion"] == "cross_entropy"
    assert document["variables"]["loss"]["data"] == ["Infinity", -0.0, 5e-324]


def test_provenance_text_that_would_change_is_kept_as_text(tmp_path: Path) -> None:
    result = make_result()
    result.dataset.attrs["provenance"] = '{"a":1,  "b": NaN}'
    result.save(tmp_path / "curve.json")
    assert load(tmp_path / "curve.json").dataset.attrs["provenance"] == '{"a":1,  "b": NaN}'


def test_csv_can_be_read_as_a_plain_table(tmp_path: Path) -> None:
    import pandas as pd

    result = make_result(loss=[2.5, np.nan, np.inf], class_loss=(("alpha", "class"), [[1.0, 2], [3, 4], [5, 6]]))
    result.save(tmp_path / "curve.csv")
    table = pd.read_csv(tmp_path / "curve.csv", comment="#")
    pd.testing.assert_frame_equal(table, result.to_dataframe())


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    make_result().save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert load(tmp_path / "real.json").loss[0] == 2.0


def test_saving_leaves_the_dataset_alone(tmp_path: Path) -> None:
    dataset = make_dataset()
    for suffix in SUFFIXES:
        SweepResult(dataset).save(tmp_path / f"curve{suffix}")
    assert_same_bits(dataset, make_dataset())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        pytest.param("curve.xlsx", ValueError, r"unknown suffix '.xlsx'; use one of .nc, .json, .csv", id="unknown"),
        pytest.param("curve", ValueError, "unknown suffix ''", id="none"),
        pytest.param(
            "missing/curve.nc", FileNotFoundError, "missing/curve.nc: the folder .* does not exist", id="folder"
        ),
        pytest.param("folder.nc", ValueError, "is a folder", id="is-a-folder"),
    ],
)
def test_save_says_what_is_wrong_with_a_path(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    (tmp_path / "folder.nc").mkdir()
    with pytest.raises(error, match=message):
        make_result().save(tmp_path / name)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param({"z": ("alpha", [1j, 2, 3])}, "'z' has dtype complex128", id="complex"),
        pytest.param({"a/b": ("alpha", [1.0, 2, 3])}, "'a/b' has a '/'", id="slash"),
    ],
)
def test_save_refuses_what_it_could_not_give_back(tmp_path: Path, variable: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_result(**variable).save(tmp_path / "curve.nc")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"curve{suffix}"
    make_result(loss=np.linspace(2, 0, 50)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"curve\{suffix}: (the file is empty|not a readable result file)"):
        load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"other{suffix}"
    if suffix == ".nc":
        xr.Dataset({"loss": ("x", [1.0])}).to_netcdf(path, engine="h5netcdf")
    else:
        path.write_text('{"loss": [1]}' if suffix == ".json" else "alpha,loss\n0,1\n")
    with pytest.raises(ValueError, match=rf"other\{suffix}: not a"):
        load(path)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    make_result().save(path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2 of the format"):
        load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_short_of_its_last_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"curve{suffix}"
    make_result(loss=[0.123, 0.456]).save(path)
    # Only the number of a last row is cut: what is left looks whole.
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="damaged"):
        load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda row: f"{row},1", "more columns", id="a-column-more"),
        pytest.param(lambda row: row.rpartition(",")[0], "fewer columns", id="a-column-less"),
        pytest.param(lambda row: f"{row},1" if row.startswith("1") else row, "damaged", id="a-longer-row"),
        pytest.param(lambda row: row.replace("2.0", "two"), "two", id="not-a-number"),
    ],
)
def test_a_csv_that_does_not_fit_its_header_is_refused(tmp_path: Path, edit, message: str) -> None:
    path = tmp_path / "curve.csv"
    make_result().save(path)
    header, *rows = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in [header, *map(edit, rows)]))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_load_names_a_missing_file_as_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^there/curve.nc: no such file$"):
        load("there/curve.nc")
    Path("folder.nc").mkdir()
    with pytest.raises(ValueError, match=r"^folder.nc: is a folder"):
        load("folder.nc")
    with pytest.raises(ValueError, match="unknown suffix"):
        load("curve.txt")


def test_reading() -> None:
    result = SweepResult(make_dataset())
    assert result.alphas.tolist() == [1.0, 0.1 + 0.2, 0.0]
    assert result.loss.dtype == result.accuracy.dtype == result.alphas.dtype == np.float64
    assert result.count == 1797
    assert isinstance(result.count, int)
    assert result["class_loss"].shape == (3, 4)
    assert result["class"].tolist() == [0, 1, 2, 3]
    assert result.provenance["seconds"] == 0.1 + 0.2
    assert "class_loss" in result
    assert "nothing" not in result
    assert make_result().provenance == {}


def test_an_unknown_variable_lists_what_there_is() -> None:
    with pytest.raises(KeyError, match="no variable 'acc' in this result; there are: loss, alpha"):
        make_result()["acc"]


def test_missing_accuracy_says_how_to_get_it() -> None:
    with pytest.raises(AttributeError, match="metrics="):
        _ = make_result().accuracy
    assert not hasattr(make_result(), "accuracy")


@pytest.mark.parametrize(
    ("dataset", "error"),
    [
        pytest.param({"loss": [1.0]}, TypeError, id="a-dict"),
        pytest.param(xr.Dataset({"loss": ("x", [1.0])}), ValueError, id="no-alpha"),
        pytest.param(xr.Dataset({"loss": ("alpha", [1.0])}), ValueError, id="alpha-without-values"),
        pytest.param(xr.Dataset(coords={"alpha": 1.0}), ValueError, id="alpha-scalar"),
    ],
)
def test_only_a_sweep_can_be_wrapped(dataset: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="dataset"):
        SweepResult(dataset)  # type: ignore[arg-type]


def test_monotonicity_in_any_order() -> None:
    result = make_result([1.25, 2.0, 1.0], alphas=[1.0, 0.0, 0.5], accuracy=("alpha", [0.9, 0.1, 0.95]))
    assert result.monotonicity() == monotonicity([0, 0.5, 1], [2, 1, 1.25])
    assert result.monotonicity(tol=0.25).monotone
    assert result.monotonicity("error").min_delta == pytest.approx(0.05)
    assert result.monotonicity("accuracy").min_delta == pytest.approx(0.85)


def test_monotonicity_needs_one_curve() -> None:
    with pytest.raises(ValueError, match=r"'class_loss' has shape \(3, 4\)"):
        SweepResult(make_dataset()).monotonicity("class_loss")
    with pytest.raises(KeyError, match="no variable 'nothing'"):
        make_result().monotonicity("nothing")


def test_dataframe_has_a_row_per_alpha_and_a_column_per_class() -> None:
    table = SweepResult(make_dataset()).to_dataframe()
    assert list(table.columns[:2]) == ["alpha", "loss"]
    assert [name for name in table.columns if name.startswith("class_loss")] == [f"class_loss[{c}]" for c in range(4)]
    assert "count" not in table.columns
    assert table["prediction_histogram[3]"].tolist() == [2**62 + 3, 2**62 + 7, 2**62 + 11]
    assert math.isnan(table["class_loss[2]"][1])


def test_repr_says_the_main_things() -> None:
    result = make_result([1.25, 2.0, 1.0], [1.0, 0.0, 0.5], accuracy=("alpha", [0.5, 0.1, np.nan]), count=100)
    assert repr(result).splitlines() == [
        "SweepResult: 3 alphas from 0 to 1, 100 examples",
        "  loss      2 -> 1.25",
        "  accuracy  0.1 -> 0.5 (1 of 3 not finite)",
        "  monotone  no, min Delta 0.25 (from alpha 0.5 to 1)",
    ]


@pytest.mark.parametrize(
    ("loss", "alphas", "last"),
    [
        pytest.param([2.0, 1.0], [0.0, 1.0], "  monotone  yes, min Delta 0", id="monotone"),
        pytest.param([2.0, np.nan], [0.0, 1.0], "  monotone  unknown, the curve holds NaN", id="nan"),
        pytest.param([2.0, 1.0], [2.0, 3.0], "  loss      2 -> 1", id="all-outside"),
        pytest.param([], [], "SweepResult: 0 alphas", id="empty"),
    ],
)
def test_repr_of_odd_curves(loss: list[float], alphas: list[float], last: str) -> None:
    assert repr(make_result(loss, alphas)).splitlines()[-1] == last
