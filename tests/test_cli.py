from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import mli_fast
from mli_fast.cli import app, text
from mli_fast.cli.arguments import parse_alphas
from mli_fast.result import SweepResult, load
from mli_fast.schedules import power

USER_CODE = """
    import torch
    from torch import nn

    instance = nn.Linear(3, 4)
    pair = (torch.linspace(-1, 1, 30).reshape(10, 3), torch.arange(10) % 4)
    number = 3

    def make_model():
        return nn.Linear(3, 4)

    def make_pair():
        return pair

    def make_batches():
        X, y = pair
        for start in range(0, 10, 4):
            yield X[start : start + 4], y[start : start + 4]

    class Loader:
        def __iter__(self):
            return make_batches()

    def needs_more(argument):
        return argument

    def fails():
        raise RuntimeError("no such dataset")

    def returns_number():
        return 3
"""


class Stub:
    """Stands in for mli_fast.sweep where only the command line around it is looked at."""

    def __init__(self, action: BaseException | Warning | None = None) -> None:
        self.action = action
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> SweepResult:
        self.arguments, self.options = arguments, options
        if isinstance(self.action, Warning):
            warnings.warn(self.action, stacklevel=1)
        elif self.action is not None:
            raise self.action
        return make_result()


def make_result() -> SweepResult:
    variables = {
        "loss": ("alpha", [1.25, 2.0, 1.0]),
        "loss_stderr": ("alpha", [0.125, 0.25, np.nan]),
        "accuracy": ("alpha", [0.5, 0.1, 0.75]),
        "count": np.int64(1797),
    }
    provenance = {
        "criterion": "mse",
        "versions": {"torch": "2.13.0"},
        "seconds": 1.23456789,
        "kept": {},
        "names": ["x"] * 200,
    }
    attrs = {"provenance": json.dumps(provenance)}
    return SweepResult(xr.Dataset(variables, coords={"alpha": [1.0, 0.0, 0.5]}, attrs=attrs))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody's, as the current one, with code and two checkpoints."""
    (tmp_path / "usercode.py").write_text(textwrap.dedent(USER_CODE))
    (tmp_path / "halfbroken.py").write_text("import a_package_that_is_not_there\n")
    torch.manual_seed(0)
    for name in ("start", "end"):
        save_file(nn.Linear(3, 4).state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    # Restores sys.path, which the command line extends, and forgets the module of the test before.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "usercode", raising=False)
    return tmp_path


def sweep_options(**changed: str) -> list[str]:
    options = {
        "--model": "usercode:make_model",
        "--theta-0": "start.safetensors",
        "--theta-T": "end.safetensors",
        "--data": "usercode:make_pair",
        "--alphas": "0,0.25,1",
    }
    options.update({f"--{name.replace('_', '-')}": value for name, value in changed.items()})
    return [part for pair in options.items() for part in pair]


def plain_loop(alphas: list[float]) -> list[float]:
    """The losses as a reader of the definition would compute them, in float64."""
    import usercode

    start, end = (nn.Linear(3, 4), nn.Linear(3, 4))
    from safetensors.torch import load_file

    start.load_state_dict(load_file("start.safetensors"))
    end.load_state_dict(load_file("end.safetensors"))
    X, y = usercode.pair
    losses = []
    for alpha in alphas:
        weight = (1 - alpha) * start.weight.double() + alpha * end.weight.double()
        bias = (1 - alpha) * start.bias.double() + alpha * end.bias.double()
        losses.append(nn.functional.cross_entropy(X.double() @ weight.T + bias, y).item())
    return losses


@pytest.mark.parametrize("data", ["make_pair", "pair", "make_batches", "Loader"])
def test_sweep_end_to_end(user: Path, data: str) -> None:
    out = ["--out", "curve.nc", "--out", "curve.csv", "--plot", "curve.png", "--no-progress"]
    done = invoke("sweep", *sweep_options(data=f"usercode:{data}"), *out)
    assert done.exit_code == 0, done.output
    result = load("curve.nc")
    np.testing.assert_allclose(result.loss, plain_loop([0.0, 0.25, 1.0]), rtol=1e-5)
    assert result.count == 10
    assert load("curve.csv").dataset.identical(result.dataset)
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["alpha", "loss", "accuracy"]
    assert [line.split()[0] for line in lines[1:4]] == ["first", "lowest", "last"]
    assert f"{result.loss[0]:.5f}" in lines[1]
    assert lines[-4].startswith("3 points, 10 examples, ")
    assert lines[-3:] == ["wrote curve.nc", "wrote curve.csv", "wrote curve.png"]


def test_sweep_takes_a_count_and_a_module_instance(user: Path) -> None:
    done = invoke("sweep", *sweep_options(model="usercode:instance", alphas="5"), "--metric", "none", "--out", "c.json")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(load("c.json").alphas, np.linspace(0, 1, 5))
    assert "accuracy" not in load("c.json")
    assert "accuracy" not in done.stdout


def test_sweep_passes_every_option_on(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()
    monkeypatch.setattr(mli_fast, "sweep", stub, raising=False)
    given = {
        "criterion": "mse",
        "batch_norm": "end",
        "precision": "fp64",
        "backend": "reference",
        "chunk": "7",
        "device": "cpu",
    }
    options = sweep_options(**given)
    moves = ["--schedule", "bias=start", "--schedule", "head.*=power:2", "--tol", "0.5"]
    done = invoke("sweep", *options, *moves, "--metric", "accuracy", "--metric", "class_loss", "--progress")
    assert done.exit_code == 0, done.output
    model, theta_0, theta_t, data, alphas = stub.arguments
    assert isinstance(model, nn.Linear)
    assert (theta_0, theta_t, alphas) == ("start.safetensors", "end.safetensors", [0.0, 0.25, 1.0])
    assert torch.equal(data[1], torch.arange(10) % 4)
    passed_on = {"calibration": None, "schedule": {"bias": "start", "head.*": power(2)}, "tol": 0.5}
    assert stub.options == {
        **given,
        **passed_on,
        "chunk": 7,
        "metrics": ("accuracy", "class_loss"),
        "progress": True,
    }


@pytest.mark.parametrize(("policy", "data"), [("recalibrate", "make_pair"), ("update-bn", "make_batches")])
def test_sweep_recalibrates_over_data_named_like_the_loader(
    user: Path, monkeypatch: pytest.MonkeyPatch, policy: str, data: str
) -> None:
    stub = Stub()
    monkeypatch.setattr(mli_fast, "sweep", stub, raising=False)
    arguments = [
        *sweep_options(batch_norm=policy),
        "--calibration",
        f"usercode:{data}",
        "--alphas",
        "adaptive",
    ]
    done = invoke("sweep", *arguments)
    assert done.exit_code == 0, done.output
    assert stub.arguments[4] == "adaptive"
    assert stub.options["batch_norm"] == policy
    given = stub.options["calibration"]
    targets = given[1] if data == "make_pair" else torch.cat([y for _, y in given])
    assert torch.equal(targets, torch.arange(10) % 4)


@pytest.mark.parametrize("given", ["bias", "bias=", "=start", "bias=power:x", "bias=power:-1"])
def test_sweep_says_how_a_schedule_is_given(user: Path, given: str) -> None:
    done = invoke("sweep", *sweep_options(), "--schedule", given)
    assert done.exit_code != 0
    assert f"--schedule {given}" in done.stderr


def test_sweep_defaults_are_those_of_the_library(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()
    monkeypatch.setattr(mli_fast, "sweep", stub, raising=False)
    assert invoke("sweep", *sweep_options(alphas="-0.5,1.5")).exit_code == 0
    assert stub.arguments[4] == [-0.5, 1.5]
    arguments = sweep_options()
    del arguments[arguments.index("--alphas") :]
    assert invoke("sweep", *arguments).exit_code == 0
    assert stub.arguments[4] == 50
    assert stub.options == {
        "criterion": "cross_entropy",
        "metrics": ("accuracy",),
        "batch_norm": "interpolate",
        "calibration": None,
        "schedule": None,
        "tol": None,
        "precision": None,
        "device": None,
        "backend": "auto",
        "chunk": "auto",
        "progress": None,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"model": "usercode"}, "give it as package.module:name", id="no-colon"),
        pytest.param({"model": "not_there:x"}, "no module named 'not_there'", id="no-module"),
        pytest.param({"model": "usercode.deep:x"}, "no module named 'usercode.deep'", id="no-submodule"),
        pytest.param({"model": "usercode:make_modl"}, "no 'make_modl'; did you mean make_model", id="typo"),
        pytest.param(
            {"model": "usercode:number"}, "is of type int, neither an nn.Module nor a callable", id="not-callable"
        ),
        pytest.param({"model": "usercode:returns_number"}, "returned int instead of an nn.Module", id="not-a-module"),
        pytest.param({"model": "usercode:needs_more"}, "called without arguments for --model", id="takes-arguments"),
        pytest.param({"data": "usercode:number"}, "neither an iterable of batches", id="data-not-iterable"),
        pytest.param({"data": "usercode:returns_number"}, "returned int instead of an iterable", id="data-returned"),
        pytest.param({"alphas": "0,half,1"}, "--alphas '0,half,1'", id="alphas"),
        pytest.param({"out": "curve.xlsx"}, "use one of .nc, .json, .csv", id="out-suffix"),
        pytest.param({"out": "there/curve.nc"}, "the folder there does not exist", id="out-folder"),
        pytest.param({"plot": "curve.doc"}, "unknown suffix '.doc' for a plot", id="plot-suffix"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    user: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], message: str
) -> None:
    stub = Stub()
    monkeypatch.setattr(mli_fast, "sweep", stub, raising=False)
    done = invoke("sweep", *sweep_options(**changed))
    assert done.exit_code == 2
    assert stub.arguments == (), "it must be found before anything is computed"
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_missing_checkpoint_is_code_2(user: Path) -> None:
    done = invoke("sweep", *sweep_options(theta_0="gone.safetensors"))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "gone.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"data": "usercode:fails"}, "error: RuntimeError: no such dataset", id="loader-raises"),
        pytest.param({"model": "halfbroken:x"}, "a_package_that_is_not_there", id="their-import-fails"),
    ],
)
def test_other_errors_are_code_1(user: Path, changed: dict[str, str], message: str) -> None:
    done = invoke("sweep", *sweep_options(**changed))
    assert done.exit_code == 1
    assert message in done.stderr
    assert "\n  raised " in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        pytest.param(ValueError("bad shape"), 2, ["error: bad shape"], id="value"),
        pytest.param(RuntimeError("out of memory"), 1, ["error: RuntimeError: out of memory"], id="runtime"),
        pytest.param(KeyError("no such thing"), 1, ["error: KeyError: no such thing"], id="key"),
        pytest.param(ZeroDivisionError(), 1, ["error: ZeroDivisionError"], id="without-text"),
        pytest.param(KeyboardInterrupt(), 130, ["interrupted"], id="ctrl-c"),
    ],
)
def test_errors_of_the_sweep(
    user: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, lines: list[str]
) -> None:
    monkeypatch.setattr(mli_fast, "sweep", Stub(error), raising=False)
    done = invoke("sweep", *sweep_options(out="curve.nc"))
    assert done.exit_code == code
    assert done.stderr.splitlines() == lines
    assert not Path("curve.nc").exists()


