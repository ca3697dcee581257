"""Small networks as state dicts, and the sum over anchors that coefficients stand for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mli_fast.paths import Path

State = dict[str, Tensor]

numbers = st.floats(-3, 3, allow_subnormal=False)
alphas = st.lists(st.floats(-2, 3, allow_subnormal=False), min_size=1, max_size=9)
counts = st.integers(2, 6)


def network(seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> State:
    """A convolution with a batch norm and a matrix."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    return {
        "conv.weight": draw(4, 3, 2, 2),
        "conv.bias": draw(4),
        "norm.weight": draw(4),
        "norm.running_mean": draw(4),
        "norm.running_var": draw(4).abs(),
        "norm.num_batches_tracked": torch.tensor(7 + seed),
        "head.weight": draw(5, 4),
    }


COUNTED = ("conv.weight", "conv.bias", "norm.weight", "head.weight")


def flat(state: State) -> NDArray[np.float64]:
    """The entries that count for distances, end to end in float64."""
    return np.concatenate([state[name].double().numpy().ravel() for name in COUNTED])


def at(path: Path, point: object) -> NDArray[np.float64]:
    """One point as the sum over the path's anchors, which are state dicts."""
    row = path.coefficients(path.points([point]))[0]
    return sum(c * flat(anchor) for c, anchor in zip(row, path.anchors, strict=True))  # type: ignore[arg-type]


def combined(weights: dict[int, float], states: dict[int, State]) -> State:
    """A sum of networks."""
    first = next(iter(states.values()))
    return {n: sum(w * states[k][n] for k, w in weights.items()) for n in first}  # type: ignore[misc]
