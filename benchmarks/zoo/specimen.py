"""One model of the zoo: how it is made, what it is fed, how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Any, Tensor]  # inputs (a tensor, a tuple or keyword arguments), targets


@dataclass
class Specimen:
    """A model with random weights, batches for it, and what is scored."""

    model: nn.Module
    batches: list[Batch]
    criterion: str = "mse"


@dataclass(frozen=True)
class Entry:
    """A line of the zoo; `make` is called in a process of its own."""

    group: str
    name: str
    make: Callable[[], Specimen]


class NoSpecimen(Exception):
    """The entry cannot be built, or does not run in plain PyTorch: the next one takes its place."""


def called(model: nn.Module, inputs: Any) -> Any:
    """The model on inputs of any layout."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def forward(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(all floating outputs that have the batch in front, side by side, [B, N]; targets [B, N])."""
    inputs, targets = batch
    return flat(called(model, inputs), len(targets)), targets


def flat(outputs: Any, size: int) -> Tensor:
    """All floating tensors of `size` rows in nested outputs as one, [size, N].

    Raises:
        NoSpecimen: there is none.
    """
    found: list[Tensor] = []

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.ndim and len(value) == size and value.numel():
                found.append(value.reshape(size, -1))
        elif isinstance(value, Mapping):
            for item in value.values():
                look(item)
        elif isinstance(value, (tuple, list)):
            for item in value:
                look(item)

    look(outputs)
    if not found:
        raise NoSpecimen(f"no floating output with {size} rows in {type(outputs).__name__}")
    return torch.cat(found, 1) if len(found) > 1 else found[0]


def against_noise(model: nn.Module, inputs: list[Any], sizes: list[int]) -> Specimen:
    """The model's outputs against random targets: a loss that every output moves, normalised ones too."""
    batches = []
    with torch.no_grad():
        for each, size in zip(inputs, sizes, strict=True):
            batches.append((each, torch.randn(flat(called(model.eval(), each), size).shape)))
    return Specimen(model, batches)


def perturbed(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """The model's values with noise on all parameters and running statistics, so that nothing stays at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state, seen = {}, {}
    for name, value in model.state_dict().items():
        key = value.untyped_storage()._cdata, value.storage_offset(), value.shape
        if key in seen:  # tied: one value under both names
            state[name] = state[seen[key]]
            continue
        seen[key] = name
        state[name] = value.detach().clone()
        leaf = name.rsplit(".", 1)[-1]
        if not value.is_floating_point():
            continue
        if leaf == "running_var":
            state[name] += 0.5 * torch.rand(value.shape, generator=generator, dtype=torch.float32)
        elif leaf == "running_mean" or name in parameters:
            spread = float(value.float().std()) if value.numel() > 1 else 0.0
            size = 0.5 * spread if spread > 1e-3 else 0.1
            state[name] += (size * torch.randn(value.shape, generator=generator)).to(value.dtype)
    return state
