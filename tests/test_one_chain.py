"""A network of linear layers alone takes all points in one kernel call, and only such a network does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast import native
from mli_fast.engine.plan import forced
from tests.models import endpoints_of

pytestmark = pytest.mark.skipif(native.module() is None, reason=f"no compiled kernels: {native.why_missing()}")

ROWS = 300


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, last: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n), activation()]
    return nn.Sequential(*(layers[:-1] if last else layers))


class Twice(nn.Module):
    """Its hidden layer is read twice, so it cannot stay inside a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x)) + x)


class WithNorm(nn.Sequential):
    """Batch norm after a linear layer is folded and does not break the chain."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128), nn.Linear(128, 5)
        )


class Gated(nn.Module):
    """The loop sees a chain of linear layers, but vmap cannot read the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.gate = mlp(128, 128, 128, 5), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(-x if self.gate.item() > 0.5 else x)


def swept(model: nn.Module, ends: tuple[Any, Any], points: Any, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, next(p for p in model.parameters() if p.ndim > 1).shape[1], generator=generator)
    y = torch.arange(ROWS) % 5
    return mli_fast.sweep(model, *ends, (x, y), points, progress=False, **options)


def ends_of(model: nn.Module) -> tuple[Any, Any]:
    return endpoints_of(lambda seed: model)


@pytest.mark.parametrize(
    "make", [lambda: mlp(128, 128, 128, 5), lambda: mlp(128, 64, 200, 31, 5, activation=nn.GELU), WithNorm]
)
def test_linear_layers_alone_take_all_points_in_one_call(make: Callable[[], nn.Module]) -> None:
    model = make()
    ends = ends_of(model)
    result = swept(model, ends, 7)
    assert result.provenance["engine"] == "vmap"
    assert "linear layers alone" in result.provenance["engine_reason"]
    assert "chain:native" in result.provenance["kernels"]
    with forced("loop"):
        loop = swept(model, ends, 7)
    assert loop.provenance["engine"] == "loop"
    assert loop.loss.tobytes() == result.loss.tobytes()
    alone = swept(model, ends, [float(result.alphas[3])])
    assert alone.loss[0] == result.loss[3]


def test_the_chunk_asked_for_is_kept() -> None:
    model = mlp(128, 128, 128, 5)
    ends = ends_of(model)
    parts, whole = swept(model, ends, 7, chunk=3), swept(model, ends, 7)
    assert (parts.provenance["chunk"], whole.provenance["chunk"]) == (3, 7)
    assert parts.loss.tobytes() == whole.loss.tobytes()


@pytest.mark.parametrize("chunk", ["auto", 2])
def test_a_chain_that_vmap_cannot_run_goes_point_by_point(chunk: int | str) -> None:
    model = Gated()
    result = swept(model, ends_of(model), 5, chunk=chunk)
    assert result.provenance["engine"] == "loop"
    assert "vmap cannot run" in result.provenance["engine_reason"]


def test_every_other_network_goes_point_by_point() -> None:
    frozen = mlp(128, 128, 128, 5)
    start, end = ends_of(frozen)
    first = {k: start[k] for k in ("0.weight", "0.bias")}
    wide = mlp(128, 64, 2000)
    cases: dict[str, tuple[nn.Module, tuple[Any, Any], dict[str, Any]]] = {
        "frozen first layer": (frozen, (start, end | first), {}),
        "equal ends": (frozen, (start, start), {}),
        "hidden layer read twice": (Twice(), ends_of(Twice()), {}),
        "work after the last layer": (mlp(128, 128, 128, 5, activation=nn.Mish, last=False), (start, end), {}),
        "wide outputs": (wide, ends_of(wide), {"criterion": lambda z, y: F.cross_entropy(z, y, reduction="none")}),
        "no compiled kernels": (frozen, (start, end), {"backend": "reference"}),
        "fp64": (frozen, (start, end), {"precision": "fp64"}),
    }
    for name, (model, ends, options) in cases.items():
        assert swept(model, ends, 3, **options).provenance["engine"] == "loop", name
