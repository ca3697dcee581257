"""Parts of parameters: what a program's views take out of one, taken likewise out of any of its anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mli_fast.capture.record import Ref
from mli_fast.program import VIEWS, Program

aten = torch.ops.aten
_TURN = (aten.t.default, (), 0)
# Operators that pick and order elements of one tensor, as the part of a linear map is that of its anchors
_PICKS = VIEWS | {
    aten.alias.default,
    aten.detach.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
}


@dataclass(frozen=True)
class Part:
    """A view of a parameter.

    Attributes:
        name: the parameter's.
        steps: (operator, its other arguments, which of its results), in order; none for the whole parameter.
    """

    name: str
    steps: tuple[tuple[Any, tuple[Any, ...], int], ...] = ()

    @property
    def turned(self) -> Part:
        """The transpose of a matrix."""
        steps = self.steps[:-1] if self.steps[-1:] == (_TURN,) else (*self.steps, _TURN)
        return Part(self.name, steps)

    def of(self, value: Tensor) -> Tensor:
        """The part of a value of the parameter, a view where its memory allows."""
        for func, args, at in self.steps:
            found = (torch.reshape if func in VIEWS else func)(value, *args)
            value = found if isinstance(found, Tensor) else found[at]
        return value

    def __str__(self) -> str:
        return self.name if not self.steps or self.steps == (_TURN,) else f"part of {self.name}"


def part(program: Program, argument: Any) -> Part | None:
    """The part of a parameter that an argument is; None where it is none."""
    steps: list[tuple[Any, tuple[Any, ...], int]] = []
    while isinstance(argument, Ref) and argument.number not in program.name_of:
        maker = program.maker.get(argument.number)
        if maker is None or not maker.stable or maker.product is not None or maker.func not in _PICKS or maker.kwargs:
            return None
        steps.append((maker.func, _fixed(maker.args[1:]), maker.outs.index(argument.number)))
        argument = maker.args[0]
    return Part(program.name_of[argument.number], tuple(reversed(steps))) if isinstance(argument, Ref) else None


def _fixed(thing: Any) -> Any:
    return tuple(map(_fixed, thing)) if isinstance(thing, (list, tuple)) else thing
