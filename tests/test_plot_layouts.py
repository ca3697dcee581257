from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from mli_fast.plot import compare_policies, save_plot
from mli_fast.plot.labels import as_text
from mli_fast.result import SweepResult
from tests.results import LAYOUTS, groups, line, result_of, runs, surface
from tests.test_plot import ENDPOINTS, curve, names

TRAJECTORY = [[0.0, 0.0], [1.0, 0.5], [4.0, 3.0]]


def bar_of(ax: Axes) -> Axes:
    (bar,) = ax.child_axes
    return bar


def contours(ax: Axes) -> QuadContourSet:
    return next(artist for artist in ax.collections if isinstance(artist, QuadContourSet))


def marks(ax: Axes) -> list[str]:
    """Names of marked places, without the values that contour lines say."""
    return [name.strip() for name in names(ax) if not name[0].isdigit()]


def with_gap(dataset: xr.Dataset) -> xr.Dataset:
    """The value at the third x and the last y missing."""
    loss = dataset["loss"].copy()
    loss[2, 2] = np.nan
    return dataset.assign(loss=loss)


@pytest.mark.parametrize("kind", ["filled", "contour", "3d"])
def test_a_surface_has_labelled_panels_with_marks(kind: str) -> None:
    ax = result_of("surface").plot(kind=kind)
    panels = [panel for panel in ax.figure.axes if panel.get_xlabel()]
    assert ax is panels[0]
    assert len(panels) == 2
    for panel in panels:
        assert panel.get_xlabel() == "$x$ (parameter distance)"
        assert panel.get_ylabel() == "$y$ (parameter distance)"
        assert marks(panel) == [r"$\theta_0$", r"$\theta_1$", r"$\theta_2$"]
    bars = [bar for bar in ax.figure.axes if bar not in panels] if kind == "3d" else [bar_of(one) for one in panels]
    assert [bar.get_ylabel() for bar in bars] == ["loss (mean squared error)", "accuracy"]
    ax.figure.draw_without_rendering()


def test_a_plane_has_equal_scales_and_other_surfaces_do_not() -> None:
    assert result_of("surface").plot().get_aspect() == 1.0
    other = surface().assign_attrs(provenance=json.dumps({"path": "random_directions"}))
    ax = SweepResult(other).plot()
    assert ax.get_aspect() == "auto"
    assert (ax.get_xlabel(), names(ax)) == ("$x$", [])


@pytest.mark.parametrize("kind", ["filled", "contour"])
def test_contours_lie_where_the_values_are(kind: str) -> None:
    # 1 + x + 10 y = 16 is the line from (4, 1.1) to (0, 1.5), although x is stored out of order.
    drawn = contours(result_of("surface").plot(kind=kind))
    segments = np.concatenate([v for level in drawn.allsegs for v in level])
    inner = segments[(segments[:, 0] > 0) & (segments[:, 0] < 4) & (segments[:, 1] > 0) & (segments[:, 1] < 3)]
    heights = 1 + inner[:, 0] + 10 * inner[:, 1]
    assert len(inner)
    np.testing.assert_allclose(heights, np.round(heights / 2) * 2, atol=1e-9)


def test_a_logarithmic_scale_is_for_the_loss() -> None:
    loss, accuracy = result_of("surface").plot(log=True).figure.axes
    assert isinstance(contours(loss).norm, LogNorm)
    assert not isinstance(contours(accuracy).norm, LogNorm)
    levels = contours(loss).levels
    np.testing.assert_allclose(levels[1:] / levels[:-1], 35 ** (1 / (len(levels) - 1)))
    assert isinstance(contours(result_of("surface").plot(variable="accuracy", log=True)).norm, LogNorm)


def test_the_logarithm_in_three_dimensions_keeps_the_values_on_the_axis() -> None:
    ax = result_of("surface").plot(kind="3d", log=True)
    np.testing.assert_allclose(ax.get_zlim(), np.log10([1, 35]))
    assert ax.zaxis.get_major_formatter()(1.0, 0) == "10"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"kind": "heat"}, "kind='heat' is not one of 'filled', 'contour', '3d'", id="kind"),
        pytest.param({"trajectory": [1.0, 2.0]}, r"trajectory: expected points \[T, 2\].*shape \(2,\)", id="flat"),
        pytest.param({"trajectory": np.zeros((0, 2))}, r"at least one, got shape \(0, 2\)", id="empty"),
        pytest.param({"trajectory": np.zeros((4, 3))}, r"shape \(4, 3\)", id="three-columns"),
        pytest.param({"variable": "count"}, r"'count' of shape \(\) does not have one value per point", id="variable"),
        pytest.param({"log": True, "loss": 0.0}, "log=True needs positive values, 12 of 12 are not", id="log-of-zero"),
        pytest.param({"size": 1}, r"at least 2 x 2 points, got shape \(1, 3\)", id="a-row"),
    ],
)
def test_what_cannot_be_drawn_is_said(options: dict, message: str) -> None:
    dataset = surface().isel(x=slice(options.pop("size", 4)))
    dataset["loss"] = dataset["loss"] * options.pop("loss", 1.0)
    with pytest.raises(ValueError, match=message):
        SweepResult(dataset).plot(**options)


