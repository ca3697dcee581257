"""A sweep's arguments as one thing, to be run with other alphas and chunks; bitwise comparison of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mli_fast
from tests.data import Batch
from tests.models import ARCHITECTURES, endpoints, endpoints_of

State = dict[str, Tensor]
PER_POINT = (
    "loss",
    "loss_stderr",
    "accuracy",
    "accuracy_stderr",
    "class_loss",
    "class_accuracy",
    "prediction_histogram",
)
ALL_METRICS = ("accuracy", "class_loss", "class_accuracy", "prediction_histogram")

POINTS = [0.0, 0.05, 0.2, 0.33, 0.5, 0.61, 0.8, 1.0, 1.1]


@dataclass(frozen=True)
class Case:
    """All that a sweep takes, ready to be called with other alphas, chunks or checkpoints."""

    model: nn.Module
    theta_0: State
    theta_T: State
    batches: list[Batch]
    criterion: str = "cross_entropy"
    metrics: tuple[str, ...] = ALL_METRICS

    def sweep(self, alphas: Any, **options: Any) -> mli_fast.SweepResult:
        """A sweep over this case; its `model`, `theta_0`, `theta_T` and `loader` may be replaced by name."""
        parts = {"model": self.model, "theta_0": self.theta_0, "theta_T": self.theta_T, "loader": self.batches}
        parts |= {key: options.pop(key) for key in tuple(options) if key in parts}
        options = {"criterion": self.criterion, "metrics": self.metrics, "progress": False} | options
        return mli_fast.sweep(*parts.values(), alphas, **options)


def case(name: str) -> Case:
    """A registered architecture with the metrics that suit it."""
    found = ARCHITECTURES[name]
    metrics = ALL_METRICS if found.criterion == "cross_entropy" and name != "segmentation" else found.metrics
    return Case(found.model(), *endpoints(name), found.data(), found.criterion, metrics)


def wide() -> Case:
    """An MLP and batches large and ragged enough that matrix libraries take other kernels than for tiny ones."""
    layers = [nn.Linear(67, 129), nn.ReLU(), nn.Linear(129, 65), nn.GELU(), nn.Linear(65, 10)]
    model = nn.Sequential(*layers).eval()
    g = torch.Generator().manual_seed(3)
    batches = list(
        zip(
            torch.randn(301, 67, generator=g).split(128),
            torch.randint(0, 10, (301,), generator=g).split(128),
            strict=True,
        )
    )
    return Case(model, *endpoints_of(lambda _: model), batches)


def under_both(*names: str) -> pytest.MarkDecorator:
    """Each named case under each engine that can run it."""
    return pytest.mark.parametrize(
        ("name", "under"),
        [pytest.param(name, under, id=f"{name}-{under}") for name in names for under in ("replay", "planned")],
    )


def named(name: str) -> Case:
    """A registered case, or the wide one."""
    return wide() if name == "wide" else case(name)


def assert_same_points(ours: mli_fast.SweepResult, theirs: mli_fast.SweepResult, at: Sequence[int]) -> None:
    """Bit for bit: every per-point variable of `ours` is that of `theirs` at the indices `at`."""
    compared = [name for name in PER_POINT if name in theirs.dataset]
    assert "loss" in compared
    for name in compared:
        mine, other = np.asarray(ours[name]), np.asarray(theirs[name])[list(at)]
        assert mine.tobytes() == other.tobytes(), f"{name}: {mine} is not {other}, by {np.abs(mine - other).max()}"
