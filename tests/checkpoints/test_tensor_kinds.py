"""Ends and models that hold other tensors than dense ones with memory of their own: right, or refused by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import mli_fast
from mli_fast.checkpoints import load_state
from tests.checkpoints.cases import State, mlp, state_of, write_torch

DATA = torch.linspace(-1, 1, 15).reshape(5, 3), torch.tensor([0, 1, 1, 0, 1])
LAYOUTS = {"coo": torch.sparse_coo, "csr": torch.sparse_csr, "csc": torch.sparse_csc}


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of this process alone."""
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("needs torch.distributed to itself")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def distributed(state: State, mesh: Any) -> State:
    from torch.distributed.tensor import Shard, distribute_tensor

    return {key: distribute_tensor(value, mesh, [Shard(0)]) for key, value in state.items()}


def test_distributed_ends_are_gathered(mesh: Any, tmp_path: Path) -> None:
    ends = [distributed(state_of(mlp(seed)), mesh) for seed in (1, 2)]
    paths = [write_torch(tmp_path / f"{at}.pt", end) for at, end in enumerate(ends)]
    expected = mli_fast.sweep(mlp(), mlp(1), mlp(2), DATA, 5).loss
    for pair in (ends, (mlp(1), ends[1]), paths):
        np.testing.assert_array_equal(mli_fast.sweep(mlp(), *pair, DATA, 5).loss, expected)


@pytest.mark.filterwarnings("ignore:FSDP")
def test_sharded_modules_are_gathered_ends_but_no_architecture(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(mlp(1), mesh=mesh)
    expected = mli_fast.sweep(mlp(), mlp(1), mlp(2), DATA, 5).loss
    np.testing.assert_array_equal(mli_fast.sweep(mlp(), sharded, mlp(2), DATA, 5).loss, expected)
    with pytest.raises(ValueError, match=r"the model's '0\.weight'.* is a DTensor"):
        mli_fast.sweep(sharded, mlp(1), mlp(2), DATA)


class Raising(Tensor):
    """Refuses whatever is done to it."""

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not I")


def test_a_subclass_that_raises_is_refused_by_name() -> None:
    value = Tensor._make_subclass(Raising, torch.ones(2))
    with pytest.raises(ValueError, match=r"theta_T: 'w' is a Raising, a tensor subclass that cannot be read .*not I"):
        load_state({"w": value}, "theta_T")


class Graph(nn.Module):
    """Mixes its inputs by a sparse matrix."""

    def __init__(self, seed: int, layout: torch.layout, persistent: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 2)
        mixing = torch.eye(3) + torch.eye(3).roll(1, 0)
        self.register_buffer("mixing", mixing.to_sparse(layout=layout), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((self.mixing @ x.T).T)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_buffers(layout: str) -> None:
    ends = [Graph(seed, LAYOUTS[layout], persistent=False) for seed in (1, 2)]
    found = mli_fast.sweep(Graph(0, LAYOUTS[layout], persistent=False), *ends, DATA, alphas=(0.0, 1.0), metrics=())
    losses = [float(nn.functional.cross_entropy(end(DATA[0]), DATA[1]).detach()) for end in ends]
    np.testing.assert_allclose(found.loss, losses, rtol=1e-6)
    kept = [Graph(seed, LAYOUTS[layout], persistent=True) for seed in (0, 1, 2)]
    with pytest.raises(ValueError, match=r"'mixing' is stored as torch\.sparse_.*make it dense.*persistent=False"):
        mli_fast.sweep(*kept, DATA)
    with pytest.raises(ValueError, match=r"theta_0: 'mixing' is stored as torch\.sparse_.*make it a dense"):
        mli_fast.sweep(ends[0], kept[1], kept[2], DATA)
