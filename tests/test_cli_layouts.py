from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mli_fast.cli import app, text
from mli_fast.result import SweepResult
from tests.results import LAYOUTS, result_of, runs, surface


def shown(tmp_path: Path, layout: str) -> list[list[str]]:
    """The words of each line that `show` prints after the provenance."""
    path = tmp_path / "result.json"
    result_of(layout).save(path)
    done = CliRunner().invoke(app, ["show", str(path)])
    assert done.exit_code == 0, done.output
    return [line.split() for line in f"\n{done.stdout}".partition("\n\n")[2].splitlines()]


def test_show_of_a_surface_is_its_extremes_and_anchors(tmp_path: Path) -> None:
    head, *rows = shown(tmp_path, "surface")
    assert head == ["x", "y", "loss", "accuracy"]
    assert rows[:2] == [
        ["lowest", "loss", "0.0000", "0.0000", "1.00000", "+-", "0.10000", "1.00000"],
        ["highest", "loss", "4.0000", "3.0000", "35.00000", "+-", "3.50000", "0.02857"],
    ]
    assert [(row[:3], row[3:5]) for row in rows[2:]] == [
        (["nearest", "to", "theta_0"], ["0.0000", "0.0000"]),
        (["nearest", "to", "theta_1"], ["4.0000", "0.0000"]),
        (["nearest", "to", "theta_2"], ["1.0000", "1.0000"]),
    ]


def test_show_of_runs_is_their_table(tmp_path: Path) -> None:
    head, *rows = shown(tmp_path, "runs")
    assert " ".join(head) == (
        "run initial loss final loss initial accuracy final accuracy min delta monotone distance gauss length"
    )
    assert " ".join(rows[0]) == "sgd 2.00000 1.25000 0.09091 0.00000 0.25000 no 3.00000 0.50000 +- 0.12500"
    assert [row[-6:-4] for row in rows[:2]] == [["0.25000", "no"], ["0.00000", "yes"]]
    assert len(rows) == 3


def test_whole_numbers_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_curve(SweepResult(runs().assign(seed=("run", [0, 1, 2]))))
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["seed", "0", "1", "2"]


def test_show_of_points_is_all_of_them(tmp_path: Path) -> None:
    assert shown(tmp_path, "points") == [
        ["task_1", "task_2", "loss"],
        ["0.0000", "1.0000", "1.00000"],
        ["0.2500", "-0.5000", "0.50000"],
        ["1.0000", "0.0000", "2.00000"],
    ]


def test_show_of_a_cut_is_in_order(tmp_path: Path) -> None:
    assert [row[0] for row in shown(tmp_path, "cut")] == ["x", "0.0000", "1.0000", "2.0000", "4.0000"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_summary(capsys: pytest.CaptureFixture[str], layout: str) -> None:
    text.print_summary(result_of(layout))
    *_, effort = capsys.readouterr().out.splitlines()
    assert effort.startswith(f"{result_of(layout).size} points")


def test_a_surface_without_a_finite_value_shows_its_anchors(capsys: pytest.CaptureFixture[str]) -> None:
    text.print_curve(SweepResult(surface().assign(loss=(("x", "y"), np.full((4, 3), np.inf)))))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["nearest"] * 3
