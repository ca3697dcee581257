"""`make gpu-check` without a GPU: how its parts are run and recorded, and the measuring code itself in tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import (
    adopt,
    cases,
    child,
    kernels,
    measuring,
    process,
    run,
    suites,
    sweeps,
    table,
    tuning,
    workloads,
)
from benchmarks.gpu.timing import OutOfTime, interleaved, within

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
ABOUT = {
    "gpu": {"name": "Some GPU", "capability": "sm_90"},
    "versions": {"torch": "2.11.0", "cuda": "13.0", "triton": "3.6.0"},
}
Rows = dict[str, dict[str, Any]]


def measured(part: str, folder: Path, keys: list[str] | None = None, seconds: float = 300.0) -> Rows:
    """The rows of a part, measured in tiny sizes on the CPU."""
    out = folder / f"{part}.jsonl"
    assert child.measure(part, keys or child.module(part).keys(True), seconds, out, "cpu", True) == 0
    rows, open_ends = measuring.rows_of(out)
    assert not open_ends
    return rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_stops_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == run.NO_GPU
    assert done.stderr.startswith("gpu-check needs an NVIDIA GPU")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


class TestOrchestration:
    @pytest.fixture(autouse=True)
    def _some_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = SimpleNamespace(returncode=0, stdout="a warning\n" + json.dumps(ABOUT), stderr="")
        monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: said)

    @staticmethod
    def part(name: str, result: Any, share: float = 1.0) -> run.Part:
        def do(folder: Path, until: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            assert folder.is_dir()
            if isinstance(result, Exception):
                raise result
            return result(until) if callable(result) else result

        return run.Part(name, do, share)

    @staticmethod
    def report(folder: Path) -> dict[str, Any]:
        (file,) = folder.glob("gpu-*.json")
        return json.loads(file.read_text())

    def test_all_well(self, tmp_path: Path) -> None:
        parts = (
            self.part("a", {"passed": 3, "skipped": 1}),
            self.part("b", {"rows": {"k": {"ms": 1.0, "error": float("nan")}}}),
        )
        arguments = ["--results", str(tmp_path / "one"), "--out", str(tmp_path / "two")]
        assert run.main(arguments, parts) == 0
        report = self.report(tmp_path / "one")
        assert report == self.report(tmp_path / "two")
        assert report["gpu"]["name"] == "Some GPU"
        assert report["failures"] == []
        assert report["parts"]["a"]["passed"] == 3
        assert report["parts"]["b"]["rows"] == {"k": {"ms": 1.0, "error": "nan"}}
        assert not list(tmp_path.glob("*/*.part"))

    def test_what_breaks_down_is_recorded_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        def look(until: float) -> dict[str, Any]:
            assert "exploded" in self.report(tmp_path)["parts"]["a"]["failed"]  # written before the next part began
            return {"rows": {"k": {}}}

        parts = (self.part("a", RuntimeError("exploded")), self.part("b", look))
        assert run.main(["--results", str(tmp_path)], parts) == 1
        report = self.report(tmp_path)
        assert report["failures"] == ["a: RuntimeError: exploded"]
        assert report["parts"]["b"]["rows"] == {"k": {}}

    def test_time_is_shared_and_what_is_left_over_goes_to_the_next(self, tmp_path: Path) -> None:
        limits: list[float] = []

        def note(until: float) -> dict[str, Any]:
            limits.append(until - time.monotonic())
            return {}

        parts = (self.part("a", note, 1.0), self.part("b", note, 3.0))
        assert run.main(["--results", str(tmp_path), "--minutes", "1"], parts) == 0
        assert limits[0] == pytest.approx(15, abs=2)
        assert limits[1] == pytest.approx(60, abs=4)

    def test_parts_after_the_kernels_choose_by_their_figures(self, tmp_path: Path) -> None:
        key = {"op": "linear", "dtype": "bfloat16", "shape_class": "many rows", "arch": "sm_90"}
        row = {**key, "kernel": "triton", "route": "triton", "plain": False, "correct": True, "shape": "1x2"}
        row |= {"ms": 1.0, "plain_ms": 3.0}
        seen: list[Any] = []

        def look(_: float) -> dict[str, Any]:
            seen.extend(json.loads(Path(os.environ["MLI_FAST_FIGURES"]).read_text()))
            return {}

        parts = (self.part("kernels", {"rows": {"k": {"rows": [row]}}}), self.part("sweeps", look))
        assert run.main(["--results", str(tmp_path)], parts) == 0
        ratios = {(row["op"], row["kernel"], row["arch"]): row["ratio"] for row in seen}
        assert ratios["linear", "triton", "sm_90"] == 3.0
        assert ("linear", "native", "cpu") in ratios
        assert "MLI_FAST_FIGURES" not in os.environ
        assert self.report(tmp_path)["figures"][0]["file"] == "this run"

    def test_only_chooses_parts(self, tmp_path: Path) -> None:
        parts = (self.part("a", {}), self.part("b", {}), self.part("c", {}))
        assert run.main(["--results", str(tmp_path), "--only", "c,a"], parts) == 0
        assert list(self.report(tmp_path)["parts"]) == ["c", "a"]
        with pytest.raises(SystemExit):
            run.main(["--results", str(tmp_path), "--only", "z"], parts)

    @pytest.mark.parametrize(
        ("result", "count"),
        [
            ({"failures": ["test_x", "test_y"]}, 2),
            ({"rows": {"k": {"failed": "RuntimeError"}}}, 1),
            ({"rows": {"k": {"reason": "no time left"}}}, 0),
            ({"rows": {"k": {"rows": [{"route": "triton", "correct": False, "reason": "error 1"}]}}}, 1),
            ({"rows": {"k": {"variants": {"mli_fast": {"correct": False, "reason": "off"}}}}}, 1),
            ({"rows": {"k": {"variants": {"vmap": {"failed": "tied weights"}}}}}, 0),
        ],
        ids=["tests", "row", "time", "value", "sweep", "peer"],
    )
    def test_what_counts_as_a_failure(self, result: dict[str, Any], count: int) -> None:
        assert len(list(run.failures_of(result))) == count


def test_every_part_is_known() -> None:
    assert run.NAMES == ("build", "tests", "sanitizer", "ceilings", "tuning", "kernels", "sweeps", "memory")
    assert set(run.TIMED) | {"warming"} == set(child.PARTS)
    assert sum(part.share for part in run.PARTS) <= 7.6 * 60


def test_a_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    running = process.start(["bash", "-c", "sleep 60 & echo $!; sleep 60"], None, tmp_path)
    assert running.finish(time.monotonic() + 0.5) is None
    grandchild = Path("/proc") / running.tail().strip() / "stat"
    ended = time.monotonic() + 5
    while grandchild.exists() and ") Z" not in grandchild.read_text():  # nobody may have collected it yet
        assert time.monotonic() < ended
        time.sleep(0.01)


def test_pytest_files_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (suites, process):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(suites, "FOLDERS", ("sub",))
    monkeypatch.delenv("SLIPCOVER_ENABLED", raising=False)  # the coverage of these tests is none of those'
    marked = "import os, time, pytest\npytestmark = pytest.mark.gpu\n"
    bodies = {
        "good": "def test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\n",
        "bad": "def test_c(): assert 1 == 2\n",
        "crash": "def test_d(): os.kill(os.getpid(), 11)\n",
        "hang": "def test_e(): time.sleep(60)\n",
    }
    (tmp_path / "sub").mkdir()
    for name, body in bodies.items():
        (tmp_path / "sub" / f"test_{name}.py").write_text(marked + body)
    (tmp_path / "sub" / "test_none.py").write_text("def test_unmarked(): assert False\n")
    saved: list[Any] = []
    result = suites.tested(tmp_path, time.monotonic() + 8, lambda r: saved.append(json.dumps(r)))
    files = {Path(name).stem.removeprefix("test_"): found for name, found in result["files"].items()}
    assert result["passed"] == 1
    assert result["skipped"] == 1
    assert result["failures"] == ["sub.test_bad::test_c"]
    assert "assert 1 == 2" in files["bad"]["failures"][0]["message"]
    assert files["crash"]["failed"] == "exit status -11"
    assert files["hang"]["failed"] == "out of time"
    assert "failed" not in files["none"]
    assert len(saved) == 5


def test_no_memory_checker_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites.shutil, "which", lambda _: None)
    monkeypatch.setattr(suites.os, "access", lambda *_: False)
    assert suites.sanitizer(tmp_path, time.monotonic() + 1, lambda _: None) == {
        "reason": "compute-sanitizer is not installed"
    }


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'; exit 5", {}),
        ("echo '========= Invalid __global__ read'; exit 99", {"failed": "memcheck: errors"}),
        ("sleep 60", {"reason": "out of time; no error until then"}),
        ("echo '========= Invalid __global__ write'; sleep 60", {"failed": "memcheck: errors"}),
    ],
    ids=["clean", "found", "late", "late-found"],
)
def test_memory_checker(tool: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(f"#!/bin/bash\n{tool}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(suites.shutil, "which", lambda _: str(fake))
    result = suites.sanitizer(tmp_path / "work", time.monotonic() + 1.5, lambda _: None)
    assert {k: v for k, v in result.items() if k in ("failed", "reason")} == expected


def test_build_says_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ROOT", tmp_path)
    text = "import os, sys\nprint('mli_fast: CUDA:', os.environ['MLI_FAST_CUDA'])\nsys.exit('no nvcc')\n"
    (tmp_path / "setup.py").write_text(text)
    result = suites.build(tmp_path / "work", time.monotonic() + 20, lambda _: None)
    assert result["decisions"] == ["mli_fast: CUDA: 1"]
    assert result["failed"] == "exit status 1"
    assert "no nvcc" in result["log"]


class TestMeasuring:
    """The side that starts the measuring process; that process itself is a short script here."""

    @staticmethod
    def scripted(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        def begin(part: str, keys: list[str], folder: Path, seconds: float, options: Any) -> process.Running:
            out = folder / f"{part}.jsonl"
            prelude = (
                "import json, sys, os, time\nout, *keys = sys.argv[1:]\n"
                "def say(key, row, done):\n"
                "    with open(out, 'a') as file:\n"
                "        file.write(json.dumps(dict(key=key, row=row, done=done)) + '\\n')\n"
            )
            return process.start([sys.executable, "-c", prelude + script, str(out), *keys], None, folder)

        monkeypatch.setattr(measuring, "begin", begin)

    def test_a_fault_costs_its_own_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = (
            "for key in keys:\n"
            "    say(key, {}, False)\n"
            "    if key == 'gemm tf32': os.kill(os.getpid(), 11)\n"
            "    say(key, dict(ms=1, **(dict(failed='CUDA error') if key == 'copy' else {})), True)\n"
            "    if key == 'copy': sys.exit(3)\n"
        )
        self.scripted(monkeypatch, script)
        result = measuring.measured("ceilings", tmp_path, time.monotonic() + 60, lambda _: None)
        assert result["rows"]["copy"]["failed"] == "CUDA error"
        assert result["rows"]["gemm tf32"] == {"failed": "its process ended with exit status -11"}
        assert result["rows"]["gemm bfloat16"] == result["rows"]["gemm float32"] == {"ms": 1}
        assert len(list(run.failures_of(result))) == 2

    def test_out_of_time_keeps_what_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = "say('copy', dict(ms=2), True); say('gemm bfloat16', dict(ms=3), False); time.sleep(60)\n"
        self.scripted(monkeypatch, script)
        monkeypatch.setattr(measuring, "GRACE_S", 0.0)
        result = measuring.measured("ceilings", tmp_path, time.monotonic() + 2, lambda _: None)
        assert result["rows"]["copy"] == {"ms": 2}
        assert result["rows"]["gemm bfloat16"] == {"ms": 3, "reason": "out of time"}
        assert result["rows"]["gemm float32"] == {"reason": "no time left"}
        assert not list(run.failures_of(result))

    def test_a_child_that_cannot_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripted(monkeypatch, "sys.exit('no such module')\n")
        result = measuring.measured("ceilings", tmp_path, time.monotonic() + 60, lambda _: None)
        assert result["failed"] == "exit status 1 before anything was measured"
        assert "no such module" in result["log"]

    def test_the_real_child(self, tmp_path: Path) -> None:
        options = ("--device", "cpu", "--tiny")
        result = measuring.measured("ceilings", tmp_path, time.monotonic() + 120, lambda _: None, options)
        assert set(result["rows"]) == {"copy", "gemm bfloat16", "gemm tf32", "gemm float32"}
        assert all(row["ms"] > 0 for row in result["rows"].values())


def test_a_limit_stops_and_is_lifted() -> None:
    with pytest.raises(OutOfTime, match="the work"), within(0.05, "the work"):
        time.sleep(5)
    with within(0.05, "nothing"):
        pass
    time.sleep(0.1)


def test_interleaved_takes_everyone_as_often() -> None:
    order: list[str] = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, 0.0, least=4)
    assert [len(times) for times in found.values()] == [4, 4]
    assert "".join(order[2:]) == "abbaabba"


@pytest.fixture(scope="module")
def kernel_rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Every op in every precision that is measured, by PyTorch and by the compiled kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "ROUTES", ("reference", "native"))
        found = kernels.usable  # interpreted, Triton would take most of the time
        patch.setattr(kernels, "usable", lambda name, device: name != "triton" and found(name, device))
        patch.setattr(kernels, "backends", lambda: {"native": {"reason": "not compiled"}, "triton": {"reason": "-"}})
        return measured("kernels", tmp_path_factory.mktemp("kernels"))


def test_every_case_is_measured(kernel_rows: Rows) -> None:
    assert set(kernel_rows) == {case.key for case in cases.tiny_cases()}
    for key, row in kernel_rows.items():
        assert "failed" not in row, (key, row)
        plain = next(r for r in row["rows"] if r["route"] == "reference")
        assert plain["correct"], (key, plain)
        assert plain["ms"] > 0
        assert plain["plain_ms"] <= plain["ms"]
        for each in row["rows"]:
            assert each["ratio"] > 0 if each["correct"] else each["reason"], (key, each)


def test_cases_are_those_of_the_issue() -> None:
    found = {case.key: case for case in cases.all_cases()}
    assert len(found) == len(cases.all_cases())
    for dtype in ("bfloat16", "tf32", "float32"):
        for shape in ("50x512x4096x4096", "20x4096x4096x4096", "50x4096x1024x1024", "50x16x4096x4096"):
            assert f"linear/{dtype}/{shape}" in found
    assert found["linear/bfloat16/50x16x4096x4096"].goal == 2.0
    assert {case.op for case in found.values()} == set(cases.BUILDERS)


def test_a_triton_kernel_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    row = measured("kernels", tmp_path, ["linear/float32/3x5x17x19"])["linear/float32/3x5x17x19"]
    triton = next(r for r in row["rows"] if r["route"] == "triton")
    assert triton["correct"], triton
    assert (triton["kernel"], triton["shape_class"]) == ("triton", "few rows")
    assert {r["route"] for r in row["rows"]} >= {"reference", "triton", "native", "vendor on triton blend"}


def test_wrong_values_get_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(case: cases.Case, device: torch.device) -> cases.Bench:
        bench = cases.linear(case, device)
        right = bench.ours
        bench.ours = lambda: right() + 0.01
        return bench

    monkeypatch.setitem(kernels.BUILDERS, "linear", shifted)
    monkeypatch.setattr(kernels, "ROUTES", ("reference",))
    row = measured("kernels", tmp_path, ["linear/float32/3x5x17x19"])["linear/float32/3x5x17x19"]
    assert row["rows"][0]["correct"] is False
    assert "ms" not in row["rows"][0]
    assert list(run.failures_of({"rows": {"k": row}}))


def test_nan_is_wrong() -> None:
    exact = torch.ones(3, dtype=torch.float64)
    error = kernels.error_of(torch.tensor([1.0, float("nan"), 1.0]), exact)["error"]
    assert not error <= 1.0


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes too long for a test; what it is called with is looked at all the same."""

    def compiled(function: Any, *, dynamic: bool, mode: str | None = None) -> Any:
        assert dynamic is False
        return function

    monkeypatch.setattr(torch, "compile", compiled)


