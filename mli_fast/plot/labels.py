"""What pictures say: names of axes, anchors and labels, and how many points are missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mli_fast.result import SweepResult

_CRITERIA = {
    "cross_entropy": "mean cross-entropy",
    "mse": "mean squared error",
    "nll": "mean negative log-likelihood",
    "bce_with_logits": "mean binary cross-entropy",
    "causal_lm": "mean cross-entropy per token",
}
_ENDPOINTS = [["theta_0", 0.0], ["theta_T", 1.0]]


def variable_label(result: SweepResult, variable: str) -> str:
    """Name of a variable, of the loss with its criterion."""
    if variable != "loss":
        return variable.replace("_", " ")
    criterion = result.provenance.get("criterion")
    kind = _CRITERIA.get(criterion) if isinstance(criterion, str) else None
    return f"loss ({kind})" if kind else "loss"


def axis_label(result: SweepResult, axis: str) -> str:
    """Name of an axis; the coordinates of a plane through anchors are distances."""
    if axis == "alpha":
        return r"$\alpha$"
    return f"${axis}$ (parameter distance)" if is_metric(result) else f"${axis}$"


def is_metric(result: SweepResult) -> bool:
    """Whether the coordinates are distances between parameters."""
    return result.provenance.get("path") == "plane"


def marks_of(result: SweepResult, dims: int) -> list[tuple[str, NDArray[np.float64]]]:
    """Where the anchors lie, as the provenance says: their names and coordinates [dims]; by default those of a line."""
    marks = result.provenance.get("marks", _ENDPOINTS if "alpha" in result.dims else [])
    placed = [(as_text(name), np.atleast_1d(np.asarray(place, dtype=np.float64))) for name, place in marks]
    return [(name, place) for name, place in placed if place.shape == (dims,)]


def as_text(label: object) -> str:
    """A label as matplotlib is to draw it: theta with its index, all else letter by letter."""
    theta = re.fullmatch(r"theta(?:_([^\W_]+))?", str(label))
    if theta is None:
        return str(label).replace("$", r"\$")
    index = theta[1] or ""
    return rf"$\theta_{{{index}}}$" if len(index) > 1 else rf"$\theta{index and '_' + index}$"


def gaps_in(values: NDArray[np.float64]) -> str:
    """How many values are not finite, "" if all are."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    return f"{bad} of {values.size} not finite" if bad else ""
