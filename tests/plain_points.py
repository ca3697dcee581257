"""Points of any path: three networks of an architecture, and the plain loop over points in fp64 or fp32."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mli_fast.paths import Path
from tests.models import ARCHITECTURES, endpoints, randomise
from tests.reference import Criterion, State, call, cast, score, to_dtype


def bend(name: str, seed: int = 3) -> dict[str, Tensor]:
    """A third network of the architecture, from a seed that is neither end's."""
    model = ARCHITECTURES[name].model(seed)
    randomise(model, seed)
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def three(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Start, bend and end."""
    start, end = endpoints(name)
    return start, bend(name), end


def spoilt(state: State) -> dict[str, Tensor]:
    """NaN in every floating-point entry."""
    return {key: value * float("nan") if value.is_floating_point() else value for key, value in state.items()}


def anchors_of(path: Path) -> list[State]:
    """The anchors of a path as state dicts."""
    return [a.state_dict() if isinstance(a, torch.nn.Module) else a for a in path.anchors]  # type: ignore[misc]


def blended(anchors: Sequence[State], row: Iterable[float], dtype: torch.dtype) -> dict[str, Tensor]:
    """`sum_r c_r anchor_r` computed in `dtype`, as a user would; of integers an anchor's own, else the last one's."""
    used = [(float(c), anchor) for c, anchor in zip(row, anchors, strict=True) if c != 0]
    point = {}
    for name, last in anchors[-1].items():
        moving, kept = last.is_floating_point() or last.is_complex(), last.dtype if last.is_complex() else dtype
        own = used[0][1][name] if len(used) == 1 and used[0][0] == 1 else last
        point[name] = sum(c * a[name].to(kept) for c, a in used) if moving else own.clone()  # type: ignore[misc]
    return point


@torch.no_grad()
def losses_in(
    dtype: torch.dtype, model: torch.nn.Module, states: Iterable[State], batches: Sequence[Any], criterion: Criterion
) -> np.ndarray:
    """Mean loss at each state by PyTorch's own arithmetic in `dtype`, [P]."""
    network, found = cast(copy.deepcopy(model).eval(), dtype), []
    for state in states:
        network.load_state_dict(state)
        rows = [score(criterion, *call(network, to_dtype(batch, dtype)))[:2] for batch in batches]
        losses, weights = (torch.cat(column).double().numpy() for column in zip(*rows, strict=True))
        found.append(np.average(losses, weights=weights))
    return np.array(found)
