"""What is measured: a network, real or random data, anchors and points per row."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import Cnn, Mlp, ResNet, Vit
from benchmarks.points import Coefficients, Data, Layerwise, Line, Points, State, Surface, along


class Problem(NamedTuple):
    """Losses to be found, in the terms every peer understands."""

    model_factory: Callable[[], nn.Module]
    anchors: tuple[State, ...]  # R
    coefficients: Coefficients  # of each entry of the state dict, [P, R]; rows sum to 1
    X: Tensor  # [N, ...]
    y: Tensor  # [N]
    calibration: Data | None = None  # over which every point's batch norms are measured anew

    @classmethod
    def line(
        cls, model_factory: Callable[[], nn.Module], theta_0: State, theta_T: State, X: Tensor, y: Tensor, alphas: Any
    ) -> Problem:
        """The points (1 - alpha) theta_0 + alpha theta_T."""
        coefficients = dict.fromkeys(theta_0, along(np.asarray(alphas, np.float64)))
        return cls(model_factory, (theta_0, theta_T), coefficients, X, y)

    @property
    def count(self) -> int:
        """Of the points."""
        return len(next(iter(self.coefficients.values())))

    def take(self, *, examples: int | None = None, points: Any = slice(None)) -> Problem:
        """The same problem on its first `examples`, at some of its points (a slice or indices)."""
        coefficients = {name: values[points] for name, values in self.coefficients.items()}
        return self._replace(X=self.X[:examples], y=self.y[:examples], coefficients=coefficients)

    def straight(self) -> np.ndarray | None:
        """The coefficients [P, R] that all entries share, None where some have their own."""
        first, *others = self.coefficients.values()
        return first if all(each is first or np.array_equal(each, first) for each in others) else None


def start_and_end(factory: Callable[[], nn.Module], X: Tensor, y: Tensor) -> tuple[State, ...]:
    """A network before and after a little training, from fixed seeds."""
    torch.manual_seed(0)
    model = factory()
    theta_0 = _snapshot(model)
    _train(model, X, y)
    return theta_0, _snapshot(model)


def three_ends(factory: Callable[[], nn.Module], X: Tensor, y: Tensor) -> tuple[State, ...]:
    """Three networks trained from one initialisation on the data in three orders; their variances stay positive."""
    ends = []
    for seed in (1, 2, 3):
        torch.manual_seed(0)
        model = factory()
        _train(model, X, y, steps=100, seed=seed)
        ends.append(_snapshot(model))
    return tuple(ends)


@dataclass(frozen=True)
class Workload:
    """One row of the table: how its problem is made, and the batch sizes its peers may choose from."""

    name: str
    title: str
    factory: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor, str]]  # count -> X, y, what they are
    examples: int
    points: Points
    batch_sizes: tuple[int, ...]
    target_peer: float | None = None  # the ratio asked for: best peer / ours
    target_plain: float | None = None  # plain loop / ours
    attention: bool = False  # peers choose between PyTorch's attentions
    anchors: Callable[[Callable[[], nn.Module], Tensor, Tensor], tuple[State, ...]] = start_and_end
    calibration: int = 0  # how many of the examples every point's batch norms are measured over; 0: not at all
    sampled: int | None = None  # peers are timed at that many of the points, and the time scaled; ours at all of them

    def build(self) -> tuple[Problem, str]:
        """The problem and a line about its data."""
        X, y, about = self.data(self.examples)
        anchors = self.anchors(self.factory, X, y)
        calibration = (X[: self.calibration], y[: self.calibration]) if self.calibration else None
        return Problem(self.factory, anchors, self.points.coefficients(anchors), X, y, calibration), about

    def sample(self) -> np.ndarray:
        """The indices of the points that peers are timed at, from everywhere."""
        count = self.points.count
        return np.linspace(0, count - 1, min(count, self.sampled or count)).astype(int)

    def shrunk(self, examples: int, points: Points) -> Workload:
        """The same row on less data, for a smoke run."""
        sizes = tuple(size for size in self.batch_sizes if size <= examples)[:2] or (examples,)
        smaller = replace(self, title=f"{self.title}, cut to {examples} x {points.count}", examples=examples)
        smaller = replace(smaller, points=points, batch_sizes=sizes, calibration=min(self.calibration, examples))
        return replace(smaller, target_peer=None, target_plain=None)


def _snapshot(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _train(
    model: nn.Module, X: Tensor, y: Tensor, steps: int = 20, batch: int = 64, rate: float = 0.05, seed: int = 1
) -> None:
    """A few SGD steps: enough for a curve that falls, not a study."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
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