@pytest.mark.parametrize(("kind", "projection"), [("3d", "rectilinear"), ("filled", "3d")])
def test_axes_have_to_fit_the_kind(kind: str, projection: str) -> None:
    ax = Figure().add_subplot(projection=projection)
    with pytest.raises(ValueError, match=f"kind='{kind}' cannot be drawn on axes of projection '{projection}'"):
        result_of("surface").plot(ax, kind=kind)


def test_given_axes_get_one_variable() -> None:
    figure = Figure()
    ax = figure.subplots()
    assert result_of("surface").plot(ax) is ax
    assert figure.axes == [ax]
    assert bar_of(ax).get_ylabel() == "loss (mean squared error)"
    assert len(result_of("surface").plot(variable="loss_stderr").figure.axes) == 1


@pytest.mark.parametrize("kind", ["filled", "contour", "3d"])
def test_blank_points_are_counted(kind: str) -> None:
    ax = SweepResult(with_gap(surface())).plot(kind=kind)
    assert ax.get_title(loc="right") == "1 of 12 not finite (blank)"
    ax.figure.draw_without_rendering()
    assert result_of("surface").plot(kind=kind).get_title(loc="right") == ""


@pytest.mark.parametrize("kind", ["filled", "contour", "3d"])
@pytest.mark.parametrize("value", [np.nan, 2.0], ids=["nothing-finite", "flat"])
def test_a_surface_without_relief_is_drawn(kind: str, value: float) -> None:
    dataset = surface().drop_vars("accuracy")
    dataset["loss"] = dataset["loss"] * 0 + value
    ax = SweepResult(dataset).plot(kind=kind)
    ax.figure.draw_without_rendering()
    assert ax.get_title(loc="right") == ("12 of 12 not finite (blank)" if np.isnan(value) else "")


@pytest.mark.parametrize("kind", ["filled", "contour"])
def test_a_trajectory_lies_over_the_surface(kind: str) -> None:
    ax = result_of("surface").plot(kind=kind, trajectory=TRAJECTORY)
    (drawn,) = [one for one in ax.lines if one.get_gid() == "trajectory"]
    np.testing.assert_array_equal(drawn.get_xydata(), TRAJECTORY)
    assert marks(ax)[:2] == ["start", "end"]
    assert all(drawn.zorder > artist.zorder for artist in ax.collections)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["filled", "contour", "3d"])
def test_everything_fits_into_the_figure(kind: str) -> None:
    far = surface().assign_coords(x=surface()["x"] * 1000, y=surface()["y"] * 1000)
    figure = SweepResult(far).plot(kind=kind, trajectory=np.multiply(TRAJECTORY, 1000)).figure
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height


def test_a_trajectory_in_three_dimensions_lies_on_the_surface() -> None:
    beyond = [*TRAJECTORY, [5.0, 3.0]]
    ax = result_of("surface").plot(kind="3d", trajectory=beyond)
    (drawn,) = [one for one in ax.lines if one.get_gid() == "trajectory"]
    np.testing.assert_allclose(np.stack(drawn.get_data_3d())[2], [1.0, 7.0, 35.0, np.nan])
    assert "end" not in marks(ax)


def test_a_heat_map_has_a_row_for_each_group() -> None:
    loss, accuracy = result_of("groups").plot().figure.axes
    assert [label.get_text() for label in loss.get_yticklabels()] == ["conv1 (weight)", "fc"]
    assert loss.get_ylim() == (1.5, -0.5)
    assert loss.get_ylabel() == "group"
    (mesh,) = loss.collections
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan), [[3.0, np.nan, 1.0], [1.5, 1.25, 1.0]])
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [-0.125, 0.125, 0.625, 1.375])
    assert loss.get_title(loc="right") == "1 of 6 not finite (blank)"
    assert [bar_of(ax).get_ylabel() for ax in (loss, accuracy)] == ["loss (mean cross-entropy)", "accuracy"]
    assert loss.get_xlabel() == accuracy.get_xlabel() == r"$\alpha$"


def test_a_heat_map_of_one_variable_and_its_logarithm() -> None:
    ax = result_of("groups").plot(variable="loss", log=True)
    assert ax.figure.axes == [ax]
    assert isinstance(ax.collections[0].norm, LogNorm)
    with pytest.raises(KeyError, match="no variable 'nothing'"):
        result_of("groups").plot(variable="nothing")


def test_a_heat_map_sorts_alphas() -> None:
    dataset = groups().isel(alpha=[2, 0, 1])
    ax = SweepResult(dataset).plot(variable="accuracy")
    np.testing.assert_array_equal(ax.collections[0].get_array()[1], 1 - np.array([1.5, 1.25, 1.0]) / 4)


