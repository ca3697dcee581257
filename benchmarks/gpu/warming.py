"""Compiles, beside the build and the tests, what is measured later, so that the time goes into measuring.

Triton, torch.compile and JAX keep what they compiled on disk; the measuring process finds it there. What happens to be
timed here is not kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import kernels, tuning
from benchmarks.gpu.cases import BUILDERS, all_cases, tiny_cases
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.precision import fastest
from benchmarks.gpu.timing import OutOfTime, within
from benchmarks.gpu.workloads import WORKLOADS
from benchmarks.gpu.workloads import tiny as smaller
from benchmarks.peers import Unavailable

SLICES = 4  # processes that compile kernels
Emit = Callable[[dict[str, Any]], None]


def keys(tiny: bool = False) -> list[str]:
    """What is compiled, a process each: part/what."""
    return [
        *(f"sweeps/{name}" for name in WORKLOADS),
        *(f"kernels/{index}" for index in range(SLICES)),
        *(f"tuning/{index}" for index in range(SLICES)),
    ]


def measure(key: str, seconds: float, emit: Emit, device: torch.device, tiny: bool) -> None:
    """Compile one of these."""
    part, _, what = key.partition("/")
    if device.type == "cuda":
        os.nice(10)
    if part == "sweeps":
        _peers(what, seconds, emit, device, tiny)
    elif part == "kernels":
        _kernels(int(what), emit, device, tiny)
    else:
        _candidates(int(what), seconds, emit, device, tiny)


def _peers(name: str, seconds: float, emit: Emit, device: torch.device, tiny: bool) -> None:
    """Every compiled peer of a workload once, on one batch; loops at one point."""
    workload = smaller(WORKLOADS[name]) if tiny else WORKLOADS[name]
    problem, _ = workload.build(device)
    done: dict[str, str] = {}
    with fastest(workload.precision):
        for name, peer in PEERS.items():
            for options in peer.candidates(workload) if peer.compiled else []:
                part = problem._replace(X=problem.X[: options.batch], y=problem.y[: options.batch])
                if name == "compiled_loop":
                    part = part.at(problem.alphas[:1])
                what = f"{name} {options.batch}"
                try:
                    with within(max(1.0, seconds), what):
                        peer.prepare(part, options)()
                    done[what] = "compiled"
                except (OutOfTime, Unavailable) as error:
                    done[what] = str(error)
                except Exception as error:  # noqa: BLE001  the measuring process will say it again
                    done[what] = f"{type(error).__name__}: {str(error)[:200]}"
                torch._dynamo.reset()
                emit({"done": done})


def _kernels(index: int, emit: Emit, device: torch.device, tiny: bool) -> None:
    """The Triton kernels of every fourth case."""
    done: dict[str, str] = {}
    for case in (tiny_cases() if tiny else all_cases())[index::SLICES]:
        asked = kernels.Asked("triton", case.dtype == "tf32")
        try:
            with torch.no_grad():
                asked.wrap(BUILDERS[case.op](case, device).ours)()
            done[case.key] = "compiled"
        except Exception as error:  # noqa: BLE001  the measuring process will say it again
            done[case.key] = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            asked.close()
        emit({"done": done})


def _candidates(index: int, seconds: float, emit: Emit, device: torch.device, tiny: bool) -> None:
    """The candidates of every fourth kernel that is tuned."""
    names, ends = tuning.keys()[index::SLICES], time.monotonic() + seconds
    for place, name in enumerate(names):
        share = (ends - time.monotonic()) / (len(names) - place)
        tuning.measure(name, share, lambda row, name=name: emit({name: row.get("tried")}), device, tiny)  # type: ignore[misc]
