"""Models with load hooks of their own: ends are what `load_state_dict` makes of them, or are refused by name."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mli_fast
from mli_fast.checkpoints import gather
from mli_fast.checkpoints.loading import loads_plainly
from tests.checkpoints.cases import State, mlp, state_of

ALPHAS = (0.0, 0.25, 1.0)


class Transposed(nn.Linear):
    """Its weight was stored the other way round before version 2."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *rest: Any) -> None:
        if local.get("version") is None or local["version"] < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()
        super()._load_from_state_dict(state, prefix, local, *rest)


class Renamed(nn.Sequential):
    """Takes the names of an older release."""

    def load_state_dict(self, state: Any, *rest: Any, **options: Any) -> Any:
        return super().load_state_dict({k.replace("old.", ""): v for k, v in state.items()}, *rest, **options)


def doubling(state: Any, prefix: str, *_: Any) -> None:
    state.update({key: value * 2 for key, value in state.items()})


def renaming(_: nn.Module, state: Any, prefix: str, *rest: Any) -> None:
    for key in [key for key in state if key.startswith("old.")]:
        state[key.removeprefix("old.")] = state.pop(key)


def plain(seed: int, first: type[nn.Linear] = nn.Linear, out: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(first(3, out), nn.ReLU(), nn.Linear(out, 2)).double()


def older(seed: int, out: int = 3) -> State:
    state = state_of(plain(seed, out=out))
    return {**state, "0.weight": state["0.weight"].t().contiguous()}


def assert_as_loaded(model: nn.Module, ends: tuple[Any, Any]) -> None:
    """Compare a sweep with the line between what a copy of the model has loaded, computed point by point."""
    torch.manual_seed(9)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 2, (7,))
    held = []
    for end in ends:
        model_of_it = copy.deepcopy(model)
        model_of_it.load_state_dict(end.state_dict() if isinstance(end, nn.Module) else end)
        held.append(state_of(model_of_it))
    expected = []
    replica = copy.deepcopy(model)
    for alpha in ALPHAS:
        with torch.no_grad():
            for name, memory in replica.state_dict().items():
                memory.copy_(torch.lerp(held[0][name], held[1][name], alpha))
            expected.append(float(nn.functional.cross_entropy(replica(x), y)))
    before = state_of(model)
    found = mli_fast.sweep(model, *ends, (x, y), alphas=ALPHAS, metrics=())
    np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("out", [3, 4], ids=["same-shape", "other-shape"])
@pytest.mark.parametrize("which", ["modules", "state-dicts", "older", "older-and-module"])
def test_versions_of_modules(which: str, out: int) -> None:
    new = plain(1, Transposed, out), plain(2, Transposed, out)
    ends: dict[str, tuple[Any, Any]] = {
        "modules": new,
        "state-dicts": tuple(end.state_dict() for end in new),
        "older": (older(1, out), older(2, out)),
        "older-and-module": (older(1, out), new[1]),
    }
    assert_as_loaded(plain(0, Transposed, out), ends[which])


def test_versions_behind_the_prefix_of_a_wrapper() -> None:
    end = plain(1, Transposed, 4)
    found = gather(plain(0, Transposed, 4), [nn.DataParallel(end).state_dict(), older(2, 4)])
    assert torch.equal(found.values["0.weight"][0], end[0].weight)
    assert torch.equal(found.values["0.weight"][1], plain(2, out=4)[0].weight)
    assert found.versioned


@pytest.mark.parametrize("how", ["override", "pre-hook"])
def test_names_that_only_the_model_knows(how: str) -> None:
    model: nn.Module = Renamed(*plain(0)) if how == "override" else plain(0)
    if how == "pre-hook":
        model.register_load_state_dict_pre_hook(renaming)
    assert_as_loaded(model, ({f"old.{key}": value for key, value in state_of(plain(1)).items()}, plain(2)))


def test_values_that_change_at_each_loading() -> None:
    model = plain(0)
    model._register_load_state_dict_pre_hook(doubling)
    assert_as_loaded(model, (plain(1), state_of(plain(2))))  # each point is loaded once
    model.register_load_state_dict_pre_hook(renaming)
    with pytest.raises(ValueError, match=r"theta_0: the model's own load_state_dict .* changes values each time.*take"):
        gather(model, [plain(1), {f"old.{key}": value for key, value in state_of(plain(2)).items()}])


def test_what_the_model_cannot_load_either() -> None:
    model = Renamed(*mlp())
    with pytest.raises(ValueError, match=r"theta_T does not fit the model: 1 of the model's 4 keys missing: '2\.bias'"):
        gather(model, [mlp(1), {key: value for key, value in state_of(mlp(2)).items() if key != "2.bias"}])


def test_a_checkpoint_is_not_written_to_by_hooks() -> None:
    def in_place(state: dict[str, Tensor], *_: Any) -> None:
        for key in [key for key in state if key.startswith("old.")]:
            state[key.removeprefix("old.")] = state.pop(key).mul_(1)

    model, end = mlp(), {f"old.{key}": value for key, value in state_of(mlp(1)).items()}
    model._register_load_state_dict_pre_hook(in_place)
    versions = {key: value._version for key, value in end.items()}
    assert torch.equal(gather(model, [end, mlp(2)]).values["0.weight"][0], mlp(1)[0].weight)
    assert versions == {key: value._version for key, value in end.items()}


def test_pytorchs_own_modules_are_not_copied() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.MultiheadAttention(2, 1), nn.LSTM(2, 2))
    assert loads_plainly(model)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_older_names_of_weight_norm() -> None:
    model, end = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.utils.weight_norm(nn.Linear(2, 2))
    found = gather(model, [model, end])
    assert torch.equal(found.values["parametrizations.weight.original1"][1], end.weight_v)
