"""What is the same at every point of a batch is computed once for all of them, however the model branches."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mli_fast
from mli_fast.blended import Memo
from mli_fast.demo.networks import ViT
from mli_fast.engine.plan import forced


class Calls(TorchDispatchMode):
    """Counts every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Residual(nn.Module):
    """Blocks x + f(norm(x)) whose norms are told apart from all else in the counts; the head is apart."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(depth))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            a, b = torch.stack([norm(x), norm(x) + 1])  # an iterator in between
            x = x + F.gelu(layer(a * b))
        return self.head(x)


def layer_norms(model: nn.Module, ends: tuple[Any, Any], x: Tensor, points: int, backend: str) -> int:
    """How often the layer norm's operator ran in a sweep of one batch."""
    with Calls() as calls, forced("loop"):
        y = torch.arange(len(x)) % 3
        mli_fast.sweep(model, *ends, [(x, y)], points, backend=backend, progress=False)
    return calls.count["native_layer_norm"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("same_ends", [True, False])
def test_a_long_frozen_part_is_computed_once(same_ends: bool, backend: str) -> None:
    depth, points = 9, 4
    model = Residual(depth)
    end = {k: v.clone() for k, v in model.state_dict().items()}
    if not same_ends:
        end["head.weight"] += 1.0
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert layer_norms(model, (model.state_dict(), end), x, points, backend) == depth


def test_a_transformer_with_equal_ends_is_computed_once() -> None:
    model = ViT(width=8, depth=4, heads=2)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert layer_norms(model, (model, model), x, 5, "auto") == 2 * 4 + 1


class Gated(Residual):
    """Looks at its blocks' output only at points whose gate is open."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = F.gelu(layer(norm(h))) + h
        return self.head(h if self.gate.item() > 0.5 else x)


def test_what_only_later_points_look_at_is_computed_at_most_twice() -> None:
    """Once when it is first met and let go, once more for all points that look."""
    depth = 9
    model = Gated(depth)
    end = {k: v.clone() for k, v in model.state_dict().items()}
    end["gate"] += 1.0
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert layer_norms(model, (model.state_dict(), end), x, 9, "auto") <= 2 * depth


@pytest.mark.parametrize(
    ("kilobytes", "wanted", "recomputed"), [(0, "abc", 3), (4, "abc", 0), (4, "ab", 2), (8, "ab", 0), (8, "a", 1)]
)
def test_a_memo_lets_go_of_all_but_the_values_used_last(kilobytes: int, wanted: str, recomputed: int) -> None:
    """A chain of values of 4 KiB: what has to be made again when the points that read its end are done."""
    memo, batch, made = Memo(others=1024 * kilobytes), torch.zeros(1024), Counter[str]()

    def step(name: str, x: Tensor) -> Tensor:
        made[name] += 1
        return x + 1

    def chain(names: str) -> Tensor:
        x: Any = memo.share(batch)
        for name in names:
            x = memo.call(partial(step, name), (x,), {}, name)
        return x.resolve()

    for _ in range(2):
        assert torch.equal(chain("abc"), torch.full((1024,), 3.0))
    assert made == Counter("abc")
    memo.let_go()
    assert torch.equal(chain(wanted), torch.full((1024,), float(len(wanted))))
    assert made.total() == 3 + recomputed