def test_notes_of_an_error_are_printed(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError("targets out of range")
    error.add_note("batch 3, alphas 0 to 0.5")
    monkeypatch.setattr(mli_fast, "sweep", Stub(error), raising=False)
    done = invoke("sweep", *sweep_options())
    assert done.stderr.splitlines() == ["error: targets out of range", "  batch 3, alphas 0 to 0.5"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), ValueError("bad")])
def test_debug_shows_the_traceback(user: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(mli_fast, "sweep", Stub(error), raising=False)
    done = invoke("sweep", *sweep_options(), "--debug")
    assert done.exception is error


def test_warnings_are_lines(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mli_fast, "sweep", Stub(UserWarning("theta_0 holds NaN")), raising=False)
    done = invoke("sweep", *sweep_options())
    assert done.exit_code == 0
    assert done.stderr.splitlines() == ["warning: theta_0 holds NaN"]


@pytest.mark.parametrize("suffix", [".nc", ".json", ".csv"])
def test_show_prints_provenance_and_every_point(tmp_path: Path, suffix: str) -> None:
    make_result().save(tmp_path / f"curve{suffix}")
    done = invoke("show", tmp_path / f"curve{suffix}", "--plot", tmp_path / "curve.png")
    assert done.exit_code == 0, done.output
    provenance, table = done.stdout.split("\n\n")
    assert [line.split(maxsplit=1) for line in provenance.splitlines()[:3]] == [
        ["criterion", "mse"],
        ["versions", "torch=2.13.0"],
        ["seconds", "1.235"],
    ]
    assert provenance.endswith("...")
    assert "kept" not in provenance
    assert [line.split() for line in table.splitlines()[:4]] == [
        ["alpha", "loss", "accuracy"],
        ["0.0000", "2.00000", "+-", "0.25000", "0.10000"],
        ["0.5000", "1.00000", "+-", "nan", "0.75000"],
        ["1.0000", "1.25000", "+-", "0.12500", "0.50000"],
    ]
    assert "\nmonotone: no, min Delta 0.25 (from alpha 0.5 to 1)\n" in table
    assert (tmp_path / "curve.png").exists()


@pytest.mark.parametrize(
    ("loss", "closing"),
    [
        pytest.param([np.nan, np.nan], "monotone: unknown, the curve holds NaN", id="all-nan"),
        pytest.param([np.inf, 1.0], "monotone: yes, min Delta 0", id="an-infinity"),
    ],
)
def test_summary_of_odd_curves(capsys: pytest.CaptureFixture[str], loss: list[float], closing: str) -> None:
    text.print_summary(SweepResult(xr.Dataset({"loss": ("alpha", loss)}, coords={"alpha": [0.0, 1.0]})))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [closing, "2 points"]
    assert ("lowest loss" in "".join(lines)) == np.isfinite(loss).any()


@pytest.mark.parametrize(
    ("losses", "cells"),
    [
        pytest.param([0.0, 0.0], ["0.00000", "0.00000"], id="zero"),
        pytest.param([1e-6, 2e-7], ["1.00000e-06", "2.00000e-07"], id="tiny"),
        pytest.param([np.nan, 3e8], ["nan", "3.00000e+08"], id="huge-beside-nan"),
    ],
)
def test_losses_of_any_scale_keep_their_digits(
    capsys: pytest.CaptureFixture[str], losses: list[float], cells: list[str]
) -> None:
    text.print_curve(SweepResult(xr.Dataset({"loss": ("alpha", losses)}, coords={"alpha": [0.0, 1.0]})))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:3]] == cells


