from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from mli_fast.plot import check_plot_target, plot, plot_curves, save_plot
from mli_fast.result import SweepResult

ENDPOINTS = [r"$\theta_0$", r"$\theta_T$"]


def make_result(alphas=None, accuracy: bool = True, criterion: object = "cross_entropy", loss=None) -> SweepResult:
    alphas = np.linspace(0, 1, 5) if alphas is None else np.asarray(alphas, dtype=float)
    variables = {
        "loss": ("alpha", 2 - alphas if loss is None else loss),
        "loss_stderr": ("alpha", np.full(alphas.size, 0.1)),
    }
    if accuracy:
        variables["accuracy"] = ("alpha", alphas / 2)
    attrs = {"provenance": json.dumps({"criterion": criterion})}
    return SweepResult(xr.Dataset(variables, coords={"alpha": alphas}, attrs=attrs))


def curve(ax: Axes, index: int = 0) -> np.ndarray:
    """Points of the index-th curve: endpoint lines and markers apart."""
    lines = [line for line in ax.lines if line.get_gid() is None and line.get_linestyle() != "None"]
    return np.asarray(lines[index].get_xydata())


def names(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_new_figure_has_a_labelled_panel_for_each() -> None:
    ax = make_result().plot()
    loss, accuracy = ax.figure.axes
    assert ax is loss
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss (mean cross-entropy)", "accuracy")
    assert accuracy.get_xlabel() == loss.get_xlabel() == r"$\alpha$"
    assert names(loss) == names(accuracy) == ENDPOINTS
    np.testing.assert_array_equal(curve(loss), np.stack([np.linspace(0, 1, 5), 2 - np.linspace(0, 1, 5)], axis=1))
    np.testing.assert_array_equal(curve(accuracy)[:, 1], np.linspace(0, 1, 5) / 2)
    assert ax.figure.get_size_inches()[0] * 100 == 600


def test_without_accuracy_there_is_one_panel() -> None:
    assert len(make_result(accuracy=False).plot().figure.axes) == 1


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        pytest.param("mse", "loss (mean squared error)", id="named"),
        pytest.param("my_loss", "loss", id="a-callable's-name"),
        pytest.param(None, "loss", id="unknown"),
        pytest.param(["mse"], "loss", id="odd"),
    ],
)
def test_the_criterion_is_on_the_axis(criterion: object, expected: str) -> None:
    assert plot(make_result(criterion=criterion)).get_ylabel() == expected


def test_points_are_drawn_in_order_of_alpha() -> None:
    drawn = curve(plot(make_result(alphas=[1, 0, 0.5])))
    np.testing.assert_array_equal(drawn, [[0, 2], [0.5, 1.5], [1, 1]])


def test_gaps_stay_gaps_and_are_said() -> None:
    ax = plot(make_result(loss=[2, np.nan, 1.5, np.inf, 1]), label="train")
    assert np.isnan(curve(ax)[1, 1])
    assert ax.get_legend_handles_labels()[1] == ["train (2 of 5 not finite)"]
    assert curve(ax).shape == (5, 2)


def test_the_band_is_the_standard_error() -> None:
    ax = plot(make_result())
    (band,) = [artist for artist in ax.collections if isinstance(artist, PolyCollection)]
    heights = band.get_paths()[0].vertices
    np.testing.assert_allclose([heights[:, 1].min(), heights[:, 1].max()], [0.9, 2.1])


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [
        pytest.param([-1, 0, 1, 2], ENDPOINTS, id="beyond-both"),
        pytest.param([0.25, 0.5], [], id="inside"),
        pytest.param([0.5, 1], ENDPOINTS[1:], id="only-the-end"),
    ],
)
def test_endpoints_are_marked_where_the_curve_reaches_them(alphas: list[float], expected: list[str]) -> None:
    assert names(plot(make_result(alphas))) == expected


def test_curves_on_given_axes_share_one_twin() -> None:
    figure = Figure()
    ax = figure.subplots()
    assert make_result().plot(ax, label="train") is ax
    make_result().plot(ax, label="test")
    assert len(figure.axes) == 2
    assert names(ax) == ENDPOINTS
    assert ax.get_legend_handles_labels()[1] == ["train", "test"]
    twin = figure.axes[1]
    assert twin.get_ylabel() == "accuracy (dashed)"
    np.testing.assert_array_equal(curve(twin, 1)[:, 1], np.linspace(0, 1, 5) / 2)
    colors = [line.get_color() for line in ax.lines if line.get_label() in ("train", "test")]
    assert colors[0] != colors[1]


def test_grid_has_a_column_per_model(tmp_path: Path) -> None:
    curves = {"train": make_result(), "test": make_result(accuracy=False)}
    figure = plot_curves({"MLP": curves, "CNN": curves, "ViT": curves}, tmp_path / "curves.png")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["MLP", "CNN", "ViT", "", "", ""]
    assert [ax.get_legend_handles_labels()[1] for ax in figure.axes[:3]] == [["train", "test"]] * 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_grid_without_accuracy_has_one_row() -> None:
    figure = plot_curves({"MLP": {"train": make_result(accuracy=False)}})
    assert len(figure.axes) == 1


@pytest.mark.parametrize("nothing", [pytest.param({}, id="no-model"), pytest.param({"MLP": {}}, id="no-curve")])
def test_an_empty_grid_is_refused(nothing: dict) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves(nothing)


def test_save_plot_writes_what_the_suffix_names(tmp_path: Path) -> None:
    save_plot(make_result(), tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_targets_are_checked_ahead(tmp_path: Path) -> None:
    check_plot_target(tmp_path / "curve.PNG")
    with pytest.raises(ValueError, match=r"unknown suffix '.doc' for a plot; use one of .*\.png"):
        check_plot_target(tmp_path / "curve.doc")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_plot_target(tmp_path / "there" / "curve.png")


def test_matplotlib_and_scipy_are_imported_late_and_pyplot_never() -> None:
    program = (
        "import sys, numpy, xarray\n"
        "import mli_fast.plot\n"
        "from mli_fast.result import SweepResult\n"
        "assert not {'matplotlib', 'scipy.interpolate'} & set(sys.modules)\n"
        "result = SweepResult(xarray.Dataset({'loss': ('alpha', [1.0, 0.5])}, coords={'alpha': [0.0, 1.0]}))\n"
        "result.plot().figure.canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
