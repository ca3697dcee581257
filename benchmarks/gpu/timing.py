"""How long work takes on a device: interleaved, warmed up, caches flushed, medians."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Work = Callable[[], object]
FLUSH_BYTES = (
    2**28
)  # several times the L2 cache of an H200; writing it also gives the host time to launch what is timed


class OutOfTime(BaseException):
    """A deadline has passed. No `Exception`, so that nothing in between takes it for a failure of its own."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Stop the block after so many seconds, in the main thread; not to be nested.

    Raises:
        OutOfTime: the message names `what`.
    """

    def stop(*_: Any) -> None:
        raise OutOfTime(f"{what}: more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait(device: torch.device) -> None:
    """Until all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    """Wall time of one call, until the device is done."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def interleaved(
    works: Mapping[str, Work], device: torch.device, budget_s: float, least: int = 5, most: int = 60
) -> dict[str, list[float]]:
    """Milliseconds of every call: in each round every work once, the order turned by one, the L2 cache flushed before.

    Args:
        works: what to time, by name; each has run at least once already.
        device: CUDA events time work there; on a CPU the clock does.
        budget_s: about how long all rounds may take.
        least: rounds at least.
        most: rounds at most.
    """
    once = sum(seconds(work, device) for work in works.values())
    rounds = max(least, min(most, int(budget_s / max(once, 1e-6))))
    names = list(works)
    order = [names[turn % len(names) :] + names[: turn % len(names)] for turn in range(rounds)]
    if device.type != "cuda":
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn in order:
            for name in turn:
                taken[name].append(1e3 * seconds(works[name], device))
        return taken
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in names}
    for turn in order:
        for name in turn:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            before.record()
            works[name]()
            after.record()
            events[name].append((before, after))
        wait(device)  # so that the host is never many rounds ahead, and memory is reused
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in events.items()}


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """name -> median."""
    return {name: statistics.median(values) for name, values in times.items()}
