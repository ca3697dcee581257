"""A result in a few readable lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mli_fast.measures import Monotonicity
from mli_fast.result.runs import ends

if TYPE_CHECKING:
    from mli_fast.result.sweep_result import SweepResult

_LABELS_SHOWN = 6


def describe(verdict: Monotonicity) -> str:
    """A monotonicity verdict in a few words.

    Examples:
        >>> describe(Monotonicity(0.25, False, 0.5, 1.0, 0.0))
        'no, min Delta 0.25 (from alpha 0.5 to 1)'
    """
    if np.isnan(verdict.min_delta):
        return "unknown, the curve holds NaN"
    where = ""
    if verdict.min_delta > 0.0:
        where = f" (from alpha {verdict.start_alpha:.4g} to {verdict.end_alpha:.4g})"
    return f"{'yes' if verdict.monotone else 'no'}, min Delta {verdict.min_delta:.4g}{where}"


def summary(result: SweepResult) -> str:
    """What ``repr`` says of a result: which points, and the main values on them."""
    lines = _OF_LAYOUT.get(result.dims, _of_curve)(result) if result.size else []
    return "\n".join([f"{type(result).__name__}: {_points(result)}", *(f"  {line}" for line in lines)])


def _points(result: SweepResult) -> str:
    """How many points there are, where, and on how many examples."""
    sizes = [result.dataset.sizes[dim] for dim in result.dims]
    if "alpha" in result.dims:
        text = " x ".join(f"{size} {dim}s" for size, dim in zip(sizes, result.dims, strict=True))
        text += _span(result.alphas)
    else:
        spans = [f"{name}{_span(result[name])}" for name in result.axes]
        text = ", ".join([f"{' x '.join(map(str, sizes))} points", *spans])
    text += f", {result.count:,} examples" if "count" in result else ""
    policy = result.provenance.get("batch_norm")
    return text + (f", batch_norm={policy!r}" if policy else "")


def _span(positions: NDArray[np.float64]) -> str:
    return f" from {positions.min() + 0.0:.6g} to {positions.max() + 0.0:.6g}" if positions.size else ""


def _of_curve(result: SweepResult) -> Iterator[str]:
    positions = result[result.dims[0]]
    first, last = np.argsort(positions, kind="stable")[[0, -1]]
    for name, values in _values(result):
        yield f"{name:<8}  {values[first]:.6g} -> {values[last]:.6g}{_gaps(values)}"
    if "loss" in result and result.dims == ("alpha",) and ends(positions) is not None:
        yield f"monotone  {describe(result.monotonicity())}"


def _of_lines(result: SweepResult) -> Iterator[str]:
    dim = result.dims[0]
    labels = [str(label) for label in result[dim].tolist()]
    more = len(labels) - _LABELS_SHOWN
    yield f"{dim + 's':<14}  {', '.join(labels[:_LABELS_SHOWN])}{f' and {more} more' if more > 0 else ''}"
    table = result.table()
    for name, values in _values(result):
        if f"final_{name}" in table:
            yield f"{'final ' + name:<14}  {_range(table[f'final_{name}'].to_numpy())}{_gaps(values)}"
    if "monotone" in table:
        yield f"{'monotone':<14}  {np.count_nonzero(table['monotone'])} of {len(table)}"


def _of_points(result: SweepResult) -> Iterator[str]:
    frame = result.to_dataframe()
    for name, values in _values(result):
        text = _range(values)
        finite = np.where(np.isfinite(values), values, np.nan).ravel()
        if not np.isnan(finite).all():
            word, best = ("least", np.nanargmin(finite)) if name == "loss" else ("largest", np.nanargmax(finite))
            place = ", ".join(f"{axis} {frame[axis][best] + 0.0:.6g}" for axis in result.axes)
            text += f", {word} at {place}"
        yield f"{name:<8}  {text}{_gaps(values)}"


_OF_LAYOUT = {
    ("run", "alpha"): _of_lines,
    ("group", "alpha"): _of_lines,
    ("x", "y"): _of_points,
    ("point",): _of_points,
}


def _values(result: SweepResult) -> Iterator[tuple[str, NDArray[np.float64]]]:
    return ((name, np.asarray(result[name], dtype=np.float64)) for name in ("loss", "accuracy") if name in result)


def _range(values: NDArray[np.float64]) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "nowhere finite"


def _gaps(values: NDArray[np.float64]) -> str:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    return f" ({bad} of {values.size} not finite)" if bad else ""
