"""What a line does to each example, taken batch by batch while the outputs of all its points are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST_CKA = 2048  # numbers per example; the accumulated products are that squared, for every point
# A rise of an example's loss counts from this share of its largest loss on: below, float32 outputs decide it.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Seen:
    """One batch at all points of a line, which are in ascending alpha.

    Attributes:
        losses: [P, B] float64, an example's terms summed.
        inside: [P], whether alpha is in [0, 1].
        outputs: [P, B, D], None where no functional wants them.
        predictions: [P, B * terms], None where no functional wants them.
        tangents: d outputs / d alpha [P, B, D], None where no functional wants them.
    """

    losses: Tensor
    inside: Tensor
    outputs: Tensor | None
    predictions: Tensor | None
    tangents: Tensor | None


def gauss_length(seen: Seen) -> Tensor:  # [1, B]
    """The sum of the angles between consecutive chords of an example's outputs (Lucas et al. 2021), radians.

    Chords of length 0 have no direction and are left out. A lower bound of the curve's Gauss length, which an arc of
    angle pi has as pi, and n chords of it as pi (1 - 1 / n).
    """
    assert seen.outputs is not None
    return _turned(_chords(seen.outputs), seen.losses)


def gauss_length_jvp(seen: Seen) -> Tensor:  # [1, B]
    """`gauss_length` with exact tangents d outputs / d alpha in place of chords: an arc of angle pi has it as pi."""
    assert seen.tangents is not None
    return _turned((t.double() for t in seen.tangents), seen.losses)


def path_length(seen: Seen) -> Tensor:  # [1, B]
    """The sum of the lengths of the chords of an example's outputs: how far it moves in function space."""
    assert seen.outputs is not None
    total = seen.losses.new_zeros(seen.losses.shape[1])
    for chord in _chords(seen.outputs):
        total = total + chord.norm(dim=1)
    return total[None]


def monotone_examples(seen: Seen) -> Tensor:  # [1, B]
    """1 where an example's own loss never rises on [0, 1] by more than 1e-6 of its largest size there, else 0."""
    losses = seen.losses[seen.inside]
    if not len(losses):
        return seen.losses.new_full((1, seen.losses.shape[1]), float("nan"))
    rise = (losses - losses.cummin(0).values).amax(0)
    monotone = (rise <= ROUNDING * losses.abs().amax(0)).double()
    return monotone.masked_fill(losses.isnan().any(0), float("nan"))[None]


def flips(seen: Seen) -> Tensor:  # [P, B * terms]
    """1 where the prediction differs from that at the alpha before, NaN at the first and where there is none."""
    assert seen.predictions is not None
    changed, unknown = (seen.predictions.diff(dim=0) != 0).double(), _unknown(seen)
    changed = changed.masked_fill(unknown[1:] | unknown[:-1], float("nan"))
    return torch.cat([changed.new_full((1, changed.shape[1]), float("nan")), changed])


def agreement(seen: Seen) -> Tensor:  # [P, B * terms]
    """1 where the prediction is that at the largest alpha, NaN where there is none."""
    assert seen.predictions is not None
    unknown = _unknown(seen)
    return (seen.predictions == seen.predictions[-1]).double().masked_fill(unknown | unknown[-1], float("nan"))


def _unknown(seen: Seen) -> Tensor:  # [P, B * terms]
    """Whether the outputs were NaN, which predict nothing."""
    assert seen.predictions is not None
    points, examples = seen.losses.shape
    terms = seen.predictions.shape[1] // max(examples, 1)
    return seen.losses.isnan()[:, :, None].expand(-1, -1, terms).reshape(points, -1)


def _chords(outputs: Tensor) -> Iterator[Tensor]:
    """z_1 - z_0, z_2 - z_1, ... in float64, [B, D] each."""
    before = outputs[0].double()
    for at in outputs[1:]:
        after = at.double()
        yield after - before
        before = after


def _turned(directions: Iterator[Tensor], examples: Tensor) -> Tensor:
    """The sum [1, B] of the angles between consecutive directions [B, D] that have a length.

    By 2 atan2(|u - v|, |u + v|) for unit u and v (Kahan), which is exact for small angles and for those near pi, where
    an arccos is not.
    """
    total = examples.new_zeros(examples.shape[1])
    last: Tensor | None = None
    for direction in directions:
        length = direction.norm(dim=1)
        moved = length != 0  # true of NaN, which is to be seen
        unit = direction / length[:, None]
        if last is None:
            last, known = unit, moved
            continue
        angle = 2 * torch.atan2((unit - last).norm(dim=1), (unit + last).norm(dim=1))
        total = total + torch.where(moved & known, angle, 0.0)
        last, known = torch.where(moved[:, None], unit, last), known | moved
    return total[None]


