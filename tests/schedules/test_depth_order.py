"""The order of calls, and that finding it leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mli_fast.schedules import depth_order
from tests.schedules.networks import Convolutional, Plain, Shared, Transformer


@pytest.mark.parametrize(
    ("make", "inputs", "expected"),
    [
        (Plain, torch.zeros(2, 6), ["fc1", "fc2", "head"]),
        (Convolutional, torch.zeros(2, 3, 8, 8), ["conv1", "bn1", "block.0", "block.1", "fc"]),
        (
            Transformer,
            torch.zeros(2, 5, dtype=torch.long),
            ["", "tokens", "attention", "attention.out_proj", "norm1", "norm2", "unused", "head"],
        ),
        (Shared, torch.zeros(2, 4), ["first", "last"]),
    ],
    ids=["plain", "convolutional", "transformer", "shared"],
)
def test_layers_come_in_the_order_of_their_first_call(make: Any, inputs: torch.Tensor, expected: list[str]) -> None:
    # What is never called follows what is registered before it: unused after norm2, out_proj after attention.
    assert depth_order(lambda model: model(inputs), make()) == expected


def test_the_pass_runs_in_eval_mode_without_gradients_and_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    seen: list[Any] = []

    def run(given: nn.Module) -> None:
        out = given(torch.rand(4, 3))
        seen.append((given, given.training, out.requires_grad))

    assert depth_order(run, model) == ["0", "1", "3"]
    assert seen == [(model, False, False)]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_pass_that_fails_leaves_everything_as_it_was_too() -> None:
    model = Plain().train()
    with pytest.raises(RuntimeError):
        depth_order(lambda given: given(torch.zeros(2, 7)), model)
    assert model.training
    assert model.head.training
    assert not any(module._forward_pre_hooks for module in model.modules())
