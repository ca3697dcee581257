"""What a captured pass is: operators, the values they read and make, and the memory that values live in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the record, by its number."""

    number: int


@dataclass(eq=False, slots=True)
class Op:
    """One operator call below autograd, `Ref` in the places of tensors."""

    func: Any  # torch._ops.OpOverload, or an Exit
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[int | None]  # numbers; None for what is no tensor
    single: bool  # it returns one tensor, not a tuple
    reads: set[int]  # storages
    writes: set[int]  # storages, as the schema says


@dataclass(frozen=True, slots=True, eq=False)
class Exit:
    """Data that left PyTorch as Python data: calling it on the same value must give the same answer."""

    kind: str  # "item", "tolist", "shape", or an operator's name
    answer: Any

    def __call__(self, value: Tensor) -> None:
        """Raise `OtherAnswer` unless the value gives the answer of the record.

        Raises:
            OtherAnswer: it does not, so that the rest of the record need not be what the model does.
        """
        if not same_data(taken(self.kind, value), self.answer):
            raise OtherAnswer


@dataclass(frozen=True, slots=True, eq=False)
class Answer(Exit):
    """What an operator gives that is no tensor, such as `torch.equal`'s: calling it again must give the same."""

    func: Any

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Raise `OtherAnswer` unless the operator gives the answer of the record.

        Raises:
            OtherAnswer: it does not.
        """
        if not same_data(self.func(*args, **kwargs), self.answer):
            raise OtherAnswer


class OtherAnswer(Exception):
    """What leaves PyTorch here is not what left it in the record."""


def taken(kind: str, value: Tensor) -> Any:
    """What leaves PyTorch by an exit of this kind."""
    if kind == "shape":
        return tuple(value.shape)
    return value.item() if kind == "item" else value.tolist()


def same_data(a: Any, b: Any) -> bool:
    """Whether two answers are equal in value and type, and -0.0 is not 0.0."""
    return type(a) is type(b) and repr(a) == repr(b)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a value lies in its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


@dataclass
class Record:
    """A captured pass. Values have numbers; `storage[n]` and `geometry[n]` say where value n lies.

    Attributes:
        parameters: name -> number, for parameters and persistent buffers; tied names once.
        batch: the numbers of the batch's tensors, in order.
        constants: number -> tensor, for memory that was there before the pass, and for plain Python data.
        outputs: the numbers of the outputs' tensors, in order; None for other leaves.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    batch: list[int] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    literals: set[int] = field(default_factory=set)  # constants made from Python data within the pass
    ops: list[Op] = field(default_factory=list)
    outputs: list[int | None] = field(default_factory=list)
    storage: list[int] = field(default_factory=list)
    geometry: list[Geometry] = field(default_factory=list)
    tree: Any = None  # outputs and targets, with None in the places of tensors

    def refs(self, *things: Any) -> list[int]:
        """The numbers of the values in arguments."""
        return list(numbers_in(things))

    @property
    def given(self) -> set[int]:
        """The storages that no operator of the pass made."""
        return {self.storage[n] for n in (*self.parameters.values(), *self.batch, *self.constants)}

    def written(self) -> set[int]:
        """The storages that operators write to."""
        return set().union(*(op.writes for op in self.ops)) if self.ops else set()


def numbers_in(thing: Any) -> Iterator[int]:
    """The numbers of the `Ref`s in nested lists, tuples and dicts."""
    if type(thing) is Ref:
        yield thing.number
    elif type(thing) in (list, tuple):
        for item in thing:
            yield from numbers_in(item)
    elif type(thing) is dict:
        for item in thing.values():
            yield from numbers_in(item)
