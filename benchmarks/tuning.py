"""Each peer chooses its batch size, layout and points per pass before it is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from benchmarks.peers import PEERS, Options, Peer, Run, Unavailable
from benchmarks.workloads import Problem, Workload

AT_ONCE = 64  # points whose activations fit in memory together


@dataclass
class Tuning:
    """What one peer tried on one workload."""

    options: Options | None = None  # the fastest, None where it cannot run
    estimate_s: float = float("inf")  # of all points with them
    first_call_s: float = 0.0  # with compilation, on the reduced problem
    reduced: Problem | None = None  # the part of the work that was tried
    values: np.ndarray | None = None  # and what came out
    tried: list[dict[str, Any]] = field(default_factory=list)
    untried: list[dict[str, Any]] = field(default_factory=list)  # candidates the time did not allow
    reason: str | None = None  # why it cannot run


def forget_compiled() -> None:
    """Drops every compiled function, so that one candidate's guards do not slow the next."""
    torch._dynamo.reset()


def tune(peer: Peer, workload: Workload, problem: Problem, done: dict[str, Tuning], budget_s: float) -> Tuning:
    """Tries the peer's candidates until `budget_s` is spent; the first is always tried."""
    tuning = Tuning()
    started = time.perf_counter()
    leader = done.get(peer.follows or "")
    start = leader.options if leader and leader.options else Options(_middle(workload.batch_sizes))
    if peer.batched and leader is None:
        start = replace(start, points=_points_per_pass(peer, workload)[0])
    # Switches first: a layout or a number of points that is ten times slower must not eat the time of the batch sizes.
    stages = (_start, _switches, _batch_sizes, _switches) if peer.follows is None else (_followed, _switches)
    seen: set[Options] = set()
    for stage in stages:
        for candidate in stage(peer, workload, problem, tuning.options or start):
            if candidate in seen:
                continue
            seen.add(candidate)
            if tuning.tried and time.perf_counter() - started > budget_s:
                tuning.untried.append(asdict(candidate))
                continue
            _try(peer, problem, candidate, tuning)
            if tuning.reason:
                return tuning
    return tuning


def _try(peer: Peer, problem: Problem, options: Options, tuning: Tuning) -> None:
    reduced = _reduced(peer, problem, options)
    try:
        if peer.compiled:
            forget_compiled()
        run = peer.prepare(reduced, options)
        first, values = timed(run)
        # A slow first call without compilation says enough; quick ones are repeated, as the machine is never quiet.
        spent, seconds = (first, first) if first > 0.5 and not peer.compiled else (0.0, float("inf"))
        while spent < 0.3:
            again = timed(run)[0]
            spent, seconds = spent + again, min(seconds, again)
    except Unavailable as error:
        tuning.reason = str(error)
        return
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        # A peer may fail on one candidate (memory, a compiler's limits) and still run on another.
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        tuning.tried.append({**asdict(options), "failed": why})
        return
    estimate = seconds * problem.count / len(values) * len(problem.X) / len(reduced.X)
    tuning.tried.append({**asdict(options), "estimate_s": round(estimate, 4)})
    if estimate < tuning.estimate_s:
        tuning.options, tuning.estimate_s, tuning.first_call_s = options, estimate, first
        tuning.reduced, tuning.values = reduced, values


def timed(run: Run) -> tuple[float, np.ndarray]:
    """Seconds and values of one run."""
    started = time.perf_counter()
    values = run()
    return time.perf_counter() - started, values


def _reduced(peer: Peer, problem: Problem, options: Options) -> Problem:
    """A part of the work whose time scales to the whole.

    Two points for loops (four for a grid of its own, which is square); of peers that take several at once, up to eight
    passes from everywhere on a quarter of the examples.
    """
    if not peer.batched:
        few = 4 if peer.answers else 2
        return problem.take(points=np.linspace(0, problem.count - 1, min(few, problem.count)).astype(int))
    passes = list(range(0, problem.count, options.points or problem.count))
    chosen = [passes[i] for i in np.unique(np.linspace(0, len(passes) - 1, 8).astype(int))]
    points = np.concatenate([np.arange(problem.count)[first:][: options.points] for first in chosen])
    return problem.take(examples=min(len(problem.X), max(options.batch_size, len(problem.X) // 4)), points=points)


def _points_per_pass(peer: Peer, workload: Workload) -> tuple[int | None, int | None]:
    """Two numbers of points to take at once; all of them only where that can be paid for."""
    few, many = workload.points.row, None
    if workload.points.count > AT_ONCE:
        few, many = max(1, workload.points.row // 5), workload.points.row
    return (1, many) if peer.package == "jax" else (few, many)


def _middle(sizes: tuple[int, ...]) -> int:
    return sizes[len(sizes) // 2]


def _start(peer: Peer, workload: Workload, problem: Problem, best: Options) -> Iterator[Options]:
    yield best


def _batch_sizes(peer: Peer, workload: Workload, problem: Problem, best: Options) -> Iterator[Options]:
    # From the middle outwards: if the time ends early, the likely ones have been tried.
    middle = workload.batch_sizes.index(_middle(workload.batch_sizes))
    for size in sorted(workload.batch_sizes, key=lambda size: abs(workload.batch_sizes.index(size) - middle)):
        yield replace(best, batch_size=size)


def _neighbours(peer: Peer, workload: Workload, problem: Problem, best: Options) -> Iterator[Options]:
    sizes = workload.batch_sizes
    if best.batch_size not in sizes:
        return
    index = sizes.index(best.batch_size)
    for size in sizes[max(0, index - 1) : index] + sizes[index + 1 : index + 2]:
        yield replace(best, batch_size=size)


def _followed(peer: Peer, workload: Workload, problem: Problem, best: Options) -> Iterator[Options]:
    yield best
    if peer.answers:
        yield replace(best, batch_size=len(problem.X))  # the package's own metric: one batch
    yield from _neighbours(peer, workload, problem, best)


def _switches(peer: Peer, workload: Workload, problem: Problem, best: Options) -> Iterator[Options]:
    if peer.layouts and problem.X.dim() == 4:
        yield replace(best, channels_last=not best.channels_last)
    if peer.batched:
        yield from (replace(best, points=points) for points in _points_per_pass(peer, workload))
        if workload.attention and peer.package is None:
            yield replace(best, math_attention=not best.math_attention)


def tune_all(workload: Workload, problem: Problem, budget_s: float) -> dict[str, Tuning]:
    """Tunes every peer on one workload; leaders come before their followers in `PEERS`."""
    done: dict[str, Tuning] = {}
    for name, peer in PEERS.items():
        done[name] = tune(peer, workload, problem, done, budget_s)
    forget_compiled()
    return done
