"""Training by a recipe, with the states on the way."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mli_fast.demo.training import Data, one_thread

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        optimiser: "sgd" (momentum 0.9) or "adam".
        rate: the learning rate at the start; it falls to zero as a cosine.
        steps: how many, whatever the number of images.
        batch: images per step.
        decay: weight decay.
        seed: of the order of the images.
    """

    optimiser: str = "sgd"
    rate: float = 0.05
    steps: int = 800
    batch: int = 64
    decay: float = 0.0
    seed: int = 0


def train(model: nn.Module, data: Data, recipe: Recipe, every: int | None = None) -> list[State]:
    """Trains a copy of a network with cross entropy, on one thread.

    Args:
        model: gives logits of images; where training starts from.
        data: images and labels.
        recipe: how.
        every: steps between two states that are kept; None: only the ends are.

    Returns:
        The initialisation, what was kept on the way, and the end.
    """
    model = copy.deepcopy(model).train()
    optimiser = _optimiser(model, recipe)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    states = [snapshot(model)]
    with one_thread():
        for step, (images, labels) in enumerate(_batches(data, recipe)):
            if every is not None and step > 0 and step % every == 0:
                states.append(snapshot(model))
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
            rate.step()
    return [*states, snapshot(model)]


def _batches(data: Data, recipe: Recipe) -> Iterator[Data]:
    """As many as there are steps, the images in a new order in every epoch."""
    images, labels = data
    generator = torch.Generator().manual_seed(recipe.seed)
    orders = (torch.randperm(len(labels), generator=generator).split(recipe.batch) for _ in itertools.count())
    for rows in itertools.islice(itertools.chain.from_iterable(orders), recipe.steps):
        yield images[rows], labels[rows]


def snapshot(model: nn.Module) -> State:
    """A copy of the state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay)
    if recipe.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    raise ValueError(f"optimiser {recipe.optimiser!r} is not one of 'sgd', 'adam'")