@pytest.fixture(scope="module")
def _few_rounds() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "ROUNDS", 2)
        yield


@pytest.mark.usefixtures("uncompiled", "_few_rounds")
@pytest.mark.parametrize("key", list(workloads.WORKLOADS))
def test_every_sweep_and_every_peer(key: str, tmp_path: Path) -> None:
    row = measured("sweeps", tmp_path, [key], seconds=120)[key]
    assert "failed" not in row, row
    variants = row["variants"]
    assert variants["mli_fast"]["correct"], variants["mli_fast"]
    assert row["ours_s"] > 0
    assert row["ratio"] > 0
    work = workloads.tiny(workloads.WORKLOADS[key])
    wanted = {"loop", "compiled_loop", "vmap"} | ({"compiled_vmap", "jax"} if work.name == "mlp" else set())
    assert wanted <= set(variants)
    for name in wanted - {"jax"}:
        if (work.name, name) == ("gpt2", "vmap"):
            assert variants[name]["reason"]  # no vmap of a network with tied weights
        else:
            assert variants[name]["correct"], (name, variants[name])
            assert len(variants[name]["tried"]) == len(sweeps.PEERS[name].candidates(work))
    if "float32" in key:
        assert variants["plain_loop"]["correct"]
        assert variants["plain_loop"]["scaled"] == "from 2 of 3 alphas"
        assert row["ratio_plain"] > 0


