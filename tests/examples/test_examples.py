"""Each example in its short form: its table and figure are there, and what it measures behaves as it has to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import examples
from tests.examples.conftest import Made

pytestmark = pytest.mark.slow
FOLDER = Path(examples.__file__).parent
EXAMPLES = sorted(file.stem for file in FOLDER.glob("*.py") if "command(main)" in file.read_text())
Run = Callable[[str], Made]


@pytest.mark.parametrize("name", EXAMPLES)
def test_table_and_figure_are_there(made: Run, name: str) -> None:
    out, printed = made(name)
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    tables = [file for file in out.iterdir() if file.suffix == ".csv"]
    assert tables
    for file in tables:
        table = pd.read_csv(file)
        assert len(table)
        assert all(str(column) in printed for column in table.columns)


def test_monotone_rows_follow_the_papers_rule(made: Run) -> None:
    table = made("monotone").table([0, 1])
    assert len(table) == 8
    assert (table["counts"] == (table["final_loss"] <= 0.1)).all()
    assert table["counts"].any()
    assert (table["monotone"] == (table["min_delta"] <= 1e-3)).all()
    assert set(table["verdict"]) <= {"monotone", "not monotone", "undecided"}
    assert table["gauss_length"].between(0, 9 * np.pi).all()  # eleven points, nine angles


def test_breaking_larger_rates_move_further(made: Run) -> None:
    slow, fast = made("breaking").table().itertuples()
    assert fast.distance > 2 * slow.distance
    assert fast.distance / fast.distance_relative == pytest.approx(slow.distance / slow.distance_relative)


def test_plateau_is_the_biases(made: Run) -> None:
    table = made("plateau").table()
    error, loss = table["plateau of error"], table["plateau of loss"]
    assert error["weights at the start"] == loss["weights at the start"] == 1.0  # biases alone never leave it
    assert error["homogeneous biases"] < error["linear"] < error["last bias at the end"]
    ends = table["final loss"]
    for arrives in ("homogeneous biases", "last bias as alpha^6", "last bias at the end", "biases at the end"):
        assert ends[arrives] == pytest.approx(ends["linear"])
    assert ends["biases at the start"] != pytest.approx(ends["linear"])


def test_plateau_by_depth_and_class(made: Run) -> None:
    depths = made("plateau").table([0, 1], "depths")["plateau of loss"].unstack("schedule")
    assert depths["linear"].is_monotonic_increasing
    classes = made("plateau").table(name="classes")
    assert classes["predicted on the plateau"].sum() == pytest.approx(1.0)
    assert classes["half wrong up to"].between(0, 1).all()


def test_homogeneous_sweep_agrees_with_the_formula(made: Run) -> None:
    table = made("homogeneous").table([0, 1])
    for share in ("50%", "90%"):
        late = table[f"{share} right, sweep"] - table[f"{share} right, formula"]
        assert late.between(-1e-9, 0.005 + 1e-9).all()  # the first of the sweep's points that is not before it
    assert (table["largest difference"] <= 1 / table["images"]).all()
    assert table["50% right, formula"].groupby("network").is_monotonic_increasing.all()


def test_layers_alone_and_from_the_bottom(made: Run) -> None:
    table = made("layers").table([0, 1])
    alone, up_to = table["put back: loss"], table["put back up to here: loss"]
    for network in ("CNN", "MLP"):
        assert up_to[network].iloc[0] == pytest.approx(alone[network].iloc[0], rel=1e-5)
        assert up_to[network].iloc[-1] == pytest.approx(np.log(10), abs=0.1)  # all layers at their initialisation
    assert (alone < np.log(10)).all()
    assert table["put back: accuracy"].between(0, 1).all()


def test_connectivity_curve_lies_below_the_line(made: Run) -> None:
    table = made("connectivity").table([0, 1])
    for measure in ("barrier (midpoint)", "barrier (chord)", "largest error, %"):
        paths = table[measure].unstack("path")
        assert (paths["Bezier"] < paths["line"]).all()
    ends = table[["loss of the ends", "CKA of the ends"]]
    of_line, of_curve = (ends.xs(path, level="path") for path in ("line", "Bezier"))
    np.testing.assert_allclose(of_line, of_curve, rtol=1e-5)
    assert (table["least CKA with the end"] <= table["CKA of the ends"]).all()


def test_surface_shows_the_trajectory_in_its_own_plane(made: Run) -> None:
    random, own = made("surface").table()["share of the trajectory"]
    assert random < 0.05
    assert 0.9 < own <= 1.0


def test_batch_norm_policies_meet_where_they_must(made: Run) -> None:
    for line in ("initialisation-to-end", "two-networks"):
        table = made("batch_norm").table(name=line)
        at_0, at_1 = table["loss at 0"], table["loss at 1"]
        assert at_0["interpolate"] == pytest.approx(at_0["start"], rel=1e-5)
        assert at_1["interpolate"] == pytest.approx(at_1["end"], rel=1e-5)
        assert at_1["start"] > at_1["end"]
        assert table["loss at 0.5"]["recalibrate"] < table["loss at 0.5"]["interpolate"]


def test_many_siblings_are_closer_than_strangers(made: Run) -> None:
    barriers = made("many").table([0, 1])["barrier of the loss"]
    families = barriers.index.unique("family")
    assert len(barriers) == len(families) * (len(families) + 1) / 2
    strangers = barriers["strangers", "strangers"]
    assert all(barriers[family, family] < strangers / 2 for family in families if family != "strangers")


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "made" / "by-it"
    command = [sys.executable, "-m", "examples.homogeneous", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert {file.name for file in out.iterdir()} == {"figure.png", "table.csv"}
    assert f"Written to {out}/" in done.stdout


def test_command_names_data_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.homogeneous", "--data", "nowhere", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--data nowhere: expected 'digits' or a folder with MNIST's idx files" in done.stderr
    assert not (tmp_path / "out").exists()
