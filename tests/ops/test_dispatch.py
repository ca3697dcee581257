"""The dispatch table: what was never measured on a GPU is never chosen there unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mli_fast.ops import dispatch
from mli_fast.ops.backend import requested
from mli_fast.ops.dispatch import FIGURES, KERNELS, PLAIN, choose, ranked, shape_class

GPU = torch.device("cuda", 0)
OPS = sorted({k.op for k in KERNELS})


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, dict[str, float]]]:
    """As on a machine with an H200 on which every backend is usable; yields the figures, to be filled in."""
    figures: dict[Any, dict[str, float]] = {}
    monkeypatch.setattr(dispatch, "architecture", lambda device: ("sm_90", 90))
    monkeypatch.setattr(dispatch, "usable", lambda name, device: True)
    monkeypatch.setattr(dispatch, "figures", lambda: figures)
    ranked.cache_clear()
    yield figures
    ranked.cache_clear()


def names(*arguments: Any) -> list[str]:
    return [k.name for k in ranked(*arguments)]


def test_every_figure_is_of_a_kernel_in_the_table() -> None:
    rows = json.loads(FIGURES.read_text())
    known = {(k.op, k.name) for k in KERNELS}
    assert rows
    for row in rows:
        assert (row["op"], row["kernel"]) in known, row
        assert row["ratio"] > 0
        assert {"dtype", "shape_class", "arch", "on", "date", "shapes"} <= row.keys()


def test_another_file_of_figures_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "figures.json"
    other.write_text("[]")
    environment = {**os.environ, "MLI_FAST_FIGURES": str(other)}
    command = [sys.executable, "-c", "from mli_fast.ops import dispatch; print(dispatch.figures())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{}"


def test_every_kernel_on_the_cpu_has_its_figures() -> None:
    measured = {(row["op"], row["kernel"]) for row in json.loads(FIGURES.read_text()) if row["arch"] == "cpu"}
    assert measured == {(k.op, k.name) for k in KERNELS if k.device == "cpu"}


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_a_kernel_without_a_figure_is_never_chosen_unasked(op: str, dtype: str, hopper: Any) -> None:
    assert names(op, GPU, dtype, "any", "auto") == []
    assert names(op, GPU, dtype, "many rows", "reference") == []


def test_the_kernel_with_the_best_figure_above_1_is_chosen(hopper: dict[Any, dict[str, float]]) -> None:
    key = ("linear", "bfloat16", "many rows", "sm_90")
    hopper[key] = {"native": 0.9}
    assert names("linear", GPU, "bfloat16", "many rows", "auto") == []
    ranked.cache_clear()
    hopper[key] = {"native": 1.1, "triton": 1.4}
    assert names("linear", GPU, "bfloat16", "many rows", "auto") == ["triton", "native"]
    assert names("linear", GPU, "bfloat16", "few rows", "auto") == []
    assert names("linear", GPU, "float16", "many rows", "auto") == []


def test_asking_for_a_backend_takes_its_kernels_as_they_are(hopper: Any) -> None:
    assert names("linear", GPU, "tf32", "any", "triton") == ["triton"]
    assert names("linear", GPU, "tf32", "any", "native") == ["native"]
    assert names("conv", GPU, "bfloat16", "small", "native") == ["cudnn"]
    assert names("linear", GPU, "float64", "any", "triton") == []


@pytest.mark.parametrize("capability", [75, 80, 89, 90, 100])
def test_what_is_compiled_for_one_architecture_runs_on_no_other(
    capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "architecture", lambda device: (f"sm_{capability}", capability))
    monkeypatch.setattr(dispatch, "usable", lambda name, device: True)
    ranked.cache_clear()
    assert names("linear", GPU, "bfloat16", "any", "native") == (["native"] if capability == 90 else [])
    assert names("blend", GPU, "bfloat16", "any", "native") == (["native"] if capability >= 80 else [])
    ranked.cache_clear()


def test_operands_of_another_dtype_go_to_pytorch() -> None:
    x, weight = torch.zeros(3, 4), torch.zeros(5, 4)
    with requested("native") as choice:
        assert choose("linear", (x, weight.double()), shape_class("linear", 3, 5, 4)) == PLAIN
    assert choice.used == {"linear:reference"}


@pytest.mark.parametrize(
    ("op", "sizes", "expected"),
    [
        ("linear", (1, 9, 9), "few rows"),
        ("linear", (65, 9, 9), "some rows"),
        ("linear", (513, 9, 9), "many rows"),
        ("conv", (2, 15, 64), "thin"),
        ("conv", (1, 64, 64), "thin"),
        ("conv", (2, 64, 16), "small"),
        ("conv", (2, 128, 64), "large"),
        ("linear_cross_entropy", (10,), "few classes"),
        ("linear_cross_entropy", (50257,), "many classes"),
        ("blend", (7,), "any"),
    ],
)
def test_classes_of_shapes(op: str, sizes: tuple[int, ...], expected: str) -> None:
    assert shape_class(op, *sizes) == expected