def test_a_heat_map_of_one_alpha() -> None:
    ax = SweepResult(groups().isel(alpha=[1])).plot(variable="accuracy")
    np.testing.assert_array_equal(ax.collections[0].get_coordinates()[0, :, 0], [-0.25, 0.75])


def test_runs_have_a_named_line_each() -> None:
    ax = result_of("runs").plot()
    _, accuracy = ax.figure.axes
    assert ax.get_legend_handles_labels()[1] == ["sgd", 'adam, "lr" 0.1', "ü # nan (1 of 4 not finite)"]
    np.testing.assert_array_equal(curve(ax, 1), [[0.0, 1.0], [0.5, 0.5], [1.0, 0.05], [1.5, 0.0]])
    colors = [[one.get_color() for one in panel.lines if one.get_marker() == "."] for panel in (ax, accuracy)]
    assert colors[0] == colors[1] == ["C0", "C1", "C2"]
    assert names(ax) == ENDPOINTS


def test_runs_on_given_axes_share_one_twin() -> None:
    figure = Figure()
    ax = figure.subplots()
    result_of("runs").plot(ax)
    assert len(figure.axes) == 2
    assert len(ax.get_legend_handles_labels()[1]) == 3


def test_many_runs_are_thin_lines_without_a_legend() -> None:
    loss = np.ones((11, 3)) * [[2.0], *[[1.0]] * 10]
    loss[3, 1] = np.inf
    variables = {"loss": (("run", "alpha"), loss), "accuracy": (("run", "alpha"), loss / 2)}
    result = SweepResult(xr.Dataset(variables, coords={"run": np.arange(11), "alpha": [0.0, 1.0, 0.5]}))
    ax = result.plot()
    assert len(ax.figure.axes) == 2
    for panel in ax.figure.axes:
        lines = [one for one in panel.lines if one.get_gid() is None]
        assert len(lines) == 11
        assert panel.get_legend() is None
        assert names(panel) == ENDPOINTS
    np.testing.assert_array_equal(curve(ax, 3), [[0.0, 1.0], [0.5, 1.0], [1.0, np.inf]])
    assert ax.get_title() == "11 runs, 1 of 33 not finite"
    given = Figure().subplots()
    assert result.plot(given) is given
    assert given.figure.axes == [given]


def test_a_cut_is_drawn_over_its_own_axis() -> None:
    ax = result_of("cut").plot()
    assert ax.figure.axes[1].get_xlabel() == "$x$ (parameter distance)"
    np.testing.assert_array_equal(curve(ax), [[0.0, 11.0], [1.0, 12.0], [2.0, 13.0], [4.0, 15.0]])
    assert names(ax) == []


def test_marks_of_the_provenance_replace_the_endpoints() -> None:
    made = {"marks": [["theta", [0.0]], ["bend $1", [0.5]], ["theta_10", [1.0]]]}
    ax = SweepResult(line().assign_attrs(provenance=json.dumps(made))).plot()
    assert names(ax) == [r"$\theta$", r"bend \$1", r"$\theta_{10}$"]


@pytest.mark.parametrize(
    ("label", "text"),
    [("theta_T", r"$\theta_T$"), ("theta", r"$\theta$"), ("theta_12", r"$\theta_{12}$"), ("theta_a_b", "theta_a_b")],
)
def test_labels_as_text(label: str, text: str) -> None:
    assert as_text(label) == text


def test_single_points_have_no_picture() -> None:
    with pytest.raises(ValueError, match=r"no picture of single points; take them from \.to_dataframe"):
        result_of("points").plot()


@pytest.mark.parametrize("layout", ["line", "runs", "groups", "surface"])
def test_an_option_of_another_picture_is_refused(layout: str) -> None:
    wrong = "trajectory" if layout != "surface" else "label"
    with pytest.raises(TypeError, match=wrong):
        result_of(layout).plot(**{wrong: None})


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("points", "no-runs")])
def test_every_layout_is_saved(tmp_path: Path, layout: str) -> None:
    save_plot(result_of(layout), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_policies_share_a_pair_of_axes(tmp_path: Path) -> None:
    results = {"interpolate": SweepResult(line().drop_vars("accuracy")), "recalibrate": SweepResult(line())}
    figure = compare_policies(results, tmp_path / "policies.png")
    loss, accuracy = figure.axes
    assert loss.get_legend_handles_labels()[1] == ["interpolate", "recalibrate"]
    assert loss.get_legend().get_title().get_text() == "batch norm"
    # The second policy's colour, although it is the first that has an accuracy.
    assert [one.get_color() for one in accuracy.lines if one.get_marker() == "."] == ["C1"]
    assert (tmp_path / "policies.png").read_bytes().startswith(b"\x89PNG")


def test_policies_need_curves() -> None:
    with pytest.raises(ValueError, match="at least one policy"):
        compare_policies({})
    with pytest.raises(ValueError, match="policy 'batch' lies on run, alpha, not on alpha alone"):
        compare_policies({"batch": SweepResult(runs())})
