"""Checkpoints as vectors: which entries count, and sums of products over them in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mli_fast.checkpoints import Source, load_state
from mli_fast.checkpoints.matching import Entry, match

State = Mapping[str, Tensor]
RUNNING_STATISTICS = ("running_mean", "running_var")


def counted(state: State) -> dict[str, tuple[str, ...]]:
    """The entries that are coordinates of a network: floating ones that are no running statistics, tied ones once.

    Returns:
        name -> all names that share its memory, its own first.
    """
    known: dict[object, list[str]] = {}
    for name, value in state.items():
        if value.is_floating_point() and name.rpartition(".")[2] not in RUNNING_STATISTICS:
            place = (value.device, value.data_ptr(), value.shape, value.stride()) if value.numel() else name
            known.setdefault(place, []).append(name)
    return {names[0]: tuple(names) for names in known.values()}


def load_alike(source: Source, label: str, like: State, like_label: str) -> dict[str, Tensor]:
    """Read a checkpoint and give its entries the names they have in another.

    Raises:
        ValueError: keys or shapes differ.
    """
    entries = [Entry(name, (name,), value) for name, value in like.items()]
    return match(load_state(source, label), entries, f"{label}, compared with {like_label} as the model,")


def total(names: Mapping[str, object], part: Callable[[str], Tensor]) -> float:
    """The sum over entries of a 0-d tensor each."""
    return math.fsum(float(part(name)) for name in names)


def step(start: State, end: State, name: str) -> Tensor:
    """end - start of one entry, float64."""
    first = start[name].to(torch.float64)
    return end[name].to(first.device, torch.float64) - first


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products of two tensors of one shape."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def nearest(
    origin: State, directions: Sequence[Callable[[str], Tensor]], theta: State, names: Mapping[str, object]
) -> tuple[float, ...]:
    """The point origin + sum_i x_i d_i that is nearest to theta: every x_i, and how far theta is from it.

    Args:
        origin: a network.
        directions: each gives its part d_i of an entry, float64.
        theta: another network.
        names: the entries that count.

    Raises:
        numpy.linalg.LinAlgError: the directions depend on each other.
    """

    def off(name: str) -> Tensor:
        return step(origin, theta, name) - sum(x * d(name) for x, d in zip(places, directions, strict=True))

    def product(a: Callable[[str], Tensor], b: Callable[[str], Tensor]) -> float:
        return total(names, lambda name: dot(a(name), b(name)))

    gram = [[product(a, b) for b in directions] for a in directions]
    places = np.linalg.solve(gram, [product(partial(step, origin, theta), d) for d in directions]).tolist()
    return *places, math.sqrt(product(off, off))