def test_a_peer_that_is_wrong_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    variant: dict[str, Any] = {}
    right = np.array([1.0, 2.0])
    assert sweeps._checked(variant, lambda: lambda: right * 1.1, right, [0, 1], 0.05) is None
    assert variant["correct"] is False
    assert sweeps._checked({}, lambda: lambda: right * 1.01, right, [0, 1], 0.05) is not None


@pytest.mark.usefixtures("uncompiled")
def test_warming_compiles_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLI_FAST_CACHE", str(tmp_path))
    rows = measured("warming", tmp_path, ["sweeps/mlp bfloat16", "sweeps/gpt2 bfloat16"])
    assert rows["sweeps/mlp bfloat16"]["done"]["compiled_loop 4"] == "compiled"
    assert rows["sweeps/gpt2 bfloat16"]["done"] == {"compiled_loop 4": "compiled"}
    calls: list[str] = []
    monkeypatch.setattr(tuning, "measure", lambda key, *_: calls.append(key))
    monkeypatch.setattr(kernels.Asked, "wrap", lambda _, work: lambda: calls.append("kernel"))
    rest = [key for key in child.module("warming").keys() if not key.startswith("sweeps")]  # noqa: SIM118
    measured("warming", tmp_path, rest)
    assert calls.count("kernel") == len(cases.tiny_cases())
    assert set(calls) - {"kernel"} == set(tuning.keys())


