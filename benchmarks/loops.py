"""Peers that take one point after the other: what a user writes, and what one writes who needs it fast."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peer import Options, Run, Unavailable, batches_of, combine, network
from benchmarks.recalibration import recalibration
from benchmarks.workloads import Problem


def plain_loop(problem: Problem, options: Options) -> Run:
    """What a user writes."""
    model = network(problem, options)
    loader = DataLoader(TensorDataset(problem.X, problem.y), batch_size=options.batch_size)
    calibration = problem.calibration and DataLoader(TensorDataset(*problem.calibration), options.batch_size)

    def run() -> np.ndarray:
        losses = []
        for point in range(problem.count):
            state = {
                name: combine([anchor[name] for anchor in problem.anchors], rows[point].tolist())
                for name, rows in problem.coefficients.items()
            }
            model.load_state_dict(state)
            if calibration:
                update_bn(calibration, model)
            total = 0.0
            with torch.no_grad():
                for x, y in loader:
                    total += F.cross_entropy(model(x), y, reduction="sum").item()
            losses.append(total / len(problem.X))
        return np.array(losses)

    return run


class _Slots:
    """The model's own tensors, into which a point's values are written where they differ from the last point's."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        # Blending into the layout the model has: a permuted copy per point would count against the peer.
        copies = [copy.deepcopy(model) for _ in problem.anchors]
        for each, anchor in zip(copies, problem.anchors, strict=True):
            each.load_state_dict(anchor)
        states = [each.state_dict() for each in copies]
        self._slots = [
            ([state[name] for state in states], out, problem.coefficients[name].tolist())
            for name, out in model.state_dict().items()
            if out.is_floating_point()
        ]
        self._last: list[list[float] | None] = [None] * len(self._slots)

    def move(self, point: int) -> None:
        for index, (anchors, out, rows) in enumerate(self._slots):
            row = rows[point]
            if row == self._last[index]:
                continue
            self._last[index] = row
            if len(anchors) == 2:
                torch.lerp(*anchors, row[1], out=out)
                continue
            torch.mul(anchors[0], row[0], out=out)
            for anchor, coefficient in zip(anchors[1:], row[1:], strict=True):
                out.add_(anchor, alpha=coefficient)


def _tuned(problem: Problem, options: Options, compiled: bool, averages: bool = False) -> Run:
    """Data in memory, values blended in place, no autograd, one read-back per point."""
    model, batches = network(problem, options), batches_of(problem, options)
    slots = _Slots(model, problem)
    recalibrate = recalibration(problem, options, model, compiled, averages)

    def batch_loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum")

    loss = torch.compile(batch_loss, dynamic=False) if compiled else batch_loss

    def run() -> np.ndarray:
        losses = np.empty(problem.count)
        with torch.inference_mode():
            for point in range(problem.count):
                slots.move(point)
                recalibrate()
                total = sum(loss(x, y).double() for x, y in batches)
                losses[point] = float(total) / len(problem.X)
        return losses

    return run


def tuned_loop(problem: Problem, options: Options) -> Run:
    return _tuned(problem, options, compiled=False)


def update_bn_loop(problem: Problem, options: Options) -> Run:
    if problem.calibration is None:
        raise Unavailable("it is the tuned loop where nothing is recalibrated")
    return _tuned(problem, options, compiled=False, averages=True)


def compiled_loop(problem: Problem, options: Options) -> Run:
    return _tuned(problem, options, compiled=True)
