"""Whole sweeps on the kernels for GPUs: on a GPU, or without one on Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mli_fast
from mli_fast.engine import forced
from mli_fast.native import cuda
from mli_fast.ops.backend import usable
from tests.cases import Case, assert_same_points, case, named, under_both
from tests.reference import assert_as_exact_as_torch, plain_loop
from tests.triton.helpers import DEVICE, GPU, needs_gpu

pytestmark = pytest.mark.gpu

needs_cuda_kernels = pytest.mark.skipif(
    not GPU or cuda.why_missing() is not None, reason="needs a GPU and the compiled CUDA kernels"
)
BACKENDS = (
    pytest.param(
        "triton", marks=pytest.mark.skipif(not usable("triton", DEVICE.type), reason="Triton cannot run here")
    ),
    pytest.param("native", marks=needs_cuda_kernels),
    pytest.param("auto", marks=needs_gpu),
    pytest.param("reference", marks=needs_gpu),
)
backends = pytest.mark.parametrize("backend", BACKENDS)
FEW = [0.0, 0.4, 1.0]


def on_gpu_also(*cases: Any) -> tuple[Any, ...]:
    """Cases that the interpreter would take too long over."""
    return cases if GPU else ()


def swept(c: Case, alphas: Any, **options: Any) -> mli_fast.SweepResult:
    return c.sweep(alphas, device=DEVICE, **options)


@backends
@under_both(
    "mlp", "cnn-bn", "conv1d", "gpt2", "lstm", *on_gpu_also("resnet", "norms", "vit-plain", "conv3d", "wide", "llama")
)
def test_a_sweep_is_as_exact_as_a_plain_loop(name: str, under: str, backend: str) -> None:
    c = named(name)
    with forced(under):
        ours = swept(c, FEW, backend=backend)
    exact, single = (
        plain_loop(c.model, c.theta_0, c.theta_T, c.batches, FEW, c.criterion, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    )
    largest = float(np.abs(single.losses - exact.losses).max())
    assert_as_exact_as_torch(ours.loss, exact.loss, single.loss, peer=largest)


@backends
@under_both("mlp", "cnn-bn", "gpt2", *on_gpu_also("wide", "resnet", "vit-plain"))
def test_endpoints_are_bitwise_those_of_the_checkpoint_alone(name: str, under: str, backend: str) -> None:
    c = named(name)
    with forced(under):
        both = swept(c, FEW, backend=backend)
        assert_same_points(swept(c, [0.0], backend=backend, theta_T=c.theta_0), both, [0])
        assert_same_points(swept(c, [1.0], backend=backend, theta_0=c.theta_T), both, [2])


@backends
@under_both("mlp", *on_gpu_also("wide", "cnn-bn", "gpt2"))
def test_a_point_stands_alone(name: str, under: str, backend: str) -> None:
    c, alphas = named(name), [0.7, 0.0, 0.4]
    with forced(under):
        whole = swept(c, alphas, backend=backend)
        assert_same_points(swept(c, [0.4], backend=backend), whole, [2])
        assert_same_points(swept(c, alphas[::-1], backend=backend, chunk=2), whole, [2, 1, 0])


@backends
def test_an_end_that_is_not_finite_spoils_its_points_alone(engine: str, backend: str) -> None:
    c = case("mlp")
    bad = {key: torch.full_like(value, float("nan")) for key, value in c.theta_T.items()}
    with pytest.warns(Warning, match="theta_T"):
        result = swept(c, FEW, backend=backend, theta_T=bad)
    assert np.isnan(result.loss).tolist() == [False, True, True]
    assert_same_points(swept(c, [0.0], backend=backend), result, [0])


@backends
def test_the_logits_of_a_language_model_are_left_to_the_loss(backend: str) -> None:
    if backend != "triton":
        pytest.skip("only that kernel takes the last product and its loss together")
    with forced("planned"):
        result = swept(case("gpt2"), FEW, backend=backend)
    assert "linear_cross_entropy:triton" in result.provenance["kernels"]
    assert not any(kernel.startswith("cross_entropy:") for kernel in result.provenance["kernels"])


@pytest.mark.parametrize(
    ("name", "head"),
    [("lstm", "last"), ("conv1d", "head"), *on_gpu_also(("llama", "lm_head"), ("vit-plain", "last"))],
)
@backends
def test_logits_are_left_to_the_loss_whichever_parameters_move(name: str, head: str, backend: str) -> None:
    c = named(name)
    moving = {key: c.theta_T[key] if key.startswith(head) else value for key, value in c.theta_0.items()}
    with forced("planned"):
        start = swept(c, [0.0], backend=backend, theta_T=c.theta_0)
        assert_same_points(start, swept(c, FEW, backend=backend, theta_T=moving), [0])
        left = swept(c, FEW, backend=backend)
        assert_same_points(start, left, [0])
        assert_same_points(swept(c, [0.4], backend=backend), left, [1])
        seen = swept(c, FEW, backend=backend, metrics={"largest": lambda outputs, _: outputs.flatten(1).amax(1)})
    np.testing.assert_allclose(left.loss, seen.loss, rtol=1e-6)
    if "accuracy" in left:
        np.testing.assert_array_equal(left.accuracy, seen.accuracy)


@backends
def test_the_provenance_says_what_ran(backend: str) -> None:
    provenance = swept(case("mlp"), FEW, backend=backend).provenance
    assert provenance["backend_asked_for"] == backend
    assert provenance["device"].startswith(DEVICE.type)
    if backend in ("triton", "reference"):
        assert backend in provenance["backend"]


# ------------------------------------------------------------------------------------------------ what needs a real GPU


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "fp64"])
@backends
@under_both("wide", "resnet", "gpt2")
def test_every_precision_is_as_exact_as_pytorch_in_it(name: str, under: str, backend: str, precision: str) -> None:
    c = named(name)
    exact = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, FEW, c.criterion)
    with forced(under):
        ours = swept(c, FEW, backend=backend, precision=precision)
    dtype = {"fp32": torch.float32, "fp64": torch.float64, "fp16": torch.float16}.get(precision, torch.bfloat16)
    theirs = plain_loop(c.model, c.theta_0, c.theta_T, c.batches, FEW, c.criterion, dtype=dtype)
    largest = float(np.abs(theirs.losses - exact.losses).max())  # TF32 keeps more digits than bfloat16, its stand-in
    assert_as_exact_as_torch(ours.loss, exact.loss, theirs.loss, dtype, peer=largest)


@needs_gpu
@pytest.mark.parametrize("where", ["pair", "pair on the GPU", "loader"])
def test_where_the_data_is_does_not_matter(where: str, engine: str) -> None:
    c = named("wide")
    x, y = (torch.cat(column) for column in zip(*c.batches, strict=True))
    expected = swept(c, FEW, loader=[(x, y)])
    loader = {"pair": (x, y), "pair on the GPU": (x.to(DEVICE), y.to(DEVICE)), "loader": iter([(x, y)])}[where]
    assert_same_points(swept(c, FEW, loader=loader), expected, range(3))


@needs_gpu
def test_running_out_of_memory_halves_the_chunk() -> None:
    c = named("wide")
    x = torch.randn(1 << 16, 67)
    loader = [(x, torch.zeros(len(x), dtype=torch.int64))]
    expected = swept(c, 64, loader=loader, chunk=1)
    taken = torch.cuda.memory_reserved() + (1 << 30)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(taken / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        with forced("planned"):
            result = swept(c, 64, loader=loader, chunk=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.provenance["chunk"] < 64
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-5)


@needs_gpu
def test_targets_out_of_range_name_their_batch_and_leave_the_gpu_usable(engine: str) -> None:
    c = named("wide")
    batches = [(x, y.clone()) for x, y in c.batches]
    batches[1][1][0] = 77
    with pytest.raises(ValueError, match=r"batch 1: .*77"):
        swept(c, FEW, loader=batches)
    assert np.isfinite(swept(c, FEW).loss).all()


@needs_gpu
def test_random_states_and_switches_are_afterwards_as_they_were() -> None:
    torch.backends.cudnn.benchmark, before = True, torch.cuda.get_rng_state()
    try:
        swept(named("wide"), FEW, precision="tf32")
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