class Cka:
    """Linear CKA [P] between the outputs at every point and those at the largest alpha (Kornblith et al. 2019).

    |X'Y|^2 / (|X'X| |Y'Y|) in Frobenius norms, for outputs X, Y [N, D] with their means taken off. Batches are merged
    about a first guess of the means, so that little cancels.
    """

    def __init__(self) -> None:
        self._n = 0
        self._shift: Tensor | None = None  # [P, D]
        self._sums: list[Tensor] = []  # sum x [P, D], sum xx' [P, D, D], sum xy' [P, D, D]

    def add(self, seen: Seen) -> None:
        """Take in a batch.

        Raises:
            ValueError: the outputs are too many numbers per example.
        """
        assert seen.outputs is not None
        points, examples, width = seen.outputs.shape
        if width > LARGEST_CKA:
            raise ValueError(f"metric 'cka': {width:,} outputs per example, at most {LARGEST_CKA:,} are taken")
        if examples == 0:
            return
        if self._shift is not None and self._shift.shape[1] != width:
            raise ValueError(f"metric 'cka': outputs of {width} numbers after ones of {self._shift.shape[1]}")
        if self._shift is None:
            self._shift = seen.outputs.double().mean(1)
            self._sums = [self._shift.new_zeros(points, *shape) for shape in ((width,), (width,) * 2, (width,) * 2)]
        end = seen.outputs[-1].double() - self._shift[-1]
        for p in range(points):
            x = seen.outputs[p].double() - self._shift[p]
            for total, term in zip(self._sums, (x.sum(0), x.T @ x, x.T @ end), strict=True):
                total[p] += term
        self._n += examples

    def value(self) -> NDArray[np.float64]:
        """The similarities [P], 0..1; NaN where the outputs do not vary."""
        sums, own, cross = self._sums
        own = own - sums[:, :, None] * sums[:, None] / self._n
        cross = cross - sums[:, :, None] * sums[-1] / self._n
        norms = own.flatten(1).norm(dim=1)
        return (cross.flatten(1).square().sum(1) / (norms * norms[-1])).cpu().numpy()


@dataclass(frozen=True)
class Functional:
    """A functional of a line, what it needs, and whether it has a value at each point."""

    value: Callable[[Seen], Tensor]
    needs: str = "losses"
    per_point: bool = False


FUNCTIONALS = {
    "gauss_length": Functional(gauss_length, "outputs"),
    "gauss_length_jvp": Functional(gauss_length_jvp, "tangents"),
    "path_length": Functional(path_length, "outputs"),
    "monotone_examples": Functional(monotone_examples),
    "flips": Functional(flips, "predictions", per_point=True),
    "agreement": Functional(agreement, "predictions", per_point=True),
}
CKA = "cka"
SLOPE = "loss_slope"
NAMES = (*FUNCTIONALS, CKA, SLOPE)


class Functionals:
    """Those asked for, over the points of a line in any order.

    Args:
        names: metrics, of which those that are functionals are taken.
        alphas: [P], or None where the points are no line.

    Raises:
        ValueError: functionals, and no line.
    """

    def __init__(self, names: Sequence[str], alphas: NDArray[np.float64] | None) -> None:
        self._asked = {n: FUNCTIONALS[n] for n in names if n in FUNCTIONALS}
        self._cka = Cka() if CKA in names else None
        given = [n for n in names if n in NAMES]
        if given and alphas is None:
            raise ValueError(f"metric {given[0]!r} is one of lines and curves; the points here are neither")
        needs = {f.needs for f in self._asked.values()}
        self.wants_outputs = self._cka is not None or "outputs" in needs
        self.wants_one_tensor = self.wants_outputs or "tangents" in needs
        self.wants_predictions = next((n for n, f in self._asked.items() if f.needs == "predictions"), None)
        self.wants_slopes = SLOPE in names or "tangents" in needs
        sorting = np.argsort([] if alphas is None else alphas, kind="stable")
        self._ascending, self._back = torch.from_numpy(sorting), torch.from_numpy(np.argsort(sorting))
        ascending = torch.from_numpy(np.asarray([] if alphas is None else alphas)[sorting])
        self._inside = (ascending >= 0) & (ascending <= 1)

    def of_line(self, name: str) -> bool:
        """Whether the metric is one value of the whole line."""
        return name in self._asked and not self._asked[name].per_point

    def rows(
        self, losses: Tensor, outputs: Tensor | None, predictions: Tensor | None, tangents: Tensor | None
    ) -> dict[str, Tensor]:
        """What they make of a batch at all points, `Seen` in the points' own order: name -> rows of one or all."""
        if not self._asked and self._cka is None:
            return {}
        ascending, back = self._ascending.to(losses.device), self._back.to(losses.device)
        kept = [None if t is None else t[ascending] for t in (outputs, predictions, tangents)]
        seen = Seen(losses[ascending], self._inside.to(losses.device), *kept)
        if self._cka is not None:
            self._cka.add(seen)
        found = {name: functional.value(seen) for name, functional in self._asked.items()}
        return {name: rows if self.of_line(name) else rows[back] for name, rows in found.items()}

    def cka(self) -> NDArray[np.float64] | None:
        """The similarities [P], in the points' own order; None where it was not asked for."""
        return None if self._cka is None else self._cka.value()[self._back.numpy()]
