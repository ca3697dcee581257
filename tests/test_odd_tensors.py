"""`sweep` on tensors that hold their values in an unusual way: right, or a ValueError that names the tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mli_fast
from tests.models import endpoints_of
from tests.odd_tensors import Wrapped, expanded, freed, negative, shrunk, wrapped
from tests.reference import plain_loop

ALPHAS = [0.0, 0.3, 1.0]
READ: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": negative,
    "expanded": expanded,
    "every-other": lambda t: torch.stack([t, t], -1)[..., 0],
}
REFUSED = {"freed": freed, "shrunk": shrunk, "wrapped": wrapped}
WORDS = "storage was freed|values are elsewhere"


class Small(nn.Module):
    """A convolution, linear layers, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7), nn.ReLU())
        self.head = nn.Linear(7, 4)
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.offset


class Negating(Small):
    """Whose layers see negative views and give them back."""

    def forward(self, x: Tensor) -> Tensor:
        return negative(self.head(negative(self.body(negative(x))))) + self.offset


class Wrapping(Small):
    def forward(self, x: Tensor) -> Tensor:
        return Wrapped(super().forward(x))


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Small()


MODEL = small(0)
THETA_0, THETA_T = endpoints_of(small)
X, Y = torch.randn(11, 8, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(11) % 4


def assert_right(model: nn.Module, theta_T: dict[str, Tensor], x: Tensor, y: Tensor, loader: object = None) -> None:
    result = mli_fast.sweep(model, THETA_0, theta_T, loader or (x, y), ALPHAS)
    plain = {name: value.clone().resolve_neg() for name, value in theta_T.items()}
    exact = plain_loop(model, THETA_0, plain, [(x.resolve_neg().clone(), y.resolve_neg().clone())], ALPHAS)
    torch.testing.assert_close(torch.tensor(result.loss), torch.tensor(exact.loss), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize("name", [*THETA_T, "all"])
def test_checkpoint_values(name: str, form: str) -> None:
    odd = {key: READ[form](value) if name in (key, "all") else value for key, value in THETA_T.items()}
    assert_right(MODEL, odd, X, Y)


@pytest.mark.parametrize("form", READ)
def test_inputs_and_targets(form: str) -> None:
    x, y = READ[form](X), READ[form](Y)
    assert_right(MODEL, THETA_T, x, y)
    assert_right(MODEL, THETA_T, x, y, loader=[(x[:7], y[:7]), (x[7:], y[7:])])


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", THETA_T)
def test_checkpoint_values_that_are_not_there(name: str, form: str) -> None:
    for states in (
        ({**THETA_0, name: REFUSED[form](THETA_0[name])}, THETA_T),
        (THETA_0, {**THETA_T, name: REFUSED[form](THETA_T[name])}),
    ):
        with pytest.raises(ValueError, match=rf"^theta_.: '{name}' is .*({WORDS})"):
            mli_fast.sweep(MODEL, *states, (X, Y), ALPHAS)


@pytest.mark.parametrize("form", REFUSED)
def test_inputs_and_targets_that_are_not_there(form: str) -> None:
    odd = REFUSED[form]
    for pair, named in (((odd(X), Y), "X"), ((X, odd(Y)), "y")):
        with pytest.raises(ValueError, match=rf"loader=\(X, y\): {named} \(shape .*({WORDS})"):
            mli_fast.sweep(MODEL, THETA_0, THETA_T, pair, ALPHAS)
        with pytest.raises(ValueError, match=rf"a tensor of the batch \(shape .*({WORDS})"):
            mli_fast.sweep(MODEL, THETA_0, THETA_T, [(X, Y), pair], ALPHAS)


def test_the_models_own_tensors() -> None:
    model = Small()
    model.offset = negative(model.offset)
    assert_right(model, THETA_T, X, Y)
    for parameter in model.parameters():  # not used
        parameter.untyped_storage().resize_(0)
    result = mli_fast.sweep(model, THETA_0, THETA_T, (X, Y), ALPHAS)
    assert torch.equal(
        torch.tensor(result.loss), torch.tensor(mli_fast.sweep(MODEL, THETA_0, THETA_T, (X, Y), ALPHAS).loss)
    )
    for odd in REFUSED.values():
        model.offset = odd(torch.arange(4.0))
        with pytest.raises(ValueError, match=rf"the model's 'offset' \(shape \(4,\).*({WORDS})"):
            mli_fast.sweep(model, THETA_0, THETA_T, (X, Y), ALPHAS)
    model = Small()
    model.head.weight = nn.Parameter(wrapped(model.head.weight.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=rf"the model's 'head.weight' .*({WORDS})"):
        mli_fast.sweep(model, THETA_0, THETA_T, (X, Y), ALPHAS)


def test_negative_views_within_the_model_and_outputs_without_memory() -> None:
    assert_right(Negating(), THETA_T, X, Y)
    with pytest.raises(ValueError, match=rf"a tensor that the model returned .*({WORDS})"):
        mli_fast.sweep(Wrapping(), THETA_0, THETA_T, (X, Y), ALPHAS)


def test_a_negative_view_is_not_tied_to_what_it_views() -> None:
    weight = torch.randn(3, 3)
    state = {"a": weight, "b": torch._neg_view(weight)}
    loaded = mli_fast.checkpoints.load_state(state)
    assert torch.equal(loaded["b"], -weight)
    assert loaded["a"].data_ptr() == weight.data_ptr() != loaded["b"].data_ptr()
