"""Batch norms measured anew at one point, as a peer does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.peer import Options, placed
from benchmarks.workloads import Problem


def recalibration(
    problem: Problem, options: Options, model: nn.Module, compiled: bool, averages: bool
) -> Callable[[], None]:
    """What measures the model's batch norms anew, where the problem asks for it."""
    if problem.calibration is None:
        return lambda: None
    X = placed(problem.calibration[0], options)
    if averages:
        batches = X.split(options.batch_size)
        return lambda: _averaged(model, batches)
    forward = torch.compile(model, dynamic=False) if compiled else model
    return _exact(model, lambda: forward(X))


def _exact(model: nn.Module, forward: Callable[[], Any]) -> Callable[[], None]:
    """Exact statistics in one pass: all calibration data as one batch, measured by each layer as it gets there.

    That is layer by layer correct, as a layer's input has been normalised by the new statistics of those before it.
    """
    measuring = False

    def measure(norm: _BatchNorm, given: tuple[Tensor, ...]) -> None:
        if not measuring:
            return
        (x,) = given
        if torch.compiler.is_compiling():  # does not see what the kernel below writes
            variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=1)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        else:  # training's own kernel, several times as fast as torch.var_mean; with momentum 1 the batch's statistics
            torch.batch_norm_update_stats(x, norm.running_mean, norm.running_var, 1.0)

    def recalibrate() -> None:
        nonlocal measuring
        measuring = True
        forward()
        measuring = False

    for norm in norms(model):
        norm.register_forward_pre_hook(measure)
    return recalibrate


def _averaged(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """What update_bn does, on batches in memory: the mean of the batches' statistics, by the modules' momentum=None."""
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for x in batches:
        model(x)
    model.eval()


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
