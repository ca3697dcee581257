"""Peak memory on the GPU beyond the checkpoints and the data: ours and vmap's."""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.peers import PEERS, Options, Run
from benchmarks.gpu.precision import fastest
from benchmarks.gpu.sweeps import OURS, prepare_ours
from benchmarks.gpu.timing import wait
from benchmarks.gpu.workloads import Problem, Workload
from benchmarks.models import Mlp
from benchmarks.workloads import random_data

GOAL = 1 / 8  # of vmap's peak
WIDTHS, EXAMPLES, POINTS = (1024, 8192, 8192, 10), 512, 50


def keys(tiny: bool = False) -> list[str]:
    """Who is measured."""
    return [OURS, "vmap"]


def measure(key: str, seconds: float, emit: Callable[[dict[str, Any]], None], device: torch.device, tiny: bool) -> None:
    """Bytes allocated at the most during one sweep in float32, beyond what was there before."""
    widths, examples, points = ((12, 16, 16, 4), 8, 5) if tiny else (WIDTHS, EXAMPLES, POINTS)
    with fastest("float32"):
        _prepare(key, (12, 16, 16, 4), 8, points, device)[0]()  # libraries and their workspaces
        run, theta, activations = _prepare(key, widths, examples, points, device)
        before = _restart(device)
        losses = run()
        wait(device)
        peak = _peak(device) - before
    if not np.isfinite(losses).all():
        raise RuntimeError(f"{key} gave losses that are not finite")
    emit({"title": f"MLP {'-'.join(map(str, widths))}, {points} points, {examples} rows", "peak_bytes": peak})
    emit({"theta_bytes": theta, "activation_bytes_per_point": activations, "points": points, "goal": GOAL})


def _prepare(
    key: str, widths: tuple[int, ...], examples: int, points: int, device: torch.device
) -> tuple[Run, int, int]:
    factory = partial(Mlp, *widths)
    torch.manual_seed(0)
    start, end = ({n: v.detach().to(device) for n, v in factory().state_dict().items()} for _ in range(2))
    X, y, about = random_data(examples, widths[:1], widths[-1])
    alphas = np.linspace(0, 1, points)
    problem = Problem(factory, start, end, X.to(device), y.to(device), alphas, "float32", False)
    workload = Workload(
        "mlp", about, factory, lambda _: (X, y, about), examples, points, "float32", 1.0, 1.0, (examples,)
    )
    theta = sum(v.nbytes for v in start.values())
    if key == OURS:
        return prepare_ours(problem, workload, {}), theta, 4 * examples * max(widths)
    return PEERS["vmap"].prepare(problem, Options(examples)), theta, 4 * examples * max(widths)


def _restart(device: torch.device) -> int:
    if device.type != "cuda":
        return _peak(device)
    wait(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    if device.type != "cuda":  # to run this code where there is no GPU
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated(device)
