"""The CUDA part without a GPU: it imports, says why it cannot be used, and decides at build time as asked."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch

from mli_fast import native
from mli_fast.native import cuda
from mli_fast.native.cuda import loading
from tests.triton.helpers import GPU, needs_gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.environ.get("MLI_FAST_CUDA") != "1", reason="MLI_FAST_CUDA=1 was not asked for")
def test_cuda_was_built_where_it_was_asked_for() -> None:
    assert cuda.architectures() == ("sm_80", "sm_90a", "compute_80")


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_says_why_without_a_gpu() -> None:
    reason = cuda.why_missing()
    assert reason is not None
    x = torch.ones(4, 8)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert not cuda.takes_linear(x, [x])
    calls: list[Callable[[], object]] = [
        lambda: cuda.linear(x, [x], one),
        lambda: cuda.blend([x], one, torch.float32),
        lambda: cuda.BlendPlan([], []),
        lambda: cuda.split(x),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="no CUDA kernels: "):
            call()


@pytest.mark.gpu
@needs_gpu
def test_usable_on_a_gpu() -> None:
    assert cuda.why_missing() is None


def test_says_when_it_was_built_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "built", lambda: None)
    monkeypatch.setattr(loading.loading, "why_missing", lambda: None)
    assert loading.why_missing.__wrapped__() == "the compiled module was built without CUDA"


@pytest.mark.skipif(native.module() is None, reason=f"no compiled module: {native.why_missing()}")
def test_the_module_imports_without_torch_and_without_a_gpu() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _native; print(getattr(_native, 'cuda', None))"
    folder = str(Path(native.module().__file__).parent)  # type: ignore[union-attr,arg-type]
    code += "; print('torch' in sys.modules)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("asked", "nvcc", "decision"),
    [("auto", "/n/nvcc", "/n/nvcc"), ("auto", None, None), ("0", "/n/nvcc", None), ("1", "/n/nvcc", "/n/nvcc")],
)
def test_decision(
    build: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    nvcc: str | None,
    decision: str | None,
) -> None:
    monkeypatch.setenv("MLI_FAST_CUDA", asked)
    monkeypatch.setitem(build["decide_cuda"].__globals__, "find_nvcc", lambda: nvcc)
    assert build["decide_cuda"]() == decision
    assert f"CUDA: {'on' if decision else 'off'}" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "error"), [("1", OSError), ("yes", ValueError)])
def test_a_wish_that_cannot_be_met_is_an_error(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, asked: str, error: type[Exception]
) -> None:
    monkeypatch.setenv("MLI_FAST_CUDA", asked)
    monkeypatch.setitem(build["decide_cuda"].__globals__, "find_nvcc", lambda: None)
    with pytest.raises(error, match="MLI_FAST_CUDA"):
        build["decide_cuda"]()


@pytest.mark.parametrize("asked", ["auto", "1"])
def test_a_failing_cuda_build_is_loud(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    tried: list[str | None] = []

    def run_cmake(_self: object, _ext: object, nvcc: str | None) -> None:
        tried.append(nvcc)
        if nvcc:
            raise subprocess.CalledProcessError(1, "cmake")

    monkeypatch.setenv("MLI_FAST_CUDA", asked)
    monkeypatch.delenv("MLI_FAST_NATIVE", raising=False)
    command = build["CMakeBuild"]
    monkeypatch.setitem(build["decide_cuda"].__globals__, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(command, "run_cmake", run_cmake)
    if asked == "1":
        with pytest.raises(subprocess.CalledProcessError):
            command.build_extension(object.__new__(command), None)
        assert tried == ["nvcc"]
    else:
        command.build_extension(object.__new__(command), None)
        assert tried == ["nvcc", None]
        assert "CUDA KERNELS NOT BUILT" in capsys.readouterr().err
