"""The sweeps that are measured: network, data, precision, points, and what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.models import ResNet18, gpt2
from benchmarks.gpu.precision import DTYPES
from benchmarks.models import Mlp, ResNet
from benchmarks.workloads import mnist

State = dict[str, Tensor]


class Problem(NamedTuple):
    """One sweep, on the device and in the dtype it is computed in."""

    factory: Callable[[], nn.Module]
    start: State
    end: State
    X: Tensor  # [B, ...]; tokens [B, T] for a language model
    y: Tensor  # [B]; the tokens again
    alphas: np.ndarray  # [A]
    precision: str
    language: bool

    def counted(self) -> int:
        """How many losses the mean is over."""
        return len(self.y) * (self.y.shape[1] - 1) if self.language else len(self.y)

    def loss(self, model: Callable[[Tensor], Any], x: Tensor, y: Tensor) -> Tensor:
        """The sum of the cross entropies of a batch, from logits in float32 (float64)."""
        out = model(x)
        logits = out.logits[:, :-1] if self.language else out
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = y[:, 1:] if self.language else y
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")

    def at(self, alphas: np.ndarray) -> Problem:
        """The same at other alphas."""
        return self._replace(alphas=alphas)

    def cast(self, dtype: torch.dtype) -> Problem:
        """The same in another dtype."""

        def to(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        start, end = ({name: to(value) for name, value in theta.items()} for theta in (self.start, self.end))
        return self._replace(start=start, end=end, X=to(self.X))


@dataclass(frozen=True)
class Workload:
    """One row: sizes, and the batch sizes its peers may take."""

    name: str
    title: str
    factory: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor, str]]
    examples: int
    points: int
    precision: str
    goal: float  # the best peer's time over ours
    tolerance: float  # of the mean losses, relative to the reference's
    loop_batches: tuple[int, ...]
    vmap_batches: tuple[int, ...] = ()
    goal_plain: float | None = None  # the DataLoader loop's time over ours
    language: bool = False
    exact: bool = False  # the reference is in float64, else in float32

    def build(self, device: torch.device) -> tuple[Problem, str]:
        """The problem, its end trained for a few steps, and a line about its data."""
        X, y, about = self.data(self.examples)
        torch.manual_seed(0)
        model = self.factory().to(device)
        start = _values(model)
        X, y = X.to(device), y.to(device)
        alphas = np.linspace(0.0, 1.0, self.points)
        problem = Problem(self.factory, start, start, X, y, alphas, self.precision, self.language)
        _train(model, problem)
        problem = problem._replace(end=_values(model)).cast(DTYPES[self.precision])
        if X.ndim == 4:
            problem = problem._replace(X=problem.X.contiguous(memory_format=torch.channels_last))
        return problem, about


def _values(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _train(model: nn.Module, problem: Problem, steps: int = 10, batch: int = 64, rate: float = 0.02) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    model.train()
    batch = min(batch, len(problem.y))
    for step in range(steps):
        first = (step * batch) % max(1, len(problem.y) - batch + 1)
        x, y = problem.X[first : first + batch], problem.y[first : first + batch]
        optimizer.zero_grad()
        tokens = batch * (y.shape[1] - 1) if problem.language else batch
        (problem.loss(model, x, y) / tokens).backward()
        optimizer.step()


def repeated_mnist(count: int) -> tuple[Tensor, Tensor, str]:
    """MNIST's test images again and again, each time with other noise, X [count, 784]."""
    X, y, about = mnist(min(count, 10_000))
    index = torch.arange(count) % len(X)
    noise = torch.randn(count, X.shape[1], generator=torch.Generator().manual_seed(3))
    return X[index] + 0.1 * noise, y[index], f"{about}, repeated with noise" if count > len(X) else about


def images(count: int) -> tuple[Tensor, Tensor, str]:
    """Normal images the size of CIFAR's."""
    generator = torch.Generator().manual_seed(4)
    X, y = torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)
    return X, y, "random 3x32x32"


def tokens(count: int, length: int = 256, vocabulary: int = 8192) -> tuple[Tensor, Tensor, str]:
    """Uniform tokens, X = y [count, length]."""
    X = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(5))
    return X, X, f"random tokens, {count} x {length}"


_MLP = Workload(
    "mlp",
    "MLP 784-1024-1024-10, 60,000 x 50",
    partial(Mlp, 784, 1024, 1024, 10),
    repeated_mnist,
    60_000,
    50,
    "bfloat16",
    2.0,
    2e-2,
    (10_000, 60_000),
    (2_000, 6_000),
    exact=True,
)
_RESNET18 = Workload(
    "resnet18",
    "ResNet-18 (CIFAR stem, eval), 2,500 x 20",
    ResNet18,
    images,
    2_500,
    20,
    "bfloat16",
    1.6,
    2e-2,
    (1_250, 2_500),
    (125,),
)
_RESNET20 = Workload(
    "resnet20",
    "ResNet-20 (CIFAR, eval), 10,000 x 50",
    ResNet,
    images,
    10_000,
    50,
    "bfloat16",
    2.0,
    2e-2,
    (5_000, 10_000),
    (200,),
)
_GPT2 = Workload(
    "gpt2",
    "GPT-2 small, 64 x 256 tokens x 16, vocabulary 8,192",
    gpt2,
    tokens,
    64,
    16,
    "bfloat16",
    1.5,
    2e-2,
    (32, 64),
    language=True,
)
_float32 = {"precision": "float32", "goal": 3.0, "goal_plain": 200.0, "tolerance": 1e-5}
WORKLOADS = {
    f"{w.name} {w.precision}": w
    for w in (
        _MLP,
        replace(_RESNET18),
        replace(_MLP, **_float32),  # type: ignore[arg-type]
        _RESNET20,
        _GPT2,
        replace(_MLP, precision="tf32", tolerance=2e-3),
        replace(_RESNET18, precision="tf32", goal=1.4, tolerance=2e-3),
    )
}


def tiny(workload: Workload) -> Workload:
    """The same kind of work in a size for tests."""
    small: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
        "mlp": (partial(Mlp, 784, 16, 16, 10), repeated_mnist),
        "resnet18": (partial(ResNet18, width=4), images),
        "resnet20": (partial(ResNet, blocks=1, width=4), images),
        "gpt2": (partial(gpt2, 1, 16, 2, 32, 8), partial(tokens, length=8, vocabulary=32)),
    }
    factory, data = small[workload.name]
    sizes = (4, 8) if workload.vmap_batches else ()
    return replace(
        workload,
        factory=factory,
        data=data,
        examples=8,
        points=3,
        loop_batches=(4, 8),
        vmap_batches=sizes,
        tolerance=0.05,
    )
