"""The groups of a layer-wise sweep."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

from mli_fast.schedules import groups
from tests.models import ARCHITECTURES
from tests.schedules.networks import Convolutional, Plain, Shared, Transformer

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_layers_are_the_modules_that_hold_parameters_or_statistics() -> None:
    expected = {
        "conv1": ("conv1.weight",),
        "bn1": ("bn1.weight", "bn1.bias", *(f"bn1.{s}" for s in STATISTICS)),
        "block.0": ("block.0.weight", "block.0.bias"),
        "block.1": tuple(f"block.1.{s}" for s in STATISTICS),
        "fc": ("fc.weight", "fc.bias"),
    }
    assert groups(Convolutional()) == expected
    assert groups(Convolutional(), "layer") == expected


def test_layers_come_in_depth_order_where_it_is_known() -> None:
    assert list(groups(Plain())) == ["head", "fc1", "fc2"]
    assert list(groups(Plain(), depth_order=lambda: ["fc1", "fc2", "head"])) == ["fc1", "fc2", "head"]


def test_tied_weights_go_with_the_first_layer_that_holds_them() -> None:
    found = groups(Transformer())
    assert list(found) == ["(root)", "tokens", "attention", "attention.out_proj", "norm1", "norm2", "unused"]
    assert found["(root)"] == ("place",)
    assert list(groups(Shared())) == ["first", "last"]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("by", ["layer", "kind", "parameter"])
def test_groups_hold_every_parameter_once(name: str, by: str) -> None:
    model = ARCHITECTURES[name].model()
    held = [parameter for group in groups(model, by).values() for parameter in group]
    assert len(held) == len(set(held))
    assert set(held) >= {parameter for parameter, _ in model.named_parameters()}


def test_kinds() -> None:
    found = groups(Convolutional(), "kind")
    assert list(found) == ["weight", "bias", "norm"]
    assert found["norm"][-3:] == tuple(f"block.1.{s}" for s in STATISTICS)
    assert list(groups(nn.Sequential(nn.BatchNorm1d(3, affine=False)), "kind")) == ["norm"]


def test_parameters_take_their_statistics_along() -> None:
    found = groups(Convolutional(), "parameter")
    assert found["bn1.weight"] == ("bn1.weight", *(f"bn1.{s}" for s in STATISTICS))
    assert found["bn1.bias"] == ("bn1.bias",)
    assert "block.1.running_mean" not in found


def test_lists_and_mappings_of_patterns_layers_and_kinds() -> None:
    model = Convolutional()
    assert groups(model, ["fc", "bias"]) == {"fc": ("fc.weight", "fc.bias"), "bias": ("block.0.bias", "fc.bias")}
    assert groups(model, {"ends": ["fc", "conv*"], "bottom": "conv1"}) == {
        "ends": ("conv1.weight", "fc.weight", "fc.bias"),
        "bottom": ("conv1.weight",),
    }
    assert groups(model, (key for key in ["fc"])) == {"fc": ("fc.weight", "fc.bias")}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("layers", ValueError, "groups='layers' is not one of 'layer', 'kind', 'parameter'; "),
        (["fc1", "fc7"], ValueError, "groups['fc7']: 'fc7' matches nothing in the model; kinds: "),
        ({"top": ["nope.*"]}, ValueError, "groups['top']: 'nope.*' matches nothing in the model; kinds: "),
        ([], ValueError, "groups is empty"),
        ({"top": []}, ValueError, "groups['top'] is empty"),
        (5, TypeError, "groups: expected 'layer', 'kind', 'parameter', a list or a mapping, got 5"),
        ({"top": 5}, TypeError, "groups['top']: expected a kind, a layer, a pattern or a list of these, got 5"),
        ([["fc1"]], TypeError, ""),
    ],
)
def test_groups_that_are_not_there(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        groups(Plain(), given)
