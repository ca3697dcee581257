from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mli_fast.measures import Distance, distance
from tests.measures.curves import SEEDS


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))
        model(torch.randn(4, 2, 4, 4))  # moves the running statistics
    return model


def random_network(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"a.weight": rng.standard_normal((3, 2)), "a.bias": rng.standard_normal(3), "scale": rng.standard_normal(())}


def test_distance_by_layer() -> None:
    theta_0 = {"a.weight": np.array([[3.0, 0.0]]), "a.bias": np.array([4.0]), "b.c.weight": np.array([12.0])}
    theta_T = {"a.weight": np.array([[0.0, 0.0]]), "a.bias": np.array([0.0]), "b.c.weight": np.array([0.0])}
    assert distance(theta_0, theta_T) == Distance(13.0, 1.0, {"a": 5.0, "b.c": 12.0}, {"a": 1.0, "b.c": 1.0})
    assert distance(theta_0, theta_0) == Distance(0.0, 0.0, {"a": 0.0, "b.c": 0.0}, {"a": 0.0, "b.c": 0.0})


def test_statistics_and_counters_are_left_out() -> None:
    theta_0, theta_T = network(0), network(1)
    found = distance(theta_0.state_dict(), theta_T.state_dict())
    start = torch.cat([p.detach().flatten() for p in theta_0.parameters()]).double()
    end = torch.cat([p.detach().flatten() for p in theta_T.parameters()]).double()
    assert found.absolute == pytest.approx(float((end - start).norm()), rel=1e-12)
    assert found.relative == pytest.approx(float((end - start).norm() / start.norm()), rel=1e-12)
    assert list(found.per_layer) == ["0", "1", "3"]
    assert found.per_layer["1"] == 0  # the batch norm's affine parameters are as they were made


def test_a_network_may_lack_what_does_not_count() -> None:
    theta_0 = network(0).state_dict()
    parameters = dict(network(1).named_parameters())  # these require a gradient
    assert distance(theta_0, parameters) == distance(theta_0, network(1).state_dict())


def test_names_of_statistics_count_by_their_last_part_alone() -> None:
    theta_0 = {"running_mean.weight": np.zeros(1), "running_var": np.zeros(1), "step": 0, "_extra_state": None}
    theta_T = {"running_mean.weight": np.ones(1), "running_var": np.ones(1), "step": 9, "_extra_state": {}}
    assert distance(theta_0, theta_T).per_layer == {"running_mean": 1.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_floating_type_counts_and_widens_first(dtype: torch.dtype) -> None:
    # 256 + 1 is not a bfloat16, and 1 - 257 in fp16 squares past its range
    theta_0, theta_T = {"w": torch.full((300,), 1.0, dtype=dtype)}, {"w": torch.full((300,), 258.0, dtype=dtype)}
    assert distance(theta_0, theta_T).absolute == pytest.approx(257 * math.sqrt(300))


def test_double_precision_is_kept() -> None:
    theta_0, theta_T = {"w": torch.ones(1).double()}, {"w": torch.ones(1).double() + 2.0**-40}
    assert distance(theta_0, theta_T).absolute == 2.0**-40


def test_a_name_of_one_part_is_a_layer_of_its_own() -> None:
    found = distance({"u": np.zeros(1), "v": np.zeros(1)}, {"u": np.array([3.0]), "v": np.array([4.0])})
    assert found.per_layer == {"u": 3.0, "v": 4.0}


def test_arrays_and_tensors_mix() -> None:
    theta_0 = {"w": np.array([1.0, 2.0], dtype=np.float32)}
    theta_T = {"w": torch.tensor([4.0, 6.0], dtype=torch.bfloat16)}
    assert distance(theta_0, theta_T).absolute == 5


@pytest.mark.parametrize(("moved", "expected"), [(1.0, math.inf), (0.0, math.nan)])
def test_relative_to_nothing(moved: float, expected: float) -> None:
    found = distance({"fc.bias": np.zeros(2)}, {"fc.bias": np.array([moved, 0.0])})
    assert (found.relative, found.per_layer_relative["fc"]) == pytest.approx((expected, expected), nan_ok=True)


@given(SEEDS, st.sampled_from([0.25, 2.0, 1024.0]))
def test_distance_is_a_metric_and_scales(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (random_network(rng) for _ in range(3))
    found = distance(a, b)
    assert found.absolute == pytest.approx(math.hypot(*found.per_layer.values()))
    assert found.absolute == distance(b, a).absolute
    assert found.absolute <= distance(a, c).absolute + distance(c, b).absolute
    scaled = distance({n: scale * v for n, v in a.items()}, {n: scale * v for n, v in b.items()})
    assert scaled.absolute == pytest.approx(scale * found.absolute)
    assert scaled.relative == pytest.approx(found.relative)
    assert scaled.per_layer_relative == pytest.approx(found.per_layer_relative)


@pytest.mark.parametrize(
    ("theta_0", "theta_T", "error", "message"),
    [
        pytest.param(
            {"a": [1.0], "b": [1.0]}, {"a": [1.0]}, ValueError, "theta_T has no floating-point 'b'", id="less"
        ),
        pytest.param({"a": [1.0]}, {"a": [1.0], "c": [1.0]}, ValueError, "theta_0 has no .* 'c'", id="more"),
        pytest.param({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [1]}, ValueError, "theta_T .* 'b'", id="integer"),
        pytest.param({"a": [1.0]}, {"a": [1.0, 2.0]}, ValueError, r"'a' has shape \(1,\) .* \(2,\)", id="shape"),
        pytest.param({"n": [1]}, {"n": [1]}, ValueError, "theta_0 has no .* among its 1 entries", id="nothing-counts"),
        pytest.param([1.0], {"a": [1.0]}, TypeError, "theta_0 must be a mapping .* got list", id="no-mapping"),
    ],
)
def test_bad_input_is_refused(theta_0, theta_T, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        distance(theta_0, theta_T)
