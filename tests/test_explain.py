"""`mli_fast.explain` says what a plan does, and runs nothing of the caller's that stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mli_fast
from tests.cases import case
from tests.test_left_alone import assert_unchanged, snapshot


def explained(name: str, **options: object) -> str:
    c = case(name)
    return mli_fast.explain(c.model, c.theta_0, c.theta_T, next(iter(c.batches)), criterion=c.criterion, **options)


def test_products_what_is_fused_and_what_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained("cnn-bn")
    assert capsys.readouterr().out == text + "\n"
    assert "conv by 0.weight [5, 5, 8, 7] + batch norm + relu" in text
    assert "max_pool2d_with_indices" in text
    assert "once a batch:" in text
    assert "at each point:" in text


def test_what_is_left_to_pytorch_and_why() -> None:
    text = explained("mlp", backend="reference")
    assert text.count("PyTorch (no kernel was measured to win on it)") == 3


class Counts(nn.Linear):
    """Takes a number from its output."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * (2 if y.sum().item() > 0 else 3)


class Hooked(nn.Linear):
    """Loads other values than it is given."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict({k: v * 2 for k, v in state.items()}, prefix, *rest)


def test_exits_and_refusals_are_named() -> None:
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    a, b = Counts(4, 3), Counts(4, 3)
    assert "numbers that leave PyTorch depend on the parameters" in mli_fast.explain(a, a, b, (x, y))
    a, b = Hooked(4, 3), Hooked(4, 3)
    assert mli_fast.explain(a, a, b, (x, y)).startswith("plain PyTorch, point by point: the model's load_state_dict")


def test_the_callers_things_are_as_they_were() -> None:
    c = case("resnet")
    before = snapshot(c)
    explained("resnet")
    assert_unchanged(before, snapshot(c))
