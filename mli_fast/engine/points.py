"""The points of a sweep: every parameter's anchors and coefficients, and its value at one point or under vmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mli_fast.blended import BlendedTensor
from mli_fast.ops.blend import blend
from mli_fast.ops.blend.many import Blender
from mli_fast.ops.blend.reference import ONE

KEPT_OBJECTS = 50_000  # small vectors of all points are kept while they are no more tensors than this
VALUES_AHEAD = 2**22  # numbers of vectors that are blended ahead for the points to come


class Points:
    """P points: what `functional_call` gets for each name at each of them.

    Args:
        anchors: name -> R tensors, or one where all anchors agree; on the device of the work.
        coefficients: float64 [P, R] for every name that `others` does not list, on the device of the anchors.
        others: name -> float64 [P, R], likewise.
        dtype: the compute dtype of floating values, None for each its own.
        tables: name -> the values themselves at all points, [P, *shape], for names that are no combination of anchors.
    """

    def __init__(
        self,
        anchors: Mapping[str, tuple[Tensor, ...]],
        coefficients: Tensor,
        others: Mapping[str, Tensor],
        dtype: torch.dtype | None,
        tables: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tables = dict(tables or {})
        self.anchors = {name: group for name, group in anchors.items() if name not in self._tables}
        self.count = len(coefficients)
        self._others = dict(others)
        self._one = ONE[0]  # on the CPU: known without asking a GPU
        self._groups: list[Tensor] = [coefficients]
        self._group: dict[str, int] = {}
        for name, own in others.items():
            known = [i for i, g in enumerate(self._groups) if g is own]
            self._group[name] = known[0] if known else len(self._groups)
            if not known:
                self._groups.append(own)
        self._dtype = dtype
        self._constants = {n: self._constant(a[0]) for n, a in self.anchors.items() if len(a) == 1}
        self._moving = [n for n, a in self.anchors.items() if len(a) > 1]
        vectors = [n for n in self._moving if anchors[n][0].ndim <= 1]
        self._matrices = [n for n in self._moving if anchors[n][0].ndim > 1]
        self._packed = self._pack(vectors)
        self._keep = self.count * len(vectors) <= KEPT_OBJECTS
        self._kept: dict[int, dict[str, BlendedTensor]] = {}
        self._blenders: list[tuple[list[str], int | None, Blender]] | None = None

    @property
    def matrices(self) -> int:
        """How many values have more than one dimension."""
        return sum(anchors[0].ndim > 1 for anchors in self.anchors.values())

    def dtype_of(self, anchor: Tensor) -> torch.dtype:
        """The dtype a value is computed in."""
        return self._dtype if self._dtype is not None and anchor.is_floating_point() else anchor.dtype

    def deferred(self, p: int) -> dict[str, Tensor]:
        """The values at point p, not computed yet but for the vectors, which one blend computes together."""
        return self._values(self._rows(p), self._vectors_at(p))

    def deferred_with(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """`deferred` with a row of each of `groups`, wherever it comes from."""
        vectors: dict[str, BlendedTensor] = {}
        for group, packed in self._packed:
            vectors.update(packed.with_row(rows[group]))
        return self._values(rows, vectors)

    def table(self, name: str) -> Tensor:
        """All points' values of a name, [P, *shape]."""
        anchors = self.anchors[name]
        if len(anchors) == 1:
            return anchors[0].to(self.dtype_of(anchors[0])).expand(self.count, *anchors[0].shape).clone()
        return blend(anchors, self._groups[self._group.get(name, 0)], self.dtype_of(anchors[0]))

    def with_tables(self, tables: Mapping[str, Tensor]) -> Points:
        """These points with the values [P, *shape] of `tables` for its names."""
        return Points(self.anchors, self._groups[0], self._others, self._dtype, {**self._tables, **tables})

    @property
    def moving(self) -> list[str]:
        """The names whose values are not the same at all points."""
        return self._moving

    def _values(self, rows: Sequence[Tensor], vectors: Mapping[str, BlendedTensor]) -> dict[str, Tensor]:
        values: dict[str, Tensor] = dict(self._constants)
        for name in self._matrices:
            values[name] = self._blended(name, rows[self._group.get(name, 0)])
        values.update(vectors)
        for name, row in zip(self._tables, rows[len(self._groups) :], strict=False):
            values[name] = BlendedTensor.make((row,), self._one, row.dtype, value=row)
        return values

    def _rows(self, p: int) -> list[Tensor]:
        return [t[p] for t in (*self._groups, *self._tables.values())]

    def computed(self, p: int) -> dict[str, Tensor]:
        """The values at point p, in memory that the next point's are written to."""
        return self.computed_with(self._rows(p))

    def computed_with(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """`computed` with a row of each of `groups`, wherever it comes from."""
        if self._blenders is None:
            self._blenders = self._alike()
        values: dict[str, Tensor] = {}
        for names, group, blender in self._blenders:
            row = self._one if group is None else rows[group]
            values.update(zip(names, blender(row), strict=True))
        values.update(zip(self._tables, rows[len(self._groups) :], strict=False))
        for name, anchors in self.anchors.items():
            if name not in values:
                values[name] = anchors[0].to(self.dtype_of(anchors[0]), copy=True)
        return values

    def _alike(self) -> list[tuple[list[str], int | None, Blender]]:
        """Names whose values one call can compute, with their group of coefficients (None: constant)."""
        alike: dict[tuple[int | None, torch.dtype, torch.dtype], list[str]] = {}
        for name, anchors in self.anchors.items():
            first = anchors[0]
            if len(anchors) > 1 or first.is_floating_point():
                group = self._group.get(name, 0) if len(anchors) > 1 else None
                alike.setdefault((group, first.dtype, self.dtype_of(first)), []).append(name)
        return [
            (names, group, Blender([self.anchors[n] for n in names], dtype))
            for (group, _, dtype), names in alike.items()
        ]

    def groups(self, start: int, stop: int) -> list[Tensor]:
        """What tells points start..stop-1: coefficients [A, R] of each group of names, tables, the constants' last."""
        ones = torch.ones(stop - start, 1, dtype=torch.float64, device=self._groups[0].device)
        return [*(t[start:stop] for t in (*self._groups, *self._tables.values())), ones]

    def batched(self, coefficients: Sequence[Tensor]) -> dict[str, Tensor]:
        """The values under vmap over a row of each of `groups`.

        Constants are per point as all others are: whether two anchors agree must not change the layout of what follows,
        and with it the order of its sums.
        """
        values: dict[str, Tensor] = dict(self._constants)
        for name, constant in self._constants.items():
            if constant.dtype.is_floating_point:
                values[name] = BlendedTensor.make(constant.anchors, coefficients[-1], constant.dtype)
        for name in self._moving:
            values[name] = self._blended(name, coefficients[self._group.get(name, 0)])
        values.update(zip(self._tables, coefficients[len(self._groups) :], strict=False))
        return values

    def _pack(self, names: Sequence[str]) -> list[tuple[int, Vectors]]:
        alike: dict[tuple[int, torch.dtype, torch.dtype], list[str]] = {}
        for name in names:
            first = self.anchors[name][0]
            alike.setdefault((self._group.get(name, 0), first.dtype, self.dtype_of(first)), []).append(name)
        return [
            (group, Vectors({n: self.anchors[n] for n in chosen}, self._groups[group], dtype))
            for (group, _, dtype), chosen in alike.items()
        ]

    def _blended(self, name: str, coefficients: Tensor) -> BlendedTensor:
        anchors = self.anchors[name]
        return BlendedTensor.make(anchors, coefficients, self.dtype_of(anchors[0]))

    def _constant(self, anchor: Tensor) -> BlendedTensor:
        return BlendedTensor.make((anchor,), self._one, self.dtype_of(anchor), constant=True)

    def _vectors_at(self, p: int) -> dict[str, BlendedTensor]:
        if p not in self._kept:
            vectors = {}
            for _, packed in self._packed:
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
        return self._split(self._values[p - self._first], self._coefficients[p])

    def with_row(self, row: Tensor) -> dict[str, BlendedTensor]:
        """The values at coefficients [R]."""
        return self._split(blend(self._flat, row[None], self._dtype)[0], row)

    def _split(self, values: Tensor, row: Tensor) -> dict[str, BlendedTensor]:
        return {
            name: BlendedTensor.make(a, row, self._dtype, value=part.view(a[0].shape))
            for (name, a), part in zip(self._anchors.items(), values.split(self._sizes), strict=True)
        }