@pytest.mark.parametrize("content", [None, b"not a result"], ids=["missing", "damaged"])
def test_show_names_a_file_it_cannot_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "curve.nc"
    if content is not None:
        path.write_bytes(content)
    done = invoke("show", path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert len(done.stderr.splitlines()) == 1


def test_info_says_what_works_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "reference": {"available": True, "reason": ""},
        "native": {"available": True, "reason": "", "isa": "avx512", "kernels": ["blend", "combine"]},
        "triton": {"available": False, "reason": "torch sees no CUDA device"},
    }
    monkeypatch.setattr(mli_fast, "backends", lambda: found, raising=False)
    done = invoke("info")
    assert done.exit_code == 0, done.output
    assert f"torch        {torch.__version__.split('+')[0]}" in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[-3:] == [
        "reference yes",
        "native yes isa: avx512; kernels: blend, combine",
        f"triton no {found['triton']['reason']}",
    ]


def test_info_of_this_machine() -> None:
    done = invoke("info")
    assert done.exit_code == 0, done.output
    for name, entry in mli_fast.backends().items():
        (line,) = [line for line in done.stdout.partition("backend ")[2].splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1] == ("yes" if entry["available"] else "no")


def test_demo_runs_into_the_folder_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mli_fast.demo

    calls = []
    monkeypatch.setattr(mli_fast.demo, "main", lambda out, quick: calls.append((out, quick)))
    assert invoke("demo").exit_code == 0
    assert invoke("demo", "--quick", "--out", tmp_path).exit_code == 0
    assert calls == [(Path("demo-output"), False), (tmp_path, True)]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param([], ["demo", "sweep", "show", "info"], id="root"),
        pytest.param(["sweep"], ["--model PKG.MOD:NAME", "--theta-0", "--theta-T", "mycode:make_model"], id="sweep"),
        pytest.param(["show"], ["--plot", ".nc, .json or .csv"], id="show"),
        pytest.param(["demo"], ["--out FOLDER"], id="demo"),
        pytest.param(["info"], ["backends"], id="info"),
    ],
)
def test_help_says_what_there_is(command: list[str], expected: list[str]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0
    for part in expected:
        assert part in done.stdout


def test_version() -> None:
    done = invoke("--version")
    assert done.exit_code == 0
    assert done.stdout.startswith("mli-fast ")


def test_python_m_is_the_same_program(tmp_path: Path) -> None:
    make_result().save(tmp_path / "curve.json")
    program = [sys.executable, "-m", "mli_fast", "show", str(tmp_path / "curve.json")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout == invoke("show", tmp_path / "curve.json").stdout


def test_a_reader_that_stops_is_no_error(tmp_path: Path) -> None:
    make_result().save(tmp_path / "curve.json")
    program = [sys.executable, "-m", "mli_fast", "show", str(tmp_path / "curve.json")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_terminal_gets_the_same_cells(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["first", "[bold]"], ["second", "2"]]
    text.print_table(["<name", "value"], rows)
    plain = capsys.readouterr().out
    assert plain.splitlines() == ["name     value", "first   [bold]", "second       2"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    text.print_table(["<name", "value"], rows)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        line.split() for line in plain.splitlines()
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("50", 50), ("1", 1), ("0.5", [0.5]), ("1,", [1.0]), ("-0.5, 0,1e-1", [-0.5, 0.0, 0.1])],
)
def test_alphas_are_a_count_or_values(given: str, expected: int | list[float]) -> None:
    assert parse_alphas(given) == expected
