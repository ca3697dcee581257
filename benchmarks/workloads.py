"""What is measured: a network, real or random data, two endpoints and a number of alphas per row."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Cnn, Mlp, ResNet, Vit


class Problem(NamedTuple):
    """One sweep to be done, in the terms every peer understands."""

    model_factory: Callable[[], nn.Module]
    theta_0: dict[str, Tensor]
    theta_T: dict[str, Tensor]
    X: Tensor  # [N, ...]
    y: Tensor  # [N]
    alphas: np.ndarray  # [A]

    def take(self, *, examples: int | None = None, alphas: np.ndarray | None = None) -> Problem:
        """The same problem on its first `examples`, at other alphas."""
        chosen = self.alphas if alphas is None else alphas
        return self._replace(X=self.X[:examples], y=self.y[:examples], alphas=chosen)


@dataclass(frozen=True)
class Workload:
    """One row of the table: how its problem is made, and the batch sizes its peers may choose from."""

    name: str
    title: str
    factory: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor, str]]  # count -> X, y, what they are
    examples: int
    points: int
    batch_sizes: tuple[int, ...]
    target_peer: float | None = None  # the ratio asked for: best peer / ours
    target_plain: float | None = None  # plain loop / ours
    attention: bool = False  # peers choose between PyTorch's attentions

    def build(self) -> tuple[Problem, str]:
        """The problem, with endpoints from fixed seeds, and a line about its data."""
        X, y, about = self.data(self.examples)
        torch.manual_seed(0)
        model = self.factory()
        theta_0 = _snapshot(model)
        _train(model, X, y)
        return Problem(self.factory, theta_0, _snapshot(model), X, y, np.linspace(0.0, 1.0, self.points)), about

    def shrunk(self, examples: int, points: int) -> Workload:
        """The same row on less data, for a smoke run."""
        sizes = tuple(size for size in self.batch_sizes if size <= examples)[:2] or (examples,)
        title = f"{self.title}, cut to {examples} x {points}"
        smaller = replace(self, title=title, examples=examples, points=points, batch_sizes=sizes)
        return replace(smaller, target_peer=None, target_plain=None)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _train(model: nn.Module, X: Tensor, y: Tensor, steps: int = 20, batch: int = 64, rate: float = 0.05) -> None:
    """A few SGD steps: enough for a curve that falls, not a study."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        rows = order[(step * batch) % max(1, len(X) - batch) :][:batch]
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()


def _mnist_folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    return Path(os.environ.get("MLI_FAST_MNIST", default))


def _idx(path: Path, offset: int) -> np.ndarray:
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=offset)


def _random(count: int, shape: tuple[int, ...], classes: int, about: str) -> tuple[Tensor, Tensor, str]:
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(count, *shape, generator=generator)
    return X, torch.randint(0, classes, (count,), generator=generator), about


def mnist(count: int, shape: tuple[int, ...] = (784,)) -> tuple[Tensor, Tensor, str]:
    """MNIST test images [count, *shape], normalised; random ones of that size where the files are missing."""
    folder = _mnist_folder()
    try:
        pixels = _idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, *shape)[:count]
        labels = _idx(folder / "t10k-labels-idx1-ubyte.gz", 8)[:count]
    except FileNotFoundError:
        return _random(count, shape, 10, "random, MNIST-sized (MNIST not found; MLI_FAST_MNIST names its folder)")
    X = (torch.from_numpy(pixels.astype(np.float32)) / 255 - 0.1307) / 0.3081
    return X, torch.from_numpy(labels.astype(np.int64)), "MNIST test images"


def digits(count: int) -> tuple[Tensor, Tensor, str]:
    """scikit-learn's handwritten digits, X [count, 64] in 0..1."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:count] / 16, dtype=torch.float32), torch.tensor(y[:count]), "scikit-learn digits"


def random_data(count: int, shape: tuple[int, ...], classes: int = 10) -> tuple[Tensor, Tensor, str]:
    """Normal inputs of a shape and uniform labels."""
    return _random(count, shape, classes, f"random {'x'.join(map(str, shape))}")


IMAGE = (3, 32, 32)

MAIN = (
    Workload(
        "mlp-mnist",
        "MLP 784-512-512-10, MNIST 8,192 x 50",
        partial(Mlp, 784, 512, 512, 10),
        mnist,
        8192,
        50,
        (256, 512, 1024, 2048, 8192),
        2.5,
        8.0,
    ),
    Workload(
        "mlp-digits",
        "MLP 64-256-256-10, digits 1,797 x 50",
        partial(Mlp, 64, 256, 256, 10),
        digits,
        1797,
        50,
        (128, 300, 600, 899, 1797),
        1.7,
        15.0,
    ),
    Workload(
        "cnn-mnist",
        "CNN conv32-conv64/2-conv64 + BN + residual, 28x28, 1,024 x 20",
        Cnn,
        partial(mnist, shape=(1, 28, 28)),
        1024,
        20,
        (32, 64, 128, 256, 512),
        1.5,
        1.5,
    ),
    Workload(
        "resnet20",
        "ResNet-20 (CIFAR), 512 x 20",
        ResNet,
        partial(random_data, shape=IMAGE),
        512,
        20,
        (32, 64, 128, 256, 512),
        1.3,
        1.3,
    ),
    Workload(
        "vit",
        "ViT d=128, 4 layers, 64 tokens, 256 x 20",
        Vit,
        partial(random_data, shape=IMAGE),
        256,
        20,
        (16, 32, 64, 128, 256),
        1.2,
        1.5,
        attention=True,
    ),
)

# Shapes that no kernel was tuned on, so that a choice made on the rows above shows if it fits only them.
OTHER = (
    Workload(
        "mlp-ragged",
        "MLP 100-300-700-7, random 3,001 x 31",
        partial(Mlp, 100, 300, 700, 7),
        partial(random_data, shape=(100,), classes=7),
        3001,
        31,
        (256, 601, 1001, 3001),
    ),
    Workload(
        "cnn-ragged",
        "CNN 3x24x24, 16/48 channels, random 500 x 11",
        partial(Cnn, 3, 16, 48, 10),
        partial(random_data, shape=(3, 24, 24)),
        500,
        11,
        (50, 125, 250, 500),
    ),
    Workload(
        "vit-ragged",
        "Transformer d=96, 17 tokens, random 200 x 13",
        partial(Vit, dim=96, layers=3, heads=3, patch=8, class_token=True),
        partial(random_data, shape=IMAGE),
        200,
        13,
        (25, 50, 100, 200),
        attention=True,
    ),
)

QUICK = (MAIN[1].shrunk(600, 10), MAIN[2].shrunk(64, 5))

SETS = {"main": MAIN, "other": OTHER, "quick": QUICK}
