"""Random directions: their norms, their seeds, what stays, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mli_fast.checkpoints import gather
from mli_fast.paths import random_directions
from tests.paths.cases import State, network


def directions(theta: State, *args: Any, **options: Any) -> list[State]:
    """The displacements themselves, float64."""
    anchors = random_directions(theta, *args, **options).anchors[1:]
    return [{name: a[name].double() - theta[name].double() for name in theta} for a in anchors]  # type: ignore[index]


def norms(value: Tensor) -> Tensor:
    return value.double().flatten(1).norm(dim=1)


def test_every_filter_has_the_norm_of_the_weights_filter() -> None:
    theta = network(0)
    theta["head.weight"][2] = 0.0
    for direction in directions(theta, seed=3):
        for name in ("conv.weight", "head.weight"):
            torch.testing.assert_close(norms(direction[name]), norms(theta[name]), rtol=1e-12, atol=1e-14)
        assert not direction["head.weight"][2].any()


def test_every_layer_has_the_norm_of_the_weights() -> None:
    theta = network(0)
    for direction in directions(theta, normalize="layer"):
        for name in ("conv.weight", "head.weight"):
            torch.testing.assert_close(direction[name].norm(), theta[name].norm(), rtol=1e-12, atol=0)
        assert not torch.allclose(norms(direction["conv.weight"]), norms(theta["conv.weight"]))


def test_without_normalisation_the_numbers_are_standard_normal() -> None:
    theta = {"weight": torch.full((200, 300), 5.0, dtype=torch.float64)}
    drawn = directions(theta, 1, normalize=None)[0]["weight"]
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1) < 0.02
    assert abs(float((drawn**4).mean()) - 3) < 0.1


@pytest.mark.parametrize("normalize", ["filter", "layer"])
def test_directions_are_the_plain_ones_scaled(normalize: str) -> None:
    theta = network(0)
    plain, scaled = directions(theta, 1, normalize=None)[0], directions(theta, 1, normalize=normalize)[0]
    for name in ("conv.weight", "head.weight"):
        ratio = scaled[name] / plain[name]
        rows = ratio.flatten(1) if normalize == "filter" else ratio.reshape(1, -1)
        torch.testing.assert_close(rows, rows[:, :1].expand_as(rows), rtol=1e-9, atol=0)
        assert (rows > 0).all()


def test_vectors_stay_unless_asked_for() -> None:
    theta = network(0)
    still = random_directions(theta).anchors[1]
    for name in ("conv.bias", "norm.weight"):
        assert torch.equal(still[name], theta[name])  # type: ignore[index]
    moved = directions(theta, zero_vectors=False)[0]
    torch.testing.assert_close(moved["conv.bias"].abs(), theta["conv.bias"].abs())
    torch.testing.assert_close(
        directions(theta, zero_vectors=False, normalize="layer")[0]["norm.weight"].norm(), theta["norm.weight"].norm()
    )


@pytest.mark.parametrize("zero_vectors", [True, False])
def test_buffers_and_integers_are_thetas(zero_vectors: bool) -> None:
    theta = network(0)
    for anchor in random_directions(theta, zero_vectors=zero_vectors).anchors[1:]:
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert torch.equal(anchor[name], theta[name])  # type: ignore[index]
        assert anchor.keys() == theta.keys()  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_anchors_have_thetas_dtype_and_the_same_numbers(dtype: torch.dtype) -> None:
    theta = network(0, dtype)
    wide = {n: v.double() if v.is_floating_point() else v for n, v in theta.items()}
    for narrow, exact in zip(
        random_directions(theta, normalize=None).anchors[1:],
        random_directions(wide, normalize=None).anchors[1:],
        strict=True,
    ):
        for name in theta:
            assert narrow[name].dtype == theta[name].dtype  # type: ignore[index]
            assert torch.equal(narrow[name], exact[name].to(theta[name].dtype))  # type: ignore[index]


def test_a_seed_gives_the_same_numbers_and_no_other_state_matters() -> None:
    theta = network(0)
    before = torch.get_rng_state()
    first = directions(theta, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = directions(theta, seed=5)
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in theta)
    assert not torch.equal(first[0]["conv.weight"], first[1]["conv.weight"])
    assert not torch.equal(first[0]["conv.weight"], directions(theta, seed=6)[0]["conv.weight"])


def test_directions_are_not_the_numbers_a_network_of_the_same_seed_began_with() -> None:
    """Both would draw the first matrix from a generator of that seed."""
    theta = network(0)
    drawn = directions(theta, 1, normalize=None, seed=0)[0]["conv.weight"]
    assert abs(float(nn.functional.cosine_similarity(drawn.flatten(), theta["conv.weight"].flatten(), dim=0))) < 0.5


def test_a_direction_does_not_depend_on_how_many_there_are_or_on_the_vectors() -> None:
    theta = network(0)
    four, one = directions(theta, 4), directions(theta, 1, zero_vectors=False)
    assert torch.equal(four[0]["head.weight"], one[0]["head.weight"])


def test_tied_values_move_together() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    path = random_directions(model)
    anchors = gather(model, path.anchors, path.names)
    assert anchors.count == 3
    assert len(anchors.values["0.weight"]) == 3
    assert len(anchors.values["1.bias"]) == 1


def test_theta_is_left_alone() -> None:
    theta = network(0)
    kept = {name: value.clone() for name, value in theta.items()}
    random_directions(theta, zero_vectors=False)
    assert all(torch.equal(theta[name], kept[name]) for name in theta)


def test_parameters_of_no_dimension() -> None:
    theta = {"scale": torch.tensor(-3.0), "weight": torch.ones(2, 2)}
    assert directions(theta)[0]["scale"] == 0
    for normalize in ("filter", "layer"):
        moved = directions(theta, normalize=normalize, zero_vectors=False)[0]["scale"]
        assert np.isclose(abs(float(moved)), 3.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 0}, ValueError, "count=0: at least one direction"),
        ({"count": 1.5}, TypeError, "count: expected an integer, got 1.5"),
        ({"count": True}, TypeError, "count: expected an integer, got True"),
        ({"normalize": "row"}, ValueError, "normalize='row' is not one of 'filter', 'layer', None"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_directions(network(0), **options)


def test_a_network_that_cannot_move() -> None:
    with pytest.raises(ValueError, match=r"^theta has no entry to move: of 2 entries 1 are .* 1 of them biases"):
        random_directions({"bias": torch.ones(3), "count": torch.tensor(1)})
