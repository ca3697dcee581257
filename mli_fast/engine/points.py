"""The points of a sweep: every parameter's anchors and coefficients, and its values at any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mli_fast.ops.blend import blend
from mli_fast.ops.blend.many import Blender
from mli_fast.ops.blend.reference import ONE


class Points:
    """P points.

    Args:
        anchors: name -> R tensors, or one where all anchors agree; on the device of the work.
        coefficients: float64 [P, R] for every name that `others` does not list, on the device of the anchors.
        others: name -> float64 [P, R], likewise.
        dtypes: name -> the dtype that its values are computed in, the model's; where it is missing, the anchors' own.
        tables: name -> the values themselves at all points, [P, *shape], for names that are no combination of anchors.
    """

    def __init__(
        self,
        anchors: Mapping[str, tuple[Tensor, ...]],
        coefficients: Tensor,
        others: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype],
        tables: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tables = dict(tables or {})
        self.anchors = {name: group for name, group in anchors.items() if name not in self.tables}
        self.count = len(coefficients)
        self._coefficients, self._others, self._dtypes = coefficients, dict(others), dict(dtypes)
        self._ones = torch.ones(self.count, 1, dtype=torch.float64, device=coefficients.device)

    @property
    def names(self) -> list[str]:
        """All names."""
        return [*self.anchors, *self.tables]

    @property
    def moving(self) -> list[str]:
        """The names whose values are not the same at all points."""
        return [*(n for n, a in self.anchors.items() if len(a) > 1), *self.tables]

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a value is computed in."""
        own = (self.tables[name] if name in self.tables else self.anchors[name][0]).dtype
        return self._dtypes.get(name, own)

    def coefficients(self, name: str) -> Tensor:
        """Those of a name's anchors, float64 [P, R]; the same tensor for names that move alike."""
        if len(self.anchors[name]) == 1:
            return self._ones
        return self._others.get(name, self._coefficients)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A name's values at points start..stop-1, [stop - start, *shape]."""
        if name in self.tables:
            return self.tables[name][start:stop]
        first, *rest = self.anchors[name]
        if not rest:
            return first.to(self.dtype_of(name)).expand(stop - start, *first.shape)
        dtype = self.dtype_of(name)
        values = blend([_real(a) for a in self.anchors[name]], self.coefficients(name)[start:stop], dtype.to_real())
        return torch.view_as_complex(values) if dtype.is_complex else values

    def whole(self, name: str) -> Tensor:
        """One anchor's value at all points [P, *shape]: its own where a point is an anchor, else the last one's."""
        rows = self.coefficients(name)
        alone = (rows == 1) & ((rows != 0).sum(1, keepdim=True) == 1)
        last = rows.shape[1] - 1
        return torch.stack(self.anchors[name])[torch.where(alone.any(1), alone.int().argmax(1), last)]

    def vectors(self, names: Iterable[str], start: int, stop: int) -> dict[str, Tensor]:
        """Small tensors at points start..stop-1, [stop - start, *shape] each; those that move alike in one go."""
        found: dict[str, Tensor] = {}
        alike: dict[Any, list[str]] = {}
        for name in names:
            anchors = self.anchors.get(name, ())
            if len(anchors) > 1 and not anchors[0].is_complex():
                key = id(self.coefficients(name)), tuple(a.dtype for a in anchors), self.dtype_of(name)
                alike.setdefault(key, []).append(name)
            else:
                found[name] = self.rows(name, start, stop)
        for (_, _, dtype), chosen in alike.items():
            groups = [self.anchors[name] for name in chosen]
            joined = [torch.cat([a.flatten() for a in column]) for column in zip(*groups, strict=True)]
            values = blend(joined, self.coefficients(chosen[0])[start:stop], dtype)
            parts = values.split([group[0].numel() for group in groups], dim=1)
            for name, group, part in zip(chosen, groups, parts, strict=True):
                found[name] = part.reshape(stop - start, *group[0].shape)
        return found

    def bytes_of(self, name: str) -> int:
        """Those of a name's value at one point."""
        like = self.tables[name][0] if name in self.tables else self.anchors[name][0]
        return like.numel() * self.dtype_of(name).itemsize

    def table(self, name: str) -> Tensor:
        """A name's values at all points, [P, *shape], to be written to."""
        return self.rows(name, 0, self.count).clone()

    def with_tables(self, tables: Mapping[str, Tensor]) -> Points:
        """These points with the values [P, *shape] of `tables` for its names."""
        return Points(self.anchors, self._coefficients, self._others, self._dtypes, {**self.tables, **tables})

    def values(self, p: int) -> dict[str, Tensor]:
        """All values at point p, in memory of their own."""
        return {name: self.rows(name, p, p + 1)[0] for name in self.names}


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, which blend alike."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class Writer:
    """Writes the values of names at one point after another into memory.

    Args:
        points: the points.
        memory: name -> the tensor to write to.
        names: those to be written.
    """

    def __init__(self, points: Points, memory: Mapping[str, Tensor], names: Iterable[str]) -> None:
        self._points, self._memory = points, memory
        names = list(names)
        self._constants = [n for n in names if n in points.anchors and len(points.anchors[n]) == 1]
        self._tables = [n for n in names if n in points.tables]
        alike: dict[tuple[int, torch.dtype, torch.dtype], list[str]] = {}
        for name in names:
            anchors = points.anchors.get(name, ())
            if len(anchors) > 1:
                key = id(points.coefficients(name)), anchors[0].dtype.to_real(), points.dtype_of(name).to_real()
                alike.setdefault(key, []).append(name)
        self._moving = []
        for (_, _, dtype), chosen in alike.items():
            groups = [[_real(a) for a in points.anchors[n]] for n in chosen]
            self._moving.append((chosen, Blender(groups, dtype, [_real(memory[n]) for n in chosen])))

    def constants(self) -> None:
        """Write what is the same at all points."""
        for name in self._constants:
            self._memory[name].copy_(self._points.anchors[name][0])

    def __call__(self, p: int) -> None:
        """Write what is not, at point p."""
        for names, blender in self._moving:
            blender(self._points.coefficients(names[0])[p])
        for name in self._tables:
            self._memory[name].copy_(self._points.tables[name][p])


__all__ = ["ONE", "Points", "Writer"]
