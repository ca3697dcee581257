from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mli_fast.result import SweepResult, load
from mli_fast.storage.layout import LAYOUTS as KNOWN
from tests.results import LAYOUTS, line, points, result_of, runs, surface
from tests.test_result import NANS, SUFFIXES, assert_same_bits


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Bit for bit; of texts only the width of the array, which a part of a result keeps, may differ."""
    assert found.identical(expected)
    texts = [name for name, variable in expected.variables.items() if variable.dtype.kind == "U"]
    assert list(found.variables) == list(expected.variables)
    assert_same_bits(found.drop_vars(texts), expected.drop_vars(texts))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_keeps_every_bit(tmp_path: Path, layout: str, suffix: str) -> None:
    path = tmp_path / f"result{suffix}"
    result_of(layout).save(path)
    assert_same(load(path).dataset, LAYOUTS[layout]())


@st.composite
def datasets(draw: st.DrawFn) -> xr.Dataset:
    """Any layout, sizes, floats and labels."""
    dims = draw(st.sampled_from(KNOWN))
    sizes = {dim: draw(st.integers(1, 3)) for dim in dims}
    floats = st.one_of(st.floats(width=64), st.sampled_from(NANS.tolist()))
    texts = st.text(st.characters(exclude_categories=["C"], include_characters="\n"), min_size=1)

    def values(*shape: int) -> np.ndarray:
        return draw(hnp.arrays(np.float64, shape, elements=floats))

    def coordinate(dim: str) -> object:
        size = sizes[dim]
        named = dim in ("run", "group")
        return draw(st.lists(texts, min_size=size, max_size=size, unique=True)) if named else values(size)

    axes = {("x" if dim == "point" else dim): (dim, coordinate(dim)) for dim in dims}
    return xr.Dataset(
        {
            "loss": (dims, values(*sizes.values())),
            "class_loss": ((*dims, "class"), values(*sizes.values(), 2)),
            "distance": (dims[:1], values(sizes[dims[0]])),
            "path_length": values()[()],
        },
        coords=axes,
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dataset=datasets())
def test_any_layout_comes_back(tmp_path: Path, suffix: str, dataset: xr.Dataset) -> None:
    SweepResult(dataset).save(tmp_path / f"result{suffix}")
    assert_same(load(tmp_path / f"result{suffix}").dataset, dataset)


def test_a_csv_has_a_row_for_each_point(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "surface.csv"
    SweepResult(surface()).save(path)
    assert path.read_text().splitlines()[1:3] == ["x,y,loss,loss_stderr,accuracy", "1.0,0.0,2.0,0.2,0.5"]
    table = pd.read_csv(path, comment="#")
    pd.testing.assert_frame_equal(table, SweepResult(surface()).to_dataframe())
    assert table.query("x == 4 and y == 3")["loss"].tolist() == [35.0]


def test_a_csv_with_its_rows_moved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "surface.csv"
    SweepResult(surface()).save(path)
    header, names, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, names, *reversed(rows)]))
    with pytest.raises(ValueError, match=r"surface\.csv: .* order they were written in: column 'x'"):
        load(path)


def test_a_csv_of_before_there_were_layouts_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text(
        '# {"format": "mli_fast.result", "version": 1, "attrs": {}, "sizes": {"alpha": 2, "class": 2}, "coordinates": '
        '["alpha"], "order": ["loss", "class_loss", "count", "alpha"], "rows": 2, "columns": {"alpha": {"dims": '
        '["alpha"], "dtype": "float64", "attrs": {}}, "loss": {"dims": ["alpha"], "dtype": "float64", "attrs": {}}, '
        '"class_loss": {"dims": ["alpha", "class"], "dtype": "float64", "attrs": {}}}, "variables": {"count": '
        '{"dims": [], "dtype": "int64", "attrs": {}, "data": 7}}}\n'
        "alpha,loss,class_loss[0],class_loss[1]\n0.0,2.5,1.0,4.0\n1.0,NaN,2.0,3.0\n"
    )
    result = load(tmp_path / "old.csv")
    assert result.alphas.tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(result.loss, [2.5, np.nan])
    assert result["class_loss"].tolist() == [[1.0, 4.0], [2.0, 3.0]]
    assert result.count == 7


def test_a_coordinate_that_netcdf_would_lose_is_refused(tmp_path: Path) -> None:
    dataset = points().rename(task_1="task 1")
    with pytest.raises(ValueError, match="coordinate 'task 1' has a space"):
        SweepResult(dataset).save(tmp_path / "points.nc")


@pytest.mark.parametrize(
    ("layout", "dims", "axes", "shape"),
    [
        pytest.param("line", ("alpha",), ("alpha",), (3,), id="line"),
        pytest.param("runs", ("run", "alpha"), ("run", "alpha"), (3, 4), id="runs"),
        pytest.param("groups", ("group", "alpha"), ("group", "alpha"), (2, 3), id="groups"),
        pytest.param("surface", ("x", "y"), ("x", "y"), (4, 3), id="surface"),
        pytest.param("points", ("point",), ("task_1", "task_2"), (3,), id="points"),
        pytest.param("cut", ("x",), ("x",), (4,), id="cut"),
    ],
)
def test_shapes(layout: str, dims: tuple[str, ...], axes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    result = result_of(layout)
    assert (result.dims, result.axes, result.loss.shape, result.size) == (dims, axes, shape, math.prod(shape))
    assert len(result.to_dataframe()) == math.prod(shape)


def test_no_alphas_says_where_the_points_are() -> None:
    with pytest.raises(AttributeError, match=r"result\['x'\] and result\['y'\]"):
        _ = result_of("surface").alphas
    with pytest.raises(AttributeError, match=r"result\['task_1'\] and result\['task_2'\]"):
        _ = result_of("points").alphas
    assert result_of("runs").alphas.tolist() == [1.0, 0.0, 1.5, 0.5]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        pytest.param(surface().drop_vars("y"), "needs a coordinate 'y' along its dimension 'y'", id="no-coordinate"),
        pytest.param(points().reset_coords(drop=True), "a coordinate for each axis along its dimension", id="no-axes"),
        pytest.param(line().expand_dims(x=[1.0]), r"dimensions \(.*x.*\), but .*\(run, alpha\)", id="x-and-alpha"),
        pytest.param(runs().isel(alpha=0), r"dimensions \(run, .*\)", id="run-alone"),
        pytest.param(
            runs().transpose("alpha", ...), r"'loss' on \(alpha, run\) instead of \(run, alpha\)", id="turned"
        ),
        pytest.param(line().assign(count=("alpha", [1, 2, 3])), r"'count' on \(alpha\) instead of \(\)", id="counts"),
        pytest.param(surface().assign(accuracy=0.5), r"'accuracy' on \(\) instead of \(x, y\)", id="one-accuracy"),
    ],
)
def test_other_layouts_are_refused(dataset: xr.Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepResult(dataset)


def test_dataframe_has_a_column_for_each_dimension() -> None:
    table = result_of("runs").to_dataframe()
    assert list(table.columns) == ["run", "alpha", "loss", "accuracy", "class_loss[3]", "class_loss[7]"]
    row = table.iloc[5]
    assert row.tolist() == ['adam, "lr" 0.1', 0.0, 1.0, np.linspace(0, 1, 12)[5], 10.0, 11.0]
    assert list(result_of("groups").to_dataframe().columns[:3]) == ["group", "depth", "alpha"]
    assert result_of("points").to_dataframe()["task_2"].tolist() == [1.0, -0.5, 0.0]


def test_selecting_a_run_is_that_run() -> None:
    one = result_of("runs").select(run="sgd")
    assert one.dims == ("alpha",)
    assert one.loss.tolist() == [1.25, 2.0, 9.0, 1.0]
    assert one["distance"] == 3.0
    assert one.monotonicity().min_delta == 0.25
    both = result_of("runs").select(run=["ü # nan", "sgd"])
    assert both["run"].tolist() == ["ü # nan", "sgd"]
    np.testing.assert_array_equal(both["distance"], [5.0, 3.0])


def test_selecting_a_cut_takes_the_label_as_it_is_printed() -> None:
    dataset = surface().assign_coords(x=[-1.0, 1 / 3, 1 / 3 + 1e-6, 0.0])
    result = SweepResult(dataset)
    assert result.select(x=0.333333).loss.tolist() == dataset["loss"].values[1].tolist()
    assert result.select(x=1 / 3 + 1e-6).loss.tolist() == dataset["loss"].values[2].tolist()
    rounded = SweepResult(dataset.assign_coords(y=[-1.11e-16, 1.0, 3.0]))
    assert rounded.select(y=0).loss.tolist() == dataset["loss"].values[:, 0].tolist()
    cut = result.select(y=3, x=[0.0, -1])
    assert cut.dims == ("x",)
    assert cut.loss.tolist() == [33.0, 32.0]


@pytest.mark.parametrize(
    ("layout", "labels", "message"),
    [
        pytest.param("runs", {"run": "sdg"}, r"no run='sdg'; there are: 'sgd', 'adam, \"lr\" 0.1'", id="run"),
        pytest.param("runs", {"run": 1}, "no run=1", id="index"),
        pytest.param("surface", {"x": 0.5}, "no x=0.5; there are: 1, 0, 4, 2", id="coordinate"),
        pytest.param("surface", {"x": "0"}, "no x='0'", id="text"),
        pytest.param("surface", {"group": "fc"}, "no dimension 'group', only x, y", id="dimension"),
        pytest.param("surface", {"x": 0, "y": 1}, "is a single point", id="point"),
        pytest.param("points", {"point": 0}, "points have no labels", id="single-points"),
    ],
)
def test_selecting_what_is_not_there(layout: str, labels: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result_of(layout).select(**labels)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        pytest.param("runs", r"select one first, as in \.select\(run=", id="runs"),
        pytest.param("groups", r"\.select\(group=", id="groups"),
        pytest.param("surface", "the points lie on x, y$", id="surface"),
    ],
)
def test_monotonicity_is_of_one_line(layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result_of(layout).monotonicity()


def test_table_has_a_row_for_each_run() -> None:
    table = result_of("runs").table(tol=0.3)
    assert table.index.name == "run"
    assert table.index.tolist() == runs()["run"].values.tolist()
    assert list(table.columns) == [
        "initial_loss",
        "final_loss",
        "initial_accuracy",
        "final_accuracy",
        "min_delta",
        "monotone",
        "distance",
        "gauss_length",
        "gauss_length_stderr",
    ]
    assert table["initial_loss"].tolist() == [2.0, 1.0, 2.0]
    np.testing.assert_array_equal(table["final_loss"], [1.25, 0.05, np.nan])
    np.testing.assert_array_equal(table["min_delta"], [0.25, 0.0, np.nan])
    assert table["monotone"].tolist() == [True, True, False]
    assert result_of("runs").table()["monotone"].tolist() == [False, True, False]
    assert table["distance"].tolist() == [3.0, 4.0, 5.0]


def test_table_without_accuracy_or_the_segment() -> None:
    groups = SweepResult(LAYOUTS["groups"]().drop_vars("accuracy"))
    assert list(groups.table().columns) == ["initial_loss", "final_loss", "min_delta", "monotone"]
    beyond = SweepResult(runs().isel(alpha=[2]))
    assert list(beyond.table().columns) == ["distance", "gauss_length", "gauss_length_stderr"]


def test_filter_keeps_the_runs_that_ended_well() -> None:
    assert result_of("runs").filter(max_final_loss=0.1)["run"].tolist() == ['adam, "lr" 0.1']
    assert result_of("runs").filter(1.25)["distance"].tolist() == [3.0, 4.0]
    none = result_of("runs").filter(0.01)
    assert none.loss.shape == (0, 4)
    assert list(none.table().columns) == list(result_of("runs").table().columns)
    assert repr(none).startswith("SweepResult: 0 runs x 4 alphas")


@pytest.mark.parametrize("method", ["table", "filter", "lines"])
def test_only_several_lines_have_a_table(method: str) -> None:
    arguments = {"filter": (0.1,)}.get(method, ())
    with pytest.raises(ValueError, match=f"{method}: needs a result with runs or groups, .* lie on x, y"):
        list(getattr(result_of("surface"), method)(*arguments))


def test_filter_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="NaN"):
        result_of("runs").filter(math.nan)
    with pytest.raises(ValueError, match=r"no alpha lies in \[0, 1\]"):
        SweepResult(runs().isel(alpha=[2])).filter(0.1)


def test_lines_come_in_order() -> None:
    found = list(result_of("groups").lines())
    assert [label for label, _ in found] == ["conv1 (weight)", "fc"]
    assert found[1][1].loss.tolist() == [1.5, 1.25, 1.0]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        pytest.param(
            "runs",
            [
                "SweepResult: 3 runs x 4 alphas from 0 to 1.5, 100 examples",
                '  runs            sgd, adam, "lr" 0.1, ü # nan',
                "  final loss      0.05 to 1.25 (1 of 12 not finite)",
                "  final accuracy  0 to 0.727273",
                "  monotone        1 of 3",
            ],
            id="runs",
        ),
        pytest.param(
            "groups",
            [
                "SweepResult: 2 groups x 3 alphas from 0 to 1",
                "  groups          conv1 (weight), fc",
                "  final loss      1 to 1 (1 of 6 not finite)",
                "  final accuracy  0.75 to 0.75 (1 of 6 not finite)",
                "  monotone        1 of 2",
            ],
            id="groups",
        ),
        pytest.param(
            "surface",
            [
                "SweepResult: 4 x 3 points, x from 0 to 4, y from 0 to 3, 100 examples",
                "  loss      1 to 35, least at x 0, y 0",
                "  accuracy  0.0285714 to 1, largest at x 0, y 0",
            ],
            id="surface",
        ),
        pytest.param(
            "points",
            [
                "SweepResult: 3 points, task_1 from 0 to 1, task_2 from -0.5 to 1",
                "  loss      0.5 to 2, least at task_1 0.25, task_2 -0.5",
            ],
            id="points",
        ),
        pytest.param(
            "cut",
            [
                "SweepResult: 4 points, x from 0 to 4, 100 examples",
                "  loss      11 -> 15",
                "  accuracy  0.0909091 -> 0.0666667",
            ],
            id="cut",
        ),
    ],
)
def test_repr_says_the_main_things(layout: str, expected: list[str]) -> None:
    assert repr(result_of(layout)).splitlines() == expected


def test_repr_of_a_surface_without_a_finite_value() -> None:
    dataset = surface().drop_vars("accuracy").assign(loss=(("x", "y"), np.full((4, 3), np.nan)))
    assert repr(SweepResult(dataset)).splitlines()[1] == "  loss      nowhere finite (12 of 12 not finite)"


def test_repr_of_many_runs_names_some() -> None:
    many = xr.Dataset({"loss": (("run", "alpha"), np.ones((8, 2)))}, coords={"run": np.arange(8), "alpha": [0.0, 1.0]})
    assert "  runs            0, 1, 2, 3, 4, 5 and 2 more" in repr(SweepResult(many)).splitlines()
