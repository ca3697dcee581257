"""Peak memory of one sweep in a process of its own: `python -m benchmarks.memory VARIANT POINTS EXAMPLES WIDTHS...`.

Linux keeps a high-water mark of the resident set; it is reset after the checkpoints, the model and the data are in
place and the code has been loaded by a tiny sweep, and read after the sweep.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import OURS, prepare_ours
from benchmarks.models import Mlp
from benchmarks.peers import PEERS, Options, Run
from benchmarks.points import Line
from benchmarks.workloads import Problem

BATCH = 512


def status(key: str) -> int:
    """A size of this process in bytes, e.g. VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"this system's /proc/self/status has no {key}: peak memory is measured on Linux only")


def reset_peak() -> None:
    """Makes the present resident set the peak, free heap pages given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def problem(widths: tuple[int, ...], examples: int, points: int) -> Problem:
    """An MLP between two random initialisations; the values do not matter here."""
    torch.manual_seed(0)
    first, last = (
        {name: value.detach().clone() for name, value in Mlp(*widths).state_dict().items()} for _ in range(2)
    )
    X, y = torch.randn(examples, widths[0]), torch.randint(0, widths[-1], (examples,))
    return Problem.line(partial(Mlp, *widths), first, last, X, y, Line(points).alphas)


def prepare(variant: str, work: Problem) -> Run:
    if variant == OURS:
        return prepare_ours(work, Line(work.count), {})
    return PEERS[variant].prepare(work, Options(min(BATCH, len(work.X))))


def measure_peak(variant: str, widths: tuple[int, ...], examples: int, points: int) -> dict[str, float]:
    """The peak beyond what was resident before the sweep began, in bytes and as a multiple of one parameter set."""
    prepare(variant, problem((16, 32, 32, 4), 64, points))()  # loads code and starts threads
    work = problem(widths, examples, points)
    theta = sum(value.numel() * value.element_size() for value in work.anchors[0].values())
    run: Callable[[], np.ndarray] = prepare(variant, work)
    reset_peak()
    before = status("VmRSS")
    losses = run()
    peak = status("VmHWM") - before
    if not np.isfinite(losses).all():
        raise RuntimeError(f"{variant} gave losses that are not finite")
    return {"peak_bytes": peak, "theta_bytes": theta, "theta_multiple": peak / theta, "points": points}


def main() -> None:
    variant, points, examples, *widths = sys.argv[1:]
    print(json.dumps(measure_peak(variant, tuple(map(int, widths)), int(examples), int(points))))


if __name__ == "__main__":
    main()
