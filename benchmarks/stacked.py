"""vmap as a peer: the networks of many points stacked."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peer import Options, Run, Unavailable, batches_of, combine, network, parted, passes
from benchmarks.points import State
from benchmarks.workloads import Problem


def _vmapped(problem: Problem, options: Options, compiled: bool) -> Run:
    """torch.func: the parameters of all points stacked once, then vmap over them, batch after batch.

    Those that do not move in a pass are not stacked, and what is computed from them alone is computed once.
    """
    if problem.calibration:
        raise Unavailable("vmap has no rule for batch norms that update their statistics")
    model, batches = network(problem, options), batches_of(problem, options)
    anchors = {name: [anchor[name] for anchor in problem.anchors] for name in problem.coefficients}
    floating = {name: rows for name, rows in problem.coefficients.items() if anchors[name][0].is_floating_point()}

    def batch_losses(moving: State, held: State, x: Tensor, y: Tensor) -> Tensor:  # -> [points]
        def at_point(values: State) -> Tensor:
            return F.cross_entropy(functional_call(model, held | values, (x,)), y, reduction="sum")

        return vmap(at_point)(moving)

    def stacked(name: str, rows: np.ndarray) -> Tensor:  # [points, ...]
        columns = torch.tensor(rows, dtype=anchors[name][0].dtype).T  # [R, points]
        shaped = [column.view(-1, *[1] * anchors[name][0].dim()) for column in columns]
        if len(shaped) == 2:
            return torch.lerp(anchors[name][0][None], anchors[name][1][None], shaped[1])
        return sum((c * a for c, a in zip(shaped, anchors[name], strict=True)), torch.zeros(()))

    losses = torch.compile(batch_losses, dynamic=False) if compiled else batch_losses

    def run() -> np.ndarray:
        totals = torch.zeros(problem.count, dtype=torch.float64)
        attention = sdpa_kernel(SDPBackend.MATH) if options.math_attention else nullcontext()
        # One compilation for each set of moving parameters and batch shape: more than the eight that are the default.
        with torch.no_grad(), attention, torch._dynamo.config.patch(recompile_limit=64):
            for chosen in passes(problem.count, options):
                moves, stays = parted({name: rows[chosen] for name, rows in floating.items()})
                moving = {name: stacked(name, rows) for name, rows in moves.items()}
                held = {name: combine(anchors[name], row.tolist()) for name, row in stays.items()}
                for x, y in batches:
                    totals[chosen] += losses(moving, held, x, y)
        return (totals / len(problem.X)).numpy()

    return run


def vmapped(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=False)


def compiled_vmap(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=True)
