"""Scikit-learn's handwritten digits, and the training of the demo's networks on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]  # images float32 [N, 1, 8, 8] in 0..1, labels int64 [N]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        optimiser: "sgd" (Nesterov momentum 0.9) or "adamw".
        rate: the highest learning rate; it rises over the first tenth of the steps and falls to zero as a cosine.
        epochs: passes over the training images.
        decay: weight decay.
    """

    optimiser: str
    rate: float
    epochs: int
    decay: float


RECIPES: dict[str, Recipe] = {
    "mlp": Recipe("sgd", rate=0.1, epochs=40, decay=1e-4),
    "cnn": Recipe("sgd", rate=0.05, epochs=15, decay=5e-4),
    "vit": Recipe("adamw", rate=3e-3, epochs=25, decay=0.05),
}
BATCH = 64
TEST_SHARE = 0.25


def digits() -> dict[str, Data]:
    """Gives the 1,797 digits bundled with scikit-learn, cut the same way every time.

    Returns:
        "train" (1,347 images) and "test" (450), each (images [N, 1, 8, 8] in 0..1, labels [N]); every digit has the
        same share in both.

    Raises:
        RuntimeError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise RuntimeError("the demo's digits come with scikit-learn: pip install 'mli-fast[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)  # grey levels 0..16
    parts = train_test_split(pixels / 16.0, labels, test_size=TEST_SHARE, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in parts)
    return {
        "train": (x_train.float().view(-1, 1, 8, 8), y_train.long()),
        "test": (x_test.float().view(-1, 1, 8, 8), y_test.long()),
    }


def train(model: nn.Module, data: Data, recipe: Recipe, seed: int = 0) -> None:
    """Trains a network in place with cross entropy and leaves it in eval mode.

    Args:
        model: takes images [B, 1, 8, 8] and gives logits [B, 10].
        data: training images and labels.
        recipe: optimiser, rate, epochs.
        seed: fixes the order of the batches; the global random state is not used.
    """
    images, labels = data
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * -(-len(labels) // BATCH)
    optimiser = _optimiser(model, recipe)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.rate, total_steps=max(steps, 2), pct_start=0.1, cycle_momentum=False
    )
    model.train()
    with one_thread():
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(labels), generator=order).split(BATCH):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                rate.step()
    model.eval()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one thread: steps this small gain nothing from more, and a busy machine makes them wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
        )
    return torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
