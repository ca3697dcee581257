"""Where the points of a row lie: coefficients for the peers, one public call for mli_fast.

Every point is a linear combination of a few anchors, entry by entry of the state dict, so a line, a plane and lines of
one layer each are the same problem to a peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Data = tuple[Tensor, Tensor]
Coefficients = Mapping[str, np.ndarray]  # of each entry of the state dict, [P, R]


class Points(Protocol):
    """What a row is made of."""

    @property
    def count(self) -> int:
        """Of all points."""

    @property
    def row(self) -> int:
        """Of the points that a peer that takes several at once may well take together."""

    def coefficients(self, anchors: Sequence[State]) -> Coefficients:
        """Of every entry at every point."""

    def ask(self, model: nn.Module, anchors: Sequence[State], data: Data, **options: Any) -> Any:
        """The same of mli_fast, as a user would call it -> SweepResult, its losses in the order of the coefficients."""


@dataclass(frozen=True)
class Line:
    """`count` alphas from 0 to 1."""

    count: int

    @property
    def row(self) -> int:
        return max(1, self.count // 5)

    @property
    def alphas(self) -> np.ndarray:
        return np.linspace(0.0, 1.0, self.count)

    def coefficients(self, anchors: Sequence[State]) -> Coefficients:
        return dict.fromkeys(anchors[0], along(self.alphas))

    def ask(self, model: nn.Module, anchors: Sequence[State], data: Data, **options: Any) -> Any:
        from mli_fast import sweep

        theta_0, theta_T = anchors
        return sweep(model, theta_0, theta_T, data, self.alphas, **options)


@dataclass(frozen=True)
class Surface:
    """A grid of `side` x `side` points on the plane through three anchors, which it holds with a margin."""

    side: int
    margin: float = 0.2  # of the anchors' extent, on either side

    @property
    def count(self) -> int:
        return self.side**2

    @property
    def row(self) -> int:
        return self.side

    def grid(self, anchors: Sequence[State]) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in parameter distance, x along theta_1 - theta_0 and y orthogonal to it."""
        base, height, foot = _triangle(anchors)
        return self._span(0.0, base, foot), self._span(0.0, height)

    def _span(self, *values: float) -> np.ndarray:
        low, high = min(values), max(values)
        return np.linspace(low - self.margin * (high - low), high + self.margin * (high - low), self.side)

    def coefficients(self, anchors: Sequence[State]) -> Coefficients:
        base, height, foot = _triangle(anchors)
        x, y = (axis.ravel() for axis in np.meshgrid(*self.grid(anchors), indexing="ij"))
        second = y / height
        first = (x - second * foot) / base
        return dict.fromkeys(anchors[0], np.stack((1 - first - second, first, second), 1))

    def ask(self, model: nn.Module, anchors: Sequence[State], data: Data, **options: Any) -> Any:
        from mli_fast import surface
        from mli_fast.paths import Plane

        x, y = self.grid(anchors)
        return surface(model, Plane(*anchors), data, x=x, y=y, **options)


@dataclass(frozen=True)
class Layerwise:
    """A line for each group of entries, the others held at theta_T; the points of a line follow each other."""

    groups: Mapping[str, str]  # name -> pattern of the entries that move
    alphas_per_group: int

    @property
    def count(self) -> int:
        return len(self.groups) * self.alphas_per_group

    @property
    def row(self) -> int:
        return self.alphas_per_group

    def coefficients(self, anchors: Sequence[State]) -> Coefficients:
        line = along(np.linspace(0.0, 1.0, self.alphas_per_group))
        held = np.tile((0.0, 1.0), (self.alphas_per_group, 1))
        return {
            name: np.concatenate([line if fnmatch(name, pattern) else held for pattern in self.groups.values()])
            for name in anchors[0]
        }

    def ask(self, model: nn.Module, anchors: Sequence[State], data: Data, **options: Any) -> Any:
        from mli_fast import layerwise

        theta_0, theta_T = anchors
        return layerwise(model, theta_0, theta_T, data, self.alphas_per_group, groups=self.groups, **options)


def along(alphas: np.ndarray) -> np.ndarray:
    """(1 - alpha, alpha), [A, 2]."""
    return np.stack((1 - alphas, alphas), 1)


def _triangle(anchors: Sequence[State]) -> tuple[float, float, float]:
    """Base |theta_1 - theta_0|, height of theta_2 over it, and how far along it the foot of that height lies."""
    origin, first, second = (_flat(anchor) for anchor in anchors)
    base = float((first - origin).norm())
    foot = float((second - origin) @ (first - origin)) / base
    height = float((second - origin - foot / base * (first - origin)).norm())
    return base, height, foot


def _flat(state: State) -> Tensor:
    """What distances count: floating-point entries but running statistics, in fp64."""
    kept = [v for k, v in state.items() if v.is_floating_point() and not k.endswith(("running_mean", "running_var"))]
    return torch.cat([value.double().reshape(-1) for value in kept])
