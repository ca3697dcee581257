"""Which parameters a key stands for, which schedule wins, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mli_fast.schedules import assign, depth_order, power
from tests.models import ARCHITECTURES
from tests.schedules.networks import Convolutional, Plain, Shared, Transformer


def selected(model: nn.Module, key: str, order: Any = None) -> list[str]:
    return list(assign(model, {key: "start"}, order))


def told(model: nn.Module, schedule: dict[str, Any], order: Any = None) -> dict[str, str]:
    return {name: str(s) for name, s in assign(model, schedule, order).items()}


BN1 = ["bn1.weight", "bn1.bias"]
BN1_STATISTICS = ["bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"]
BLOCK_STATISTICS = ["block.1.running_mean", "block.1.running_var", "block.1.num_batches_tracked"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("weight", ["conv1.weight", "block.0.weight", "fc.weight"]),
        ("bias", ["block.0.bias", "fc.bias"]),
        ("norm", [*BN1, *BN1_STATISTICS, *BLOCK_STATISTICS]),
        ("last_bias", ["fc.bias"]),
        ("bn1", [*BN1, *BN1_STATISTICS]),
        ("bn1.weight", ["bn1.weight", *BN1_STATISTICS]),
        ("bn1.bias", ["bn1.bias"]),
        ("*.bias", ["bn1.bias", "block.0.bias", "fc.bias"]),
        ("block", ["block.0.weight", "block.0.bias", *BLOCK_STATISTICS]),
        ("block.1", BLOCK_STATISTICS),
        ("*running_*", [*BN1_STATISTICS[:2], *BLOCK_STATISTICS[:2]]),
        ("conv?.*", ["conv1.weight"]),
    ],
)
def test_keys_of_a_convolutional_network(key: str, expected: list[str]) -> None:
    assert selected(Convolutional(), key) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("embedding", ["tokens.weight"]),
        ("norm", ["norm1.weight", "norm1.bias", "norm2.gain"]),
        ("bias", ["attention.in_proj_bias", "attention.out_proj.bias", "unused.bias"]),
        ("weight", ["place", "attention.in_proj_weight", "attention.out_proj.weight", "unused.weight"]),
        ("attention.out_proj", ["attention.out_proj.weight", "attention.out_proj.bias"]),
        ("head", ["tokens.weight"]),
        ("head.*", ["tokens.weight"]),
    ],
)
def test_keys_of_a_transformer_with_a_tied_head(key: str, expected: list[str]) -> None:
    assert selected(Transformer(), key) == expected


def test_a_parametrised_weight_belongs_to_its_layer() -> None:
    halves = ["first.parametrizations.weight.original0", "first.parametrizations.weight.original1"]
    assert selected(Shared(), "weight") == [*halves, "last.weight"]
    assert selected(Shared(), "first") == ["first.bias", *halves]
    assert selected(Shared(), "again") == ["first.bias", *halves]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_of_one_kind_and_statistics_go_with_the_norms(name: str) -> None:
    model = ARCHITECTURES[name].model()
    found: list[str] = []
    for kind in ("weight", "bias", "norm", "embedding"):
        try:
            found += selected(model, kind)
        except ValueError:
            continue
    assert len(found) == len(set(found))
    expected = {n for n, _ in model.named_parameters()}
    expected |= {n for n, _ in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    assert {n for n in found if not n.endswith("num_batches_tracked")} == expected


def test_the_last_bias_is_that_of_the_last_layer_called() -> None:
    model = Plain()
    assert selected(model, "last_bias") == ["fc2.bias"]
    assert selected(model, "last_bias", lambda: ["fc1", "fc2", "head"]) == ["head.bias"]


def test_a_last_layer_without_bias_has_no_last_bias() -> None:
    with pytest.raises(ValueError, match=r"^schedule: 'last_bias' matches nothing in the model; kinds: 'weight', "):
        selected(Transformer(), "last_bias")


def test_a_norm_is_not_the_last_layer() -> None:
    assert selected(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "last_bias") == ["0.bias"]


def test_later_entries_win() -> None:
    assert told(Plain(), {"*": "linear", "bias": "end", "fc2": power(2), "fc2.bias": "start"}) == {
        "head.weight": "linear", "head.bias": "end",
        "fc1.weight": "linear", "fc1.bias": "end",
        "fc2.weight": "power(2)", "fc2.bias": "start",
    }  # fmt: skip


def test_statistics_follow_the_weight_until_a_later_pattern_names_them() -> None:
    model = Convolutional()
    followed = told(model, {"*": "linear", "bn1.weight": "start"})
    assert {followed[name] for name in BN1_STATISTICS} == {"start"}
    assert {followed[name] for name in BLOCK_STATISTICS} == {"linear"}
    named = told(model, {"norm": "start", "bn1.running_*": "end"})
    assert [named[name] for name in BN1_STATISTICS] == ["end", "end", "start"]


def test_the_homogeneous_rule_counts_layers_in_depth_order() -> None:
    model = Plain()
    order = lambda: depth_order(lambda m: m(torch.zeros(1, 6)), model)  # noqa: E731
    assert told(model, {"*": "homogeneous"}, order) == {
        "fc1.weight": "linear", "fc1.bias": "linear", "fc2.weight": "linear", "fc2.bias": "power(2)",
        "head.weight": "linear", "head.bias": "power(3)",
    }  # fmt: skip
    assert told(model, {"head": "homogeneous"}, order) == {"head.weight": "linear", "head.bias": "power(3)"}
    assert told(model, {"bias": "homogeneous"})["head.bias"] == "linear"  # as registered


def test_the_homogeneous_rule_scales_the_outputs_of_a_relu_network() -> None:
    """With theta_0 = 0 every hidden layer is alpha^i times that of theta_T: what the rule is for."""
    model = Plain().double()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rules = assign(model, {"*": "homogeneous"}, lambda: ["fc1", "fc2", "head"])
    moved = {n: p * float(rules[n].value(np.array([0.4]))[0]) for n, p in model.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(model, moved, x), 0.4**3 * model(x), rtol=1e-12, atol=0)


def test_norms_and_activations_are_no_layers_of_the_homogeneous_rule() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.PReLU(3), nn.Linear(3, 2))
    moves = told(model, {"*": "homogeneous"})
    assert moves["3.bias"] == "power(2)"
    assert {moves[name] for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "2.weight")} == {"linear"}


def test_the_forward_pass_is_traced_only_where_the_order_matters() -> None:
    def order() -> list[str]:
        raise AssertionError("asked for")

    assert assign(Plain(), {"bias": "start", "fc1": power(2), "*": "end"}, order)
    for schedule in ({"bias": "homogeneous"}, {"last_bias": "start"}):
        with pytest.raises(AssertionError, match="asked for"):
            assign(Plain(), schedule, order)


def test_parameters_that_no_key_names_are_left_out() -> None:
    assert selected(Plain(), "fc1") == ["fc1.weight", "fc1.bias"]
    assert assign(Plain(), {}) == {}


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ({"fc9": "start"}, ValueError, "schedule: 'fc9' matches nothing in the model; kinds: 'weight', 'bias', "
         "'last_bias'; layers: 'head', 'fc1', 'fc2'; names: 'head.weight', 'head.bias', 'fc1.weight', "),
        ({"embedding": "start"}, ValueError, "schedule: 'embedding' matches nothing"),
        ({"statistics": "start"}, ValueError, "schedule: 'statistics' matches nothing"),
        ({"": "start"}, ValueError, "schedule: '' matches nothing"),
        ({3: "start"}, TypeError, "schedule: expected a kind, a layer or a pattern of names, got 3"),
        ({"fc1": "square"}, ValueError, "schedule of 'fc1': 'square' is not one of 'linear', 'start', 'end', "
         "'homogeneous', power(p) or a function of alpha"),
        ({"fc1": 2}, TypeError, "schedule of 'fc1': expected a name, power(p) or a function of alpha, got 2; for "
         "alpha^p give mli_fast.schedules.power(p)"),
        ({"fc1": np.zeros(3)}, TypeError, "schedule of 'fc1': expected a name"),
        ("homogeneous", TypeError, "schedule: expected a mapping of kinds, layers or patterns to schedules, got "
         "'homogeneous'"),
    ],
)  # fmt: skip
def test_schedules_that_fit_nothing(schedule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        assign(Plain(), schedule)


def test_a_kind_goes_before_a_layer_of_the_same_name_and_a_layer_is_found_where_there_is_no_such_kind() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.embedding = nn.Linear(2, 2), nn.Linear(2, 2)

    assert selected(Named(), "bias") == ["bias.bias", "embedding.bias"]
    assert selected(Named(), "embedding") == ["embedding.weight", "embedding.bias"]
    assert selected(Named(), "bias.*") == ["bias.weight", "bias.bias"]