def test_tuning_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("MLI_FAST_CACHE", str(tmp_path))
    key = "linear float32 50x512x1024x1024"
    row = measured("tuning", tmp_path, [key])[key]
    assert row["tried"] == row["of"] == 2
    assert row["best"][0]["outcome"] <= row["default_ms"]
    assert len(json.loads((tmp_path / "triton.json").read_text())) == 1


def test_memory_is_measured(tmp_path: Path) -> None:
    rows = measured("memory", tmp_path)
    assert set(rows) == {"mli_fast", "vmap"}
    assert all(row["peak_bytes"] >= 0 and row["theta_bytes"] > 0 for row in rows.values())


class TestWhatIsMadeOfIt:
    @pytest.fixture
    def report(self, kernel_rows: Rows) -> dict[str, Any]:
        """A report as a GPU would leave it, of the tiny cases."""
        rows = json.loads(json.dumps(kernel_rows))
        for row in rows.values():
            for each in row["rows"]:
                each |= {"arch": "sm_90", "gpu": "Some GPU"}
        sweep = {
            "title": "MLP",
            "precision": "bfloat16",
            "goal": 2.0,
            "goal_plain": 200.0,
            "ours_s": 0.01,
            "ratio": 2.5,
        }
        peers = {"mli_fast": {}, "loop": {"title": "a loop"}, "plain_loop": {"median_s": 2.0, "scaled": "from 2 of 50"}}
        sweep |= {"ratio": 2.5, "best_peer": "loop", "best_peer_s": 0.025, "ratio_plain": 200.0, "variants": peers}
        memory = {"title": "MLP, 50 points", "theta_bytes": 2**20, "goal": 1 / 8}
        parts: dict[str, Any] = {"kernels": {"rows": rows}, "sweeps": {"rows": {"mlp": sweep, "late": {"reason": "-"}}}}
        parts["ceilings"] = {"rows": {"copy": {"ms": 1.0, "tbps": 4.0}, "gemm tf32": {"tflops": 368.0}}}
        parts["memory"] = {"rows": {"mli_fast": memory | {"peak_bytes": 2**22}, "vmap": memory | {"peak_bytes": 2**26}}}
        return {"date": "2026-01-02T03:04:05+00:00", **ABOUT, "parts": parts, "failures": []}

    @staticmethod
    def pretend(report: dict[str, Any], op: str, dtype: str, **changes: Any) -> None:
        """One row of the report as if a Triton kernel had been measured."""
        rows = report["parts"]["kernels"]["rows"]
        row = next(r for r in rows.values() for r in [r["rows"][0]] if (r["op"], r["dtype"]) == (op, dtype))
        like = {**row, "kernel": "triton", "route": "triton", "plain": False, "ms": 1.0, "plain_ms": 3.0, **changes}
        rows[f"{op} {dtype} {len(rows)}"] = {"rows": [like]}

    def test_adopted_rows(self, report: dict[str, Any], tmp_path: Path) -> None:
        report["parts"]["kernels"]["rows"] = {
            key: {"rows": [r for r in row["rows"] if r["plain"]]}
            for key, row in report["parts"]["kernels"]["rows"].items()
        }
        self.pretend(report, "linear", "bfloat16")
        self.pretend(report, "linear", "bfloat16", plain_ms=0.75, shape="other")
        self.pretend(report, "conv", "bfloat16")
        self.pretend(report, "conv", "bfloat16", correct=False, kernel=None, ms=None, reason="failed")
        self.pretend(report, "combine", "float32")
        file, figures = tmp_path / "gpu-1.json", tmp_path / "figures.json"
        file.write_text(json.dumps(report))
        figures.write_text("[]")
        adopt.adopt(file, figures)
        found = {(row["op"], row["dtype"]): row for row in json.loads(figures.read_text())}
        assert set(found) == {("linear", "bfloat16"), ("combine", "float32"), ("combine", "tf32")}
        linear = found["linear", "bfloat16"]
        assert linear["ratio"] == 1.5
        assert linear["worst"] == 0.75
        assert {
            "kernel": "triton",
            "arch": "sm_90",
            "on": "Some GPU",
            "date": "2026-01-02",
            "file": "gpu-1.json",
        }.items() <= (linear.items())

    def test_tables(self, report: dict[str, Any]) -> None:
        text = table.markdown(report)
        assert "| MLP, bfloat16 | 10.0 ms | 25.0 ms (a loop) | **2.50x** (goal 2x); **200.00x** (goal 200x)" in text
        assert "copy 4.00 TB/s; gemm tf32 368 TFLOP/s" in text
        assert "4 MiB (|theta| is 1 MiB); vmap 64 MiB, 0.062 of it (goal 0.125)" in text
        assert "linear, bfloat16" in text
        assert text.endswith("Some GPU, torch 2.11.0, CUDA 13.0, Triton 3.6.0, medians, 2026-01-02.")
        assert table.markdown({**report, "parts": {}}).startswith("Some GPU")
