"""Batches of any containers: read, copied and cast as dicts are, the caller's left as they were, or refused."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from tests.cases import case
from tests.test_batch_norm import made


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A dataclass."""

    x: Tensor
    labels: Tensor


class Named(NamedTuple):
    """A named tuple."""

    x: Tensor
    labels: Tensor


class Plain:
    """A class of the caller's own, as graph libraries have them, with a number beside its tensors."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels, self.factor = x, labels, 1.5


class Slotted:
    """Has no `__dict__`."""

    __slots__ = ("labels", "x")

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels


class Store:
    """Keeps its tensors in a mapping."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.kept = {"x": x, "labels": labels}

    @property
    def x(self) -> Tensor:
        return self.kept["x"]

    @property
    def labels(self) -> Tensor:
        return self.kept["labels"]


class Takes(nn.Module):
    """Writes into the input that it finds in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 4)

    def forward(self, batch: Any) -> Tensor:
        x = batch["x"] if isinstance(batch, Mapping) else batch.x
        return self.last(x.mul_(getattr(batch, "factor", 1.5)))


class Ring(Plain):
    """Refers to itself."""

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        super().__init__(x, labels)
        self.next = self


class Single(Plain):
    """Is not to be copied."""

    def __copy__(self) -> Single:
        raise TypeError("one of a kind")


class Normals(nn.Module):
    """Returns a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(x), torch.ones(4))


MADE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "UserDict": lambda x, y: UserDict(x=x, labels=y),
    "BatchEncoding": lambda x, y: BatchEncoding({"x": x, "labels": y}),
    "mapping-proxy": lambda x, y: MappingProxyType({"x": x, "labels": y}),
    "dataclass": Frozen,
    "named-tuple": Named,
    "object": Plain,
    "object-with-slots": Slotted,
    "object-with-a-mapping": Store,
}


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch), batch["labels"] if isinstance(batch, Mapping) else batch.labels


@pytest.mark.parametrize("precision", [None, "fp64"])
@pytest.mark.parametrize("kind", MADE)
def test_containers_give_what_dicts_give_and_are_left_alone(kind: str, precision: str | None) -> None:
    c = made(Takes())
    before = [(x.clone(), y.clone()) for x, y in c.batches]
    options: dict[str, Any] = {"forward": forward, "precision": precision, "metrics": ()}
    found = c.sweep(4, loader=[MADE[kind](x, y) for x, y in c.batches], **options)
    as_dicts = c.sweep(4, loader=[{"x": x, "labels": y} for x, y in c.batches], **options)
    assert (found.loss == as_dicts.loss).all()
    assert found.provenance["engine"] == as_dicts.provenance["engine"] == "planned"
    given, kept = ([t for batch in batches for t in batch] for batches in (c.batches, before))
    assert all(map(torch.equal, given, kept))


def test_objects_that_differ_in_a_number_are_not_computed_alike() -> None:
    c, batches = made(Takes()), []
    for i, (x, y) in enumerate(c.batches):
        batches.append(Plain(x, y))
        batches[-1].factor = 1.0 + i
    found = c.sweep(4, loader=batches, forward=forward, metrics=())
    scaled = [{"x": x * (1.0 + i) / 1.5, "labels": y} for i, (x, y) in enumerate(c.batches)]
    np.testing.assert_allclose(found.loss, c.sweep(4, loader=scaled, forward=forward, metrics=()).loss, rtol=1e-6)


@pytest.mark.parametrize("kind", [Ring, Single])
def test_objects_that_cannot_be_looked_into_are_read_as_they_are(kind: type[Plain]) -> None:
    c = case("mlp")
    found = c.sweep(4, loader=[kind(x, y) for x, y in c.batches], forward=lambda model, b: (model(b.x), b.labels))
    np.testing.assert_allclose(found.loss, c.sweep(4).loss, rtol=1e-6)


def test_outputs_may_be_objects() -> None:
    def likelihood(outputs: torch.distributions.Normal, targets: Tensor) -> Tensor:
        return -outputs.log_prob(nn.functional.one_hot(targets, 4).float()).sum(1)

    c = made(Normals())
    found = c.sweep(4, criterion=likelihood, metrics=(), forward=lambda model, batch: (model(batch[0]), batch[1]))
    one_hot = [(x, nn.functional.one_hot(y, 4).float()) for x, y in c.batches]
    squares = c.sweep(4, loader=one_hot, metrics=(), criterion="mse", forward=lambda m, b: (m(b[0]).mean, b[1])).loss
    np.testing.assert_allclose(found.loss, 2 * squares + 2 * np.log(2 * np.pi), rtol=1e-6)


def test_shapes_in_batches_are_numbers() -> None:
    c = case("mlp")
    batches = [{"x": x, "shape": x.shape, "labels": y} for x, y in c.batches]
    found = c.sweep(4, loader=batches, forward=lambda model, b: (model(b["x"].view(b["shape"])), b["labels"]))
    np.testing.assert_allclose(found.loss, c.sweep(4).loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("made_of", "what"),
    [
        (lambda x, y: ((part for part in (x,)), y), "generator"),
        (lambda x, y: (part for part in (x, y)), "generator"),
        (lambda x, y: {"x": iter([x]), "labels": y}, "list_iterator"),
        (lambda x, y: map(torch.clone, (x, y)), "map"),
    ],
    ids=["inputs", "batch", "value", "map"],
)
@pytest.mark.parametrize("policy", ["interpolate", "update-bn"])
def test_a_batch_that_can_be_read_once_is_refused(
    made_of: Callable[[Tensor, Tensor], Any], what: str, policy: str
) -> None:
    c = case("mlp")
    batches = [made_of(x, y) for x, y in c.batches]
    options = {"loader": batches} if policy == "interpolate" else {"batch_norm": policy, "calibration": batches}
    with pytest.raises(ValueError, match=f"the batch is or holds a {what}, which can be read only once"):
        c.sweep(3, **options)


def test_arrays_in_batches_are_named_in_the_models_error() -> None:
    c = case("mlp")
    arrays: list[Any] = [(x.numpy(), y) for x, y in c.batches]
    with pytest.raises(TypeError) as caught:
        c.sweep(3, loader=arrays)
    assert "called with inputs of shapes ndarray; forward=" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("as_pair", [False, True], ids=["batches", "pair"])
@pytest.mark.parametrize("criterion", ["cross_entropy", nn.CrossEntropyLoss(label_smoothing=0.1), "callable"])
def test_the_callers_default_device_is_not_where_values_go(criterion: Any, as_pair: bool) -> None:
    def numbers(outputs: Tensor, targets: Tensor) -> list[float]:
        return nn.functional.cross_entropy(outputs, targets, reduction="none").tolist()

    c = case("mlp")
    pair = tuple(torch.cat(column) for column in zip(*c.batches, strict=True))
    options: dict[str, Any] = {"loader": pair if as_pair else c.batches}
    options |= {"criterion": numbers if criterion == "callable" else criterion, "metrics": {"own": numbers}}
    expected = c.sweep(4, **options)
    with torch.device("meta"):
        found = c.sweep(4, **options)
    assert (found.loss == expected.loss).all()
    assert (found["own"] == expected["own"]).all()
