"""The points of a sweep: every parameter's anchors and coefficients, and its value at one point or under vmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mli_fast.blended import BlendedTensor
from mli_fast.ops.blend import blend

KEPT_OBJECTS = 50_000  # small vectors of all points are kept while they are no more tensors than this
VALUES_AHEAD = 2**22  # numbers of vectors that are blended ahead for the points to come


class Points:
    """P points: what `functional_call` gets for each name at each of them.

    Args:
        anchors: name -> R tensors, or one where all anchors agree; on the device of the work.
        coefficients: float64 [P, R] for every name that `others` does not list.
        others: name -> float64 [P, R].
        dtype: the compute dtype of floating values, None for each its own.
    """

    def __init__(
        self,
        anchors: Mapping[str, tuple[Tensor, ...]],
        coefficients: Tensor,
        others: Mapping[str, Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        self.anchors = anchors
        self.count = len(coefficients)
        self._one = torch.ones(1, dtype=torch.float64)
        self._groups: list[Tensor] = [coefficients]
        self._group: dict[str, int] = {}
        for name, own in others.items():
            known = [i for i, g in enumerate(self._groups) if g is own]
            self._group[name] = known[0] if known else len(self._groups)
            if not known:
                self._groups.append(own)
        self._dtype = dtype
        self._constants = {n: self._constant(a[0]) for n, a in anchors.items() if len(a) == 1}
        self._moving = [n for n, a in anchors.items() if len(a) > 1]
        vectors = [n for n in self._moving if anchors[n][0].ndim <= 1]
        self._matrices = [n for n in self._moving if anchors[n][0].ndim > 1]
        self._packed = self._pack(vectors)
        self._keep = self.count * len(vectors) <= KEPT_OBJECTS
        self._kept: dict[int, dict[str, BlendedTensor]] = {}

    @property
    def matrices(self) -> int:
        """How many values have more than one dimension."""
        return sum(anchors[0].ndim > 1 for anchors in self.anchors.values())

    def dtype_of(self, anchor: Tensor) -> torch.dtype:
        """The dtype a value is computed in."""
        return self._dtype if self._dtype is not None and anchor.is_floating_point() else anchor.dtype

    def deferred(self, p: int) -> dict[str, Tensor]:
        """The values at point p, not computed yet but for the vectors, which one blend computes together."""
        values: dict[str, Tensor] = dict(self._constants)
        for name in self._matrices:
            values[name] = self._blended(name, self._row(name, p))
        values.update(self._vectors_at(p))
        return values

    def computed(self, p: int) -> dict[str, Tensor]:
        """The values at point p in memory of their own."""
        values = {}
        for name, anchors in self.anchors.items():
            if len(anchors) > 1:
                values[name] = blend(anchors, self._row(name, p)[None], self.dtype_of(anchors[0]))[0]
            else:
                values[name] = anchors[0].to(self.dtype_of(anchors[0]), copy=True)
        return values

    def groups(self, start: int, stop: int) -> list[Tensor]:
        """The coefficients [A, R] of points start..stop-1, a tensor for each group of names, the constants' last."""
        return [*(g[start:stop] for g in self._groups), torch.ones(stop - start, 1, dtype=torch.float64)]

    def batched(self, coefficients: Sequence[Tensor]) -> dict[str, Tensor]:
        """The values under vmap over the coefficients [R] of every group.

        Constants are per point as all others are: whether two anchors agree must not change the layout of what follows,
        and with it the order of its sums.
        """
        values: dict[str, Tensor] = dict(self._constants)
        for name, constant in self._constants.items():
            if constant.dtype.is_floating_point:
                values[name] = BlendedTensor.make(constant.anchors, coefficients[-1], constant.dtype)
        for name in self._moving:
            values[name] = self._blended(name, coefficients[self._group.get(name, 0)])
        return values

    def _pack(self, names: Sequence[str]) -> list[Vectors]:
        alike: dict[tuple[int, torch.dtype, torch.dtype], list[str]] = {}
        for name in names:
            first = self.anchors[name][0]
            alike.setdefault((self._group.get(name, 0), first.dtype, self.dtype_of(first)), []).append(name)
        return [
            Vectors({n: self.anchors[n] for n in chosen}, self._groups[group], dtype)
            for (group, _, dtype), chosen in alike.items()
        ]

    def _row(self, name: str, p: int) -> Tensor:
        return self._groups[self._group.get(name, 0)][p]

    def _blended(self, name: str, coefficients: Tensor) -> BlendedTensor:
        anchors = self.anchors[name]
        return BlendedTensor.make(anchors, coefficients, self.dtype_of(anchors[0]))

    def _constant(self, anchor: Tensor) -> BlendedTensor:
        return BlendedTensor.make((anchor,), self._one, self.dtype_of(anchor), constant=True)

    def _vectors_at(self, p: int) -> dict[str, BlendedTensor]:
        if p not in self._kept:
            vectors = {}
            for packed in self._packed:
                vectors.update(packed.at(p))
            if not self._keep:
                return vectors
            self._kept[p] = vectors
        return self._kept[p]


class Vectors:
    """All vectors that move with the same coefficients, end to end, so that one blend makes many points' values.

    Args:
        anchors: name -> R tensors of at most one dimension, of one dtype.
        coefficients: float64 [P, R].
        dtype: the values' dtype.
    """

    def __init__(self, anchors: Mapping[str, tuple[Tensor, ...]], coefficients: Tensor, dtype: torch.dtype) -> None:
        self._anchors, self._coefficients, self._dtype = anchors, coefficients, dtype
        self._sizes = [a[0].numel() for a in anchors.values()]
        count = len(next(iter(anchors.values())))
        self._flat = [torch.cat([a[r].reshape(-1) for a in anchors.values()]) for r in range(count)]
        self._points = max(1, VALUES_AHEAD // max(1, sum(self._sizes)))
        self._first, self._values = 0, self._flat[0].new_empty(0, dtype=dtype)

    def at(self, p: int) -> dict[str, BlendedTensor]:
        """The values at point p."""
        if not self._first <= p < self._first + len(self._values):
            self._first = p - p % self._points
            self._values = blend(self._flat, self._coefficients[self._first : self._first + self._points], self._dtype)
        parts = self._values[p - self._first].split(self._sizes)
        row = self._coefficients[p]
        return {
            name: BlendedTensor.make(a, row, self._dtype, value=part.view(a[0].shape))
            for (name, a), part in zip(self._anchors.items(), parts, strict=True)
        }
