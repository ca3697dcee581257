"""What a peer is, what it may choose, and what several of them share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.points import Coefficients, State
from benchmarks.workloads import Problem

Run = Callable[[], np.ndarray]


class Unavailable(RuntimeError):
    """This peer cannot do this work here; the message says why."""


@dataclass(frozen=True)
class Options:
    """What a peer may choose for itself before it is measured."""

    batch_size: int
    channels_last: bool = False
    points: int | None = None  # points per pass, for the peers that take several at once; None: all of them
    math_attention: bool = False  # the only attention of PyTorch that vmap can batch on a CPU


@dataclass(frozen=True)
class Peer:
    """One way of doing the work."""

    name: str
    title: str
    maker: Callable[[Problem, Options], Run]
    batched: bool = False  # takes several points per pass
    compiled: bool = False  # spends seconds compiling for each batch shape
    layouts: bool = False  # may run channels_last
    follows: str | None = None  # the peer whose tuning narrows this one's (compiling every candidate takes minutes)
    package: str | None = None
    answers: Callable[[Problem], Problem] | None = None  # what, in the place of what it is asked
    averages: bool = False  # recalibrates to the mean of its batches' statistics, as published code does

    def prepare(self, problem: Problem, options: Options) -> Run:
        """Copies, converts and compiles; the function returned finds the mean losses [P] once."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise Unavailable(f"{self.package} is not installed")
        return self.maker(problem, options)

    def __call__(
        self,
        model_factory: Callable[[], nn.Module],
        theta_0: State,
        theta_T: State,
        X: Tensor,  # [N, ...]
        y: Tensor,  # [N]
        alphas: Any,  # [A]
        batch_size: int,
        **options: Any,
    ) -> np.ndarray:
        """One sweep, mean losses [A] in float64; `options` are those of `Options`."""
        problem = Problem.line(model_factory, theta_0, theta_T, X, y, alphas)
        return self.prepare(problem, Options(batch_size, **options))()

    def question(self, problem: Problem) -> Problem:
        """The problem this peer in fact answers when given `problem`: the one its values are checked against."""
        return self.answers(problem) if self.answers else problem


def combine(anchors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """`sum_r c_r anchor_r` in the anchors' dtype; of integers the last anchor's."""
    if not anchors[-1].is_floating_point():
        return anchors[-1]
    if len(anchors) == 2:
        return torch.lerp(*anchors, coefficients[1])
    return sum((c * a for c, a in zip(coefficients, anchors, strict=True)), torch.zeros_like(anchors[0]))


def batches_of(problem: Problem, options: Options) -> list[tuple[Tensor, Tensor]]:
    X = placed(problem.X, options)
    return list(zip(X.split(options.batch_size), problem.y.split(options.batch_size), strict=True))


def placed(X: Tensor, options: Options) -> Tensor:
    if options.channels_last and X.dim() == 4:
        return X.contiguous(memory_format=torch.channels_last)
    return X


def network(problem: Problem, options: Options) -> nn.Module:
    model = problem.model_factory().eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last) if options.channels_last else model  # type: ignore[call-overload]


def passes(count: int, options: Options) -> Iterator[slice]:
    points = options.points or count
    for first in range(0, count, points):
        yield slice(first, min(first + points, count))


def parted(rows: Coefficients) -> tuple[Coefficients, Coefficients]:
    """Of the points of one pass: what moves [P, R], and what is the same at all of them [R]."""
    held = {name: c[0] for name, c in rows.items() if len(c) > 1 and (c == c[0]).all()}
    return {name: c for name, c in rows.items() if name not in held}, held
