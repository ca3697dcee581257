"""The self-check: a wrong plan is seen, and what it compares is compared to the last number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mli_fast
from mli_fast.engine.checking import difference
from mli_fast.engine.modes import forced
from mli_fast.engine.running import PlanWarning
from mli_fast.program import _same_constant as same_constant
from tests.by_hand import ALPHAS, D, Net, batches, ends, plain_losses, simple


class Wrong:
    """A plan whose results are off at one point."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
        from mli_fast.engine.plan import Plan

        true = Plan.result

        def result(plan: Any, given: Any, shared: Any, *rest: Any) -> Any:
            outputs, targets = true(plan, given, shared, *rest)
            if given.start <= point < given.start + given.count:
                outputs[point - given.start] *= 1.5
            return outputs, targets

        monkeypatch.setattr(Plan, "result", result)


@pytest.mark.parametrize("point", range(len(ALPHAS)))
def test_a_wrong_plan_is_seen_and_its_values_are_taken_anew(point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    Wrong(monkeypatch, point)
    with pytest.warns(PlanWarning, match="all values are plain PyTorch's now"):
        result = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, check="all", progress=False)
    np.testing.assert_allclose(result.loss, plain_losses(Net(simple), theta_0, theta_T), rtol=1e-5)
    assert "differs" in result.provenance["engine_reason"]
    assert "plain" in result.provenance["engine"]


def test_where_the_data_cannot_be_read_again_a_wrong_plan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    Wrong(monkeypatch, 0)
    with pytest.raises(RuntimeError, match="cannot be read again"):
        mli_fast.sweep(Net(simple), theta_0, theta_T, iter(batches()), ALPHAS, check="all", progress=False)


def test_without_a_check_a_wrong_plan_is_the_callers_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    expected = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False).loss
    Wrong(monkeypatch, 1)
    found = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, check=False, progress=False)
    assert (found.loss != expected).tolist() == [False, True, False, False]
    assert found.provenance["check"] is False


def test_batches_of_many_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from mli_fast.engine import planner

    monkeypatch.setattr(planner, "KINDS", 3)
    theta_0, theta_T = ends(simple, None)
    data = [(torch.randn(n, D), torch.arange(n) % 3) for n in range(1, 9)]
    result = mli_fast.sweep(Net(simple), theta_0, theta_T, data, ALPHAS, progress=False)
    assert "too many kinds of batches" in result.provenance["engine_reason"]
    with forced("plain"):
        plain = mli_fast.sweep(Net(simple), theta_0, theta_T, data, ALPHAS, progress=False)
    np.testing.assert_allclose(result.loss, plain.loss, rtol=1e-6)


def test_an_ambient_autocast_changes_nothing(engine: str) -> None:
    theta_0, theta_T = ends(simple, None)
    alone = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)
    assert np.array_equal(alone.loss, within.loss)


@pytest.mark.parametrize(
    ("a", "b"), [(np.nan, 0.0), (np.inf, torch.finfo(torch.float32).max), (-np.inf, torch.finfo(torch.float32).min)]
)
def test_constants_and_results_are_told_apart_by_every_number(a: float, b: float) -> None:
    one, other = torch.tensor([a, 1.0]), torch.tensor([b, 1.0])
    assert not same_constant(one, other, literal=True)
    assert same_constant(one, one.clone(), literal=True)
    assert not same_constant(torch.tensor(0.0), torch.tensor(-0.0), literal=True)
    assert difference([one], [other], exact=True) is not None
    assert difference([one], [one.clone()], exact=True) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_what_is_infinite_in_both_does_not_count(dtype: torch.dtype) -> None:
    other = torch.tensor([np.inf, -np.inf, np.nan, 3.0, -100.0]).to(dtype)
    ours = other.clone()
    assert difference([ours], [other], exact=False) is None
    ours[3] = 60
    assert difference([ours], [other], exact=False) == f"output 0 differs by {57 / 100:.1e} of its largest value"
    for value in (np.inf, np.nan):
        ours[3] = value
        assert difference([ours], [other], exact=False) == "output 0 differs by inf of its largest value"
    nothing = torch.full((3,), np.nan).to(dtype)
    assert difference([nothing], [nothing.clone()], exact=False) is None
