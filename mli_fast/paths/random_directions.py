"""Random directions around a network, scaled to its weights (Li et al. 2018, arXiv:1712.09913)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mli_fast.checkpoints import Source, load_state

from .affine import Displacements
from .geometry import State, counted

NORMALISATIONS = ("filter", "layer", None)
OWN_SEEDS = 0x9E3779B9  # added to the seed: a network initialised with the same one must not be its own direction


class RandomDirections(Displacements):
    """theta + sum_i x_i d_i; made by `random_directions`. The anchors are theta and every theta + d_i."""

    kind = "random_directions"

    def __init__(self, theta: Source, moved: tuple[Source, ...]) -> None:
        count = len(moved)
        few = {1: ("alpha",), 2: ("x", "y")}
        self.axes = few.get(count, tuple(f"x{i}" for i in range(1, count + 1)))
        self.anchors = (theta, *moved)
        self.names = ("theta", *(f"direction_{i}" for i in range(1, count + 1)))
        self.marks = (("theta", (0.0,) * count),)

    def span(self, axis: str) -> tuple[float, float]:
        """From -1 to 1 on every axis."""
        self._index(axis)
        return -1.0, 1.0


def random_directions(
    theta: Source, count: int = 2, *, normalize: str | None = "filter", seed: int = 0, zero_vectors: bool = True
) -> RandomDirections:
    """Gaussian random directions around a network.

    The numbers depend on the seed, the shapes and their order alone: not on the device, the dtype, the global random
    state, the other options, or, for the first directions, on how many there are. Tied values move together.

    Args:
        theta: a state dict, a module, or the path of a checkpoint; the origin.
        count: how many directions: one has the axis alpha, two x and y, more x1, x2, ...
        normalize: "filter": each slice of an entry's first dimension (a filter of a convolution, a row of a matrix) has
            the norm of theta's slice; "layer": each entry has the norm of theta's entry; None: every number is drawn
            from the standard normal distribution.
        seed: of the generator.
        zero_vectors: entries of at most one dimension (biases and norm parameters) stay theta's. If False, they are
            normalised as all others are; a slice of a vector is one number, so that with "filter" it is theta's times
            1 or -1.

    Returns:
        A path with one axis per direction, from -1 to 1. Buffers and integer entries are theta's everywhere.

    Raises:
        ValueError: count below 1, an unknown normalize, or no entry moves.
        TypeError: count is not an integer, or theta is of a wrong type.

    Example:
        >>> theta = {"weight": torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "bias": torch.ones(2)}
        >>> path = random_directions(theta, count=1)
        >>> moved = path.anchors[1]
        >>> (moved["weight"] - theta["weight"]).norm(dim=1).round(decimals=4)
        tensor([5., 2.])
        >>> moved["bias"]
        tensor([1., 1.])
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count: expected an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"count={count}: at least one direction is needed")
    if normalize not in NORMALISATIONS:
        raise ValueError(f"normalize={normalize!r} is not one of {', '.join(map(repr, NORMALISATIONS))}")
    state = load_state(theta, "theta")
    names = counted(state)
    still = {name for name in names if zero_vectors and state[name].ndim <= 1}
    if len(still) == len(names):
        raise ValueError(
            f"theta has no entry to move: of {len(state)} entries {len(names)} are floating-point parameters, "
            f"{len(still)} of them biases and norm parameters, which zero_vectors=True keeps"
        )
    generator = torch.Generator().manual_seed(OWN_SEEDS + seed)
    path = RandomDirections(theta, tuple(_moved(state, names, still, normalize, generator) for _ in range(count)))
    path.remember("theta", theta, state)
    return path


def _moved(
    state: State,
    names: Mapping[str, tuple[str, ...]],
    still: set[str],
    normalize: str | None,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """theta + d, every number of d drawn anew."""
    moved = dict(state)
    for name, tied in names.items():
        # drawn even if it stays 0
        drawn = torch.randn(state[name].shape, generator=generator, dtype=torch.float64, device="cpu")
        if name not in still:
            value = state[name].to(torch.float64)
            direction = _normalised(drawn.to(value.device), value, normalize)
            moved.update(dict.fromkeys(tied, (value + direction).to(state[name].dtype)))
    return moved


def _normalised(direction: Tensor, weight: Tensor, normalize: str | None) -> Tensor:
    """The direction scaled to the weight's norms."""
    if normalize is None:
        return direction
    rows = len(weight) if normalize == "filter" and weight.ndim else 1
    wanted = torch.linalg.vector_norm(weight.reshape(rows, -1), dim=1, keepdim=True)
    drawn = direction.reshape(rows, -1)
    return (drawn * (wanted / torch.linalg.vector_norm(drawn, dim=1, keepdim=True))).reshape(weight.shape)