def digits(count: int, shape: tuple[int, ...] = (64,)) -> tuple[Tensor, Tensor, str]:
    """scikit-learn's handwritten digits, X [count, *shape] in 0..1."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return (
        torch.tensor(X[:count].reshape(-1, *shape) / 16, dtype=torch.float32),
        torch.tensor(y[:count]),
        "scikit-learn digits",
    )


def random_data(count: int, shape: tuple[int, ...], classes: int = 10) -> tuple[Tensor, Tensor, str]:
    """Normal inputs of a shape and uniform labels."""
    return _random(count, shape, classes, f"random {'x'.join(map(str, shape))}")


def digits_cnn() -> nn.Module:
    """The demo's network for digits [N, 1, 8, 8]."""
    from mli_fast.demo.networks import CNN  # here, as it brings the whole demo along

    return CNN()


IMAGE = (3, 32, 32)

MAIN = (
    Workload(
        "mlp-mnist",
        "MLP 784-512-512-10, MNIST 8,192 x 50",
        partial(Mlp, 784, 512, 512, 10),
        mnist,
        8192,
        Line(50),
        (256, 512, 1024, 2048, 8192),
        2.5,
        8.0,
        sampled=20,
    ),
    Workload(
        "mlp-digits",
        "MLP 64-256-256-10, digits 1,797 x 50",
        partial(Mlp, 64, 256, 256, 10),
        digits,
        1797,
        Line(50),
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
        Line(20),
        (32, 64, 128, 256, 512),
        1.5,
        1.5,
        sampled=8,
    ),
    Workload(
        "resnet20",
        "ResNet-20 (CIFAR), 512 x 20",
        ResNet,
        partial(random_data, shape=IMAGE),
        512,
        Line(20),
        (32, 64, 128, 256, 512),
        1.3,
        1.3,
        sampled=8,
    ),
    Workload(
        "vit",
        "ViT d=128, 4 layers, 64 tokens, 256 x 20",
        Vit,
        partial(random_data, shape=IMAGE),
        256,
        Line(20),
        (16, 32, 64, 128, 256),
        1.2,
        1.5,
        attention=True,
        sampled=8,
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
        Line(31),
        (256, 601, 1001, 3001),
    ),
    Workload(
        "cnn-ragged",
        "CNN 3x24x24, 16/48 channels, random 500 x 11",
        partial(Cnn, 3, 16, 48, 10),
        partial(random_data, shape=(3, 24, 24)),
        500,
        Line(11),
        (50, 125, 250, 500),
    ),
    Workload(
        "vit-ragged",
        "Transformer d=96, 17 tokens, random 200 x 13",
        partial(Vit, dim=96, layers=3, heads=3, patch=8, class_token=True),
        partial(random_data, shape=IMAGE),
        200,
        Line(13),
        (25, 50, 100, 200),
        attention=True,
    ),
)

DIGITS = partial(digits, shape=(1, 8, 8))
GROUPS = {
    "conv 1": "0.*",
    "norm 1": "1.*",
    "conv 2": "3.*",
    "norm 2": "4.*",
    "conv 3": "6.*",
    "norm 3": "7.*",
    "last weight": "11.weight",
    "last bias": "11.bias",
}

# What the papers do beside a line, on the demo's CNN.
SCIENCE = (
    Workload(
        "surface-cnn-digits",
        "Surface 25 x 25, CNN with BN, digits 1,797",
        digits_cnn,
        DIGITS,
        1797,
        Surface(25),
        (64, 128, 300, 599, 1797),
        2.0,
        anchors=three_ends,
        sampled=75,
    ),
    Workload(
        "layerwise-cnn-digits",
        "Layer-wise 8 x 25, CNN with BN, digits 1,797",
        digits_cnn,
        DIGITS,
        1797,
        Layerwise(GROUPS, 25),
        (64, 128, 300, 599, 1797),
        2.0,
        sampled=40,
    ),
    Workload(
        "recalibrated-cnn-digits",
        "BN recalibrated on 1,437, CNN, digits 1,797 x 20",
        digits_cnn,
        DIGITS,
        1797,
        Line(20),
        (64, 128, 300, 599, 1797),
        2.0,
        calibration=1437,
    ),
)

QUICK = (
    MAIN[1].shrunk(600, Line(10)),
    MAIN[2].shrunk(64, Line(5)),
    SCIENCE[0].shrunk(128, Surface(3, margin=0.05)),
    SCIENCE[2].shrunk(128, Line(3)),
)

SETS = {"main": MAIN + SCIENCE, "other": OTHER, "quick": QUICK}
