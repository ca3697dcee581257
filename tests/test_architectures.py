"""Every architecture, under both engines, against the plain loop over alpha in fp64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import mli_fast
from mli_fast.engine import forced
from tests.models import ARCHITECTURES, endpoints
from tests.reference import Reference, assert_as_exact_as_torch, plain_loop, standard_error

ALPHAS = (0.0, 0.137, 0.5, 1.0, 0.71, 1.25, -0.2)
"""Both endpoints, the inside, the outside, and not in order."""

UNDER = [
    pytest.param(name, engine, id=f"{name}-{engine}")
    for name, architecture in ARCHITECTURES.items()
    for engine in (("loop",) if architecture.loop_only else ("loop", "vmap"))
]


@functools.cache
def truth(name: str, dtype: torch.dtype) -> Reference:
    """The plain loop's view of an architecture."""
    case = ARCHITECTURES[name]
    return plain_loop(case.model(), *endpoints(name), case.data(), ALPHAS, case.criterion, dtype=dtype)


def swept(name: str, precision: str | None, **options: Any) -> mli_fast.SweepResult:
    """Ours, on the same things."""
    case = ARCHITECTURES[name]
    return mli_fast.sweep(
        case.model(), *endpoints(name), case.data(), ALPHAS,
        criterion=case.criterion, metrics=case.metrics, precision=precision, progress=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "engine"), UNDER)
def test_fp64_equals_the_plain_loop_in_fp64(name: str, engine: str) -> None:
    with forced(engine):
        result = swept(name, "fp64")
    reference = truth(name, torch.float64)
    assert result.provenance["engine"] == engine
    assert result.count == reference.losses.shape[1]
    np.testing.assert_array_equal(result.alphas, ALPHAS)
    np.testing.assert_allclose(result.loss, reference.loss, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(
        result["loss_stderr"], standard_error(reference.losses, reference.weights), rtol=1e-7, atol=1e-12
    )
    if "accuracy" in ARCHITECTURES[name].metrics:
        np.testing.assert_allclose(result.accuracy, reference.accuracy, rtol=1e-14)


@pytest.mark.parametrize(("name", "engine"), UNDER)
def test_fp32_is_as_exact_as_the_plain_loop_in_fp32(name: str, engine: str) -> None:
    with forced(engine):
        result = swept(name, "fp32")
    assert result.provenance["engine"] == engine
    reference = truth(name, torch.float64)
    assert_as_exact_as_torch(result.loss, reference.loss, truth(name, torch.float32).loss)
    if "accuracy" in ARCHITECTURES[name].metrics:
        np.testing.assert_allclose(result.accuracy, reference.accuracy, rtol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_gives_the_same_values_and_says_which_engine_and_why(name: str) -> None:
    result = swept(name, None)
    assert_as_exact_as_torch(result.loss, truth(name, torch.float64).loss, truth(name, torch.float32).loss)
    assert result.provenance["engine"] in ("loop", "vmap")
    assert isinstance(result.provenance["engine_reason"], str)
    assert result.provenance["engine_reason"].strip()
    if ARCHITECTURES[name].loop_only:
        assert result.provenance["engine"] == "loop", ARCHITECTURES[name].loop_only


@pytest.mark.parametrize("name", [name for name, case in ARCHITECTURES.items() if case.loop_only])
def test_forcing_vmap_where_it_cannot_run_is_an_error_not_a_wrong_number(name: str) -> None:
    with forced("vmap"), pytest.raises((RuntimeError, ValueError)):
        swept(name, "fp32")


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "gpt2"])
def test_precision_none_is_the_parameters_own(name: str) -> None:
    case = ARCHITECTURES[name]
    theta_0, theta_T = ({k: v.double() if v.is_floating_point() else v for k, v in s.items()} for s in endpoints(name))
    batches = [
        {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        if isinstance(batch, dict)
        else (batch[0].double(), batch[1])
        for batch in case.data()
    ]
    result = mli_fast.sweep(
        case.model().double(), theta_0, theta_T, batches, ALPHAS,
        criterion=case.criterion, metrics=case.metrics, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(result.loss, truth(name, torch.float64).loss, rtol=1e-10)
