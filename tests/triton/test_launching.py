"""Configurations: defaults for every case, those on disk, and tuning, which alone writes them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from mli_fast.ops import launching
from tests.triton.helpers import DEVICE

pytestmark = pytest.mark.gpu

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
CLASSES = ("few16", "few32", "few64", "some128", "some", "many")
SMALL = {"BLOCK": 512, "num_warps": 4}
OTHER = {"BLOCK": 1024, "num_warps": 4}
WRONG = {"BLOCK": 256, "num_warps": 4}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLI_FAST_CACHE", str(tmp_path))
    return tmp_path / "triton.json"


def forget() -> None:
    launching._read.cache_clear()
    launching._configuration.cache_clear()


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("kernel", ["linear", "linear_of_products"])
def test_every_class_has_a_default_among_powers_of_two(kernel: str, arch: int) -> None:
    for precision in PRECISIONS:
        for cls in CLASSES:
            chosen = launching.default(kernel, precision, cls, arch)
            candidates = launching.TUNABLE[kernel](precision, cls)
            assert candidates
            assert all(set(c) == set(chosen) for c in candidates)
            assert all(v & (v - 1) == 0 for c in (chosen, *candidates) for k, v in c.items() if k != "num_stages")


@pytest.mark.parametrize(
    ("rows", "cls"),
    [(1, "few16"), (16, "few16"), (17, "few32"), (64, "few64"), (65, "some128"), (512, "some"), (513, "many")],
)
def test_rows_have_classes(rows: int, cls: str) -> None:
    assert launching.rows_class(rows) == cls


@pytest.mark.parametrize(("programs", "points"), [(1, 1), (1, 50), (7, 50), (10_000, 50), (10_000, 3)])
def test_points_are_shared_out_completely(programs: int, points: int) -> None:
    each = launching.points_per_program(programs, points, DEVICE)
    assert 1 <= each <= points


def run(kernel: str = "combine") -> torch.Tensor:
    block = launching.configuration(kernel, "float32", "", DEVICE)["BLOCK"]
    return torch.full((4,), torch.nan if block == WRONG["BLOCK"] else float(block), device=DEVICE)


def tune(*candidates: dict[str, int]) -> list[tuple[launching.Configuration, float | str]]:
    return launching.tune(
        "combine",
        "float32",
        "",
        run,
        lambda values: not bool(values.isnan().any()),
        candidates=candidates,
        measure=lambda call: float(call()[0]),
    )


def test_tuning_keeps_the_fastest_right_one_on_disk(cache: Path) -> None:
    before = launching.configuration("combine", "float32", "", DEVICE)
    assert not cache.exists()
    outcomes = tune(OTHER, SMALL, WRONG)
    assert [outcome for _, outcome in outcomes] == [1024.0, 512.0, "wrong values"]
    assert launching.configuration("combine", "float32", "", DEVICE) == SMALL
    forget()
    assert launching.configuration("combine", "float32", "", DEVICE) == SMALL
    assert list(json.loads(cache.read_text()).values()) == [SMALL]
    assert launching.configuration("combine", "float64", "", DEVICE) == before


def test_a_candidate_that_fails_is_passed_over(cache: Path) -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("out of resource")

    outcomes = launching.tune("combine", "float32", "", broken, lambda _: True, candidates=[SMALL])
    assert outcomes == [(SMALL, "RuntimeError: out of resource")]
    assert not cache.exists()


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 3}'])
def test_a_broken_file_is_left_aside_with_one_warning(cache: Path, text: str) -> None:
    cache.write_text(text)
    with pytest.warns(UserWarning, match="left aside"):
        chosen = launching.configuration("combine", "float32", "", DEVICE)
    assert chosen == launching.default("combine", "float32", "", launching.capability(DEVICE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launching.configuration("blend", "float32", "", DEVICE)


@pytest.mark.parametrize("entry", [{"BLOCK": 512}, {"BLOCK": 500, "num_warps": 4}, {"BLOCK": "a", "num_warps": 4}])
def test_a_senseless_entry_is_left_aside_with_a_warning(cache: Path, entry: dict[str, object]) -> None:
    cache.write_text(json.dumps({launching._key("combine", "float32", "", DEVICE): entry}))
    with pytest.warns(UserWarning, match="not a configuration of combine"):
        chosen = launching.configuration("combine", "float32", "", DEVICE)
    assert chosen == launching.default("combine", "float32", "", launching.capability(DEVICE))


def test_forcing_ends_with_its_block() -> None:
    before = launching.configuration("combine", "float32", "", DEVICE)
    with launching.forced("combine", SMALL):
        with launching.forced("combine", OTHER):
            assert launching.configuration("combine", "float32", "", DEVICE) == OTHER
        assert launching.configuration("combine", "float32", "", DEVICE) == SMALL
    assert launching.configuration("combine", "float32", "", DEVICE) == before


def test_the_check_of_values_takes_what_is_as_exact_and_refuses_nan() -> None:
    exact = torch.ones(3, dtype=torch.float64)
    accepts = launching.as_exact_as(torch.full((3,), 1.0 + 1e-5), exact)
    assert accepts(torch.full((3,), 1.0 - 1.9e-5))
    assert not accepts(torch.full((3,), 1.0 + 3e-5))
    assert not accepts(torch.full((3,), torch.nan))
