"""Tensors made of Python data and arrays within a pass: whatever went into them, values are the plain loop's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import tensor as made_before_any_sweep

import mli_fast

ALPHAS = [0.0, 0.1, 0.2, 0.3, 0.8, 0.9, 0.95, 1.0]
Choice = Callable[[list[Tensor], Tensor], Tensor]
Data = list[tuple[Tensor, Tensor]]


class Router(nn.Module):
    """Two of four experts, by the mean score of a batch: the choice changes at few points."""

    def __init__(self, choose: Choice) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(12, 4), nn.Parameter(torch.randn(4, 12, 5) * 0.3)
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        score = self.gate(x).mean(0)
        return x @ self.choose([score.argmax(), score.argmin()], self.experts).mean(0)


class Scaled(nn.Module):
    """Outputs times what a form makes of which of them are positive on average, or of the batch."""

    def __init__(self, form: Callable[[Scaled, Tensor], Tensor]) -> None:
        super().__init__()
        self.out, self.form, self.array = nn.Linear(12, 5), form, np.zeros(5, np.float32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(x)
        return y * (1 + self.form(self, y))


def ends(make: Callable[[], nn.Module], biases: dict[str, tuple[list[float], list[float]]]) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    states = [make().state_dict() for _ in range(2)]
    for name, values in biases.items():
        for state, value in zip(states, values, strict=True):
            state[name] = torch.tensor(value)
    return states


def data() -> Data:
    torch.manual_seed(1)
    return [(torch.randn(8, 12), torch.randint(0, 5, (8,))) for _ in range(4)]


def plain(model: nn.Module, states: list[dict[str, Tensor]], batches: Data) -> np.ndarray:
    found = []
    for alpha in ALPHAS:
        own = copy.deepcopy(model).double().eval()
        own.load_state_dict({k: (1 - alpha) * v.double() + alpha * states[1][k].double() for k, v in states[0].items()})
        with torch.no_grad():
            losses = [F.cross_entropy(own(x.double()), y, reduction="none") for x, y in batches]
        found.append(float(torch.cat(losses).mean()))
    return np.array(found)


CHOICES: dict[str, Choice] = {
    "LongTensor": lambda i, w: w[torch.LongTensor(i)],
    "Tensor": lambda i, w: w[torch.Tensor(i).long()],
    "index": lambda i, w: w[i, :],
    "index-with-numbers": lambda i, w: w[[i[0], 2], :],
    "new_tensor": lambda i, w: w[i[0].new_tensor(i)],
    "tensor": lambda i, w: w[torch.tensor(i)],
    "alias": lambda i, w: w[made_before_any_sweep(i)],
    "tuple": lambda i, w: w[torch.LongTensor(tuple(i))],
    "vectors": lambda i, w: w[torch.LongTensor([t.reshape(1) for t in i]).flatten()],
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("how", CHOICES)
def test_numbers_of_tensors_in_lists_are_seen(how: str, check: bool) -> None:
    make = partial(Router, CHOICES[how])
    states = ends(make, {"gate.bias": ([8.0, 0, 0, -8], [0.0, 8, -8, 0])})
    found = mli_fast.sweep(make(), *states, data(), ALPHAS, check=check, progress=False)
    np.testing.assert_allclose(found.loss, plain(make(), states, data()), rtol=1e-5)
    alone = mli_fast.sweep(make(), *states, data(), [0.0], check=check, progress=False)
    assert alone.loss[0] == found.loss[0]


def into_an_array(net: Scaled, y: Tensor, made: Callable[[np.ndarray], Tensor]) -> Tensor:
    net.array[:] = (y.mean(0) > 0).tolist()
    return made(net.array).to(y.dtype)


def twice_into_an_array(net: Scaled, y: Tensor) -> Tensor:
    net.array[:] = 2.0
    first = torch.tensor(net.array)
    net.array[:] = (y.mean(0) > 0).tolist()
    return (first + torch.tensor(net.array)).to(y.dtype)


def strided(net: Scaled, y: Tensor) -> Tensor:
    return torch.tensor(np.arange(10.0)[::2] + np.broadcast_to(np.float64(2.0), 5)).to(y.dtype)


FORMS: dict[str, Callable[[Scaled, Tensor], Tensor]] = {
    "from_numpy": partial(into_an_array, made=torch.from_numpy),
    "as_tensor": partial(into_an_array, made=torch.as_tensor),
    "asarray": partial(into_an_array, made=torch.asarray),
    "tensor": partial(into_an_array, made=torch.tensor),
    "twice": twice_into_an_array,
    "strided": strided,
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_a_pass_writes_to_are_that_passs(form: str, check: bool) -> None:
    make: Any = partial(Scaled, lambda net, y: FORMS[form](net, y))
    states = ends(make, {"out.bias": ([1.0, 1, 1, -1, -1], [-1.0, -1, 1, 1, 1])})
    found = mli_fast.sweep(make(), *states, data(), ALPHAS, check=check, progress=False)
    np.testing.assert_allclose(found.loss, plain(make(), states, data()), rtol=1e-5)


@pytest.mark.parametrize("make", [lambda y: y[:, [4, 3, 2, 1, 0]], lambda y: y[:, torch.LongTensor([0, 1, 2, 3, 3])]])
def test_lists_of_numbers_are_planned(make: Callable[[Tensor], Tensor]) -> None:
    model: Any = partial(Scaled, lambda net, y: make(y))
    states = ends(model, {})
    found = mli_fast.sweep(model(), *states, data(), ALPHAS, progress=False)
    assert found.provenance["engine"] == "planned"
    np.testing.assert_allclose(found.loss, plain(model(), states, data()), rtol=1e-5)


class Slot:
    """A place that no dict shows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = torch.ones(5)


def counted_in_a_slot(net: Scaled, y: Tensor, slot: Slot) -> Tensor:
    return slot.value.add_(1).to(y.dtype)


def counted_in_an_array(net: Scaled, y: Tensor) -> Tensor:
    net.array += 1
    return torch.from_numpy(net.array).to(y.dtype)


def counted_and_copied(net: Scaled, y: Tensor) -> Tensor:
    net.array += 1
    return torch.tensor(net.array).to(y.dtype)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
@pytest.mark.parametrize("form", [counted_in_a_slot, counted_in_an_array, counted_and_copied])
def test_what_is_counted_out_of_sight_is_an_error(form: Any, listed: bool, check: bool) -> None:
    if form is counted_in_a_slot:
        form = partial(form, slot=Slot())
    make: Any = partial(Scaled, form)
    states = ends(make, {})
    with pytest.raises(ValueError, match="carries state"):
        mli_fast.sweep(make(), *states, data() if listed else iter(data()), ALPHAS, check=check, progress=False)


@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
def test_inference_mode_within_a_model_is_right(listed: bool) -> None:
    class Inferring(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            turned = torch.stack([x, x + 1]).transpose(0, 1)  # another order of strides
            with torch.inference_mode():
                return F.linear(turned, self.out.weight).sum(1)

    make: Any = partial(Inferring, lambda net, y: y)
    states = ends(make, {})
    batches = data() if listed else iter(data())
    found = mli_fast.sweep(make(), *states, batches, ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, plain(make(), states, data()), rtol=1e-5)
