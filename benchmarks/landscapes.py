"""loss-landscapes as a peer: its own functions, and the points that they in fact evaluate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F

from benchmarks.peer import Options, Run, Unavailable, batches_of, network
from benchmarks.points import along
from benchmarks.workloads import Problem


def loss_landscapes(problem: Problem, options: Options) -> Run:
    """The package's own function; its metric is one fixed batch, or a loop over batches where that is faster."""
    from loss_landscapes import linear_interpolation, planar_interpolation  # type: ignore[import-untyped]
    from loss_landscapes.metrics import Loss, Metric  # type: ignore[import-untyped]

    if problem.calibration or problem.straight() is None:
        raise Unavailable("it has lines and planes of all parameters at once, and keeps the first model's statistics")
    batches = batches_of(problem, options)
    models = [network(problem, options) for _ in problem.anchors]
    for model, anchor in zip(models, problem.anchors, strict=True):
        model.load_state_dict(anchor)

    class BatchedLoss(Metric):
        def __call__(self, model_wrapper: Any) -> float:
            total = sum(F.cross_entropy(model_wrapper.forward(x), y, reduction="sum").double() for x, y in batches)
            return float(total) / len(problem.X)

    whole = len(batches) == 1
    metric = Loss(F.cross_entropy, *batches[0]) if whole else BatchedLoss()

    interpolate = linear_interpolation if len(models) == 2 else planar_interpolation
    steps = problem.count if len(models) == 2 else math.isqrt(problem.count)

    def run() -> np.ndarray:
        # Without deepcopy_model it would overwrite the start model, and the second run would start at the end.
        values = interpolate(*models, metric, steps=steps, deepcopy_model=True)
        return np.asarray(values, np.float64).ravel()

    return run


def own_question(problem: Problem) -> Problem:
    """The same anchors at the points that the package evaluates: parameters move, buffers stay the first model's."""
    moved = _line(problem.count) if len(problem.anchors) == 2 else _plane(math.isqrt(problem.count))
    held = np.zeros_like(moved)
    held[:, 0] = 1.0
    parameters = {name for name, _ in problem.model_factory().named_parameters()}
    return problem._replace(coefficients={name: moved if name in parameters else held for name in problem.coefficients})


def _line(steps: int) -> np.ndarray:
    """The points of its `linear_interpolation`, [steps, 2]: 1/steps, 2/steps .. 1, never 0."""
    return along(np.arange(1, steps + 1) / steps)


def _plane(steps: int) -> np.ndarray:
    """The points of its `planar_interpolation` in the order of what it returns, [steps^2, 3].

    It walks a serpentine: column v runs over 1..steps in even rows and over 0..steps - 1 in odd ones.
    """
    i, j = (axis.ravel() for axis in np.indices((steps, steps)))
    first, second = i / steps, (j + 1 - i % 2) / steps
    return np.stack((1 - first - second, first, second), 1)
