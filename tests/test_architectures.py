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
    for name in ARCHITECTURES
    for engine in ("plain", "replay", "planned")
]


# What takes numbers from activations goes by plain PyTorch, everywhere or where they are others than in the record
READS_ACTIVATIONS = {"item": "plain and replay", "control-flow": "plain and replay"}


def assert_ran_as(engine: str, name: str, result: mli_fast.SweepResult) -> None:
    """The engine is the one asked for, or for the networks that read their activations what is left for them."""
    wanted = engine if engine == "plain" else READS_ACTIVATIONS.get(name, engine)
    assert result.provenance["engine"] == wanted, result.provenance["engine_reason"]


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
    assert_ran_as(engine, name, result)
    assert result.count == reference.losses.shape[1]
    np.testing.assert_array_equal(result.alphas, ALPHAS)
    rtol = 1e-7 if name == "complex-parameter" else 1e-10  # complex parameters keep their precision
    np.testing.assert_allclose(result.loss, reference.loss, rtol=rtol, atol=1e-13)
    np.testing.assert_allclose(
        result["loss_stderr"], standard_error(reference.losses, reference.weights), rtol=1e-7, atol=1e-12
    )
    if "accuracy" in ARCHITECTURES[name].metrics:
        np.testing.assert_allclose(result.accuracy, reference.accuracy, rtol=1e-14)


@pytest.mark.parametrize(("name", "engine"), UNDER)
def test_fp32_is_as_exact_as_the_plain_loop_in_fp32(name: str, engine: str) -> None:
    with forced(engine):
        result = swept(name, "fp32")
    assert_ran_as(engine, name, result)
    reference = truth(name, torch.float64)
    assert_as_exact_as_torch(result.loss, reference.loss, truth(name, torch.float32).loss)
    if "accuracy" in ARCHITECTURES[name].metrics:
        np.testing.assert_allclose(result.accuracy, reference.accuracy, rtol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_auto_gives_the_same_values_and_says_which_engine_and_why(name: str) -> None:
    result = swept(name, None)
    assert_as_exact_as_torch(result.loss, truth(name, torch.float64).loss, truth(name, torch.float32).loss)
    assert_ran_as("planned", name, result)
    assert bool(result.provenance["engine_reason"]) == (name in READS_ACTIVATIONS)


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
