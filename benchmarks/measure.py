"""One row of the table: values checked first, then every variant timed in turn, round after round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.judging import Judge, relative_error
from benchmarks.peers import PEERS, Options, Run
from benchmarks.points import Points
from benchmarks.tuning import Tuning, timed, tune_all
from benchmarks.workloads import Problem, Workload

OURS = "mli_fast"
HOPELESS = 3.0  # a peer that tuning finds this many times slower than the best keeps that estimate as its figure
SLOW = 1.6  # one that is this many times slower than the best in the first round is left out of the others


@dataclass
class Variant:
    """What was measured of one way of doing the work."""

    name: str
    title: str
    seconds: list[float] = field(default_factory=list)
    share: float = 1.0  # of the points that one run evaluates; seconds are those of all points
    error: float | None = None  # largest relative difference to the tuned loop
    first_call_s: float | None = None
    tuning: Tuning | None = None
    reason: str | None = None  # why there is no figure
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def as_json(self) -> dict[str, Any]:
        tuning = self.tuning
        return {
            "title": self.title,
            "median_s": self.median_s,
            "seconds": self.seconds,
            "rounds": len(self.seconds),
            "share_of_points_timed": self.share,
            "max_relative_error": self.error,
            "first_call_s": self.first_call_s,
            "options": asdict(tuning.options) if tuning and tuning.options else None,
            "tried": tuning.tried if tuning else [],
            "untried": tuning.untried if tuning else [],
            "reason": self.reason,
            **self.about,
        }


@dataclass
class Measurement:
    """One workload's variants and the ratios that count."""

    workload: Workload
    data: str
    reference_error: float  # of the tuned loop against fp64
    variants: dict[str, Variant]

    def best_peer(self) -> Variant | None:
        timed = [v for name, v in self.variants.items() if name != OURS and v.seconds]
        return min(timed, key=lambda v: v.median_s or float("inf"), default=None)

    def as_json(self) -> dict[str, Any]:
        ours, best, plain = self.variants[OURS].median_s, self.best_peer(), self.variants["plain_loop"].median_s
        return {
            "name": self.workload.name,
            "title": self.workload.title,
            "data": self.data,
            "examples": self.workload.examples,
            "points": self.workload.points.count,
            "ours_s": ours,
            "best_peer": best.name if best else None,
            "best_peer_s": best.median_s if best else None,
            "plain_loop_s": plain,
            "best_peer_over_ours": best.median_s / ours if best and best.median_s and ours else None,
            "plain_loop_over_ours": plain / ours if plain and ours else None,
            "target_best_peer": self.workload.target_peer,
            "target_plain_loop": self.workload.target_plain,
            "tuned_loop_error_against_fp64": self.reference_error,
            "variants": {name: variant.as_json() for name, variant in self.variants.items()},
        }


def prepare_ours(problem: Problem, points: Points, about: dict[str, Any]) -> Run:
    """The whole public call, defaults throughout: it also does accuracy and the standard errors."""
    model = problem.model_factory().eval()
    options: dict[str, Any] = {"progress": False}
    if problem.calibration:
        options |= {"batch_norm": "recalibrate", "calibration": problem.calibration}

    def run() -> np.ndarray:
        result = points.ask(model, problem.anchors, (problem.X, problem.y), **options)
        kept = ("engine", "backend", "precision", "chunk", "compile", "kernels", "batch_norm")
        about["provenance"] = {key: result.provenance[key] for key in kept if key in result.provenance}
        return np.asarray(result.loss).ravel()

    return run


def measure(workload: Workload, seconds: float, log: Callable[[str], None] = print) -> Measurement:
    """Tunes, checks and times every variant of one workload in about `seconds` of wall time.

    Raises:
        AssertionError: if the tuned loop, which the others are checked against, is itself off the fp64 result.
    """
    started = time.perf_counter()
    problem, data = workload.build()
    log(f"{workload.title} ({data})")
    tunings = tune_all(workload, problem, budget_s=0.4 * seconds / len(PEERS))
    variants, runs, judge = _checked(workload, problem, tunings, log)
    left = max(0.0, seconds - (time.perf_counter() - started))
    _interleave(runs, variants, left)
    for variant in variants.values():
        shown = f"{1e3 * variant.median_s:9.1f} ms  x{len(variant.seconds)}" if variant.median_s else variant.reason
        log(f"  {variant.title:26s} {shown}")
    return Measurement(workload, data, judge.reference_error, variants)


def _checked(
    workload: Workload, problem: Problem, tunings: dict[str, Tuning], log: Callable[[str], None]
) -> tuple[dict[str, Variant], dict[str, Run], Judge]:
    """Prepares and warms every variant and checks its values; a peer that is wrong or cannot run gets no time."""
    variants, runs = {OURS: Variant(OURS, OURS)}, {}
    sample = problem.take(points=workload.sample())
    judge = Judge(sample, tunings["tuned_loop"].options or Options(workload.batch_sizes[0]))
    best = min(tuning.estimate_s for tuning in tunings.values())
    for name, peer in PEERS.items():
        tuning = tunings[name]
        variant = variants[name] = Variant(name, peer.title, tuning=tuning, first_call_s=tuning.first_call_s)
        if tuning.options is None:
            variant.reason = tuning.reason or "no candidate ran: " + str(tuning.tried[-1:])
            continue
        hopeless = name != "plain_loop" and tuning.estimate_s > HOPELESS * best
        if hopeless:
            asked, values = tuning.reduced, tuning.values
        else:
            # Points taken together may share work where not everything moves, which a sample of them would not show.
            whole = peer.batched and tuning.options.points != 1 and problem.straight() is None
            run = peer.prepare(problem if whole else sample, tuning.options)
            variant.about["checked_run_s"], values = timed(run)  # may hold compilation
            variant.share = len(values) / problem.count
            asked, values = sample, values[workload.sample()] if whole else values
        variant.error = judge.error(peer, tuning.options, asked, values)
        if variant.error > judge.tolerance:
            variant.reason = f"values differ by {variant.error:.1e}, more than {judge.tolerance:.0e}: not timed"
            log(f"  {peer.title}: {variant.reason}")
        elif hopeless:
            variant.seconds = [tuning.estimate_s]
            variant.about["estimated"] = f"over {HOPELESS:g} times the best peer on a part of the work: that, scaled"
        else:
            runs[name] = run
    _check_ours(workload, problem, variants[OURS], runs, judge)
    return variants, runs, judge


def _check_ours(workload: Workload, problem: Problem, ours: Variant, runs: dict[str, Run], judge: Judge) -> None:
    """Warms mli_fast up; wrong or failing, it gets no time either, and its test fails with the reason."""
    try:
        run = prepare_ours(problem, workload.points, ours.about)
        ours.first_call_s, values = timed(run)
    except Exception as error:  # noqa: BLE001  any failure of ours is a result to report beside the peers' figures
        ours.reason = f"failed: {type(error).__name__}: {error}"
        return
    ours.error = relative_error(values[workload.sample()], judge.expected)
    if ours.error > judge.tolerance:
        ours.reason = f"values differ by {ours.error:.1e}, more than {judge.tolerance:.0e}: not timed"
        return
    runs[OURS] = run


def _interleave(runs: dict[str, Run], variants: dict[str, Variant], left_s: float, most: int = 9) -> None:
    """At least three rounds; in each, every variant once, the order turned by one.

    After the first round the peers that cannot be the best are left out; the plain loop, which has a column, stays.
    """
    names = list(runs)
    started = time.perf_counter()
    for turn in range(most):
        if turn >= 3 and (time.perf_counter() - started) * (turn + 1) / turn > left_s:
            return
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            variants[name].seconds.append(timed(runs[name])[0] / variants[name].share)
        if turn == 0:
            best = min(variants[name].seconds[0] for name in names if name != OURS)
            slow = {name for name in names if variants[name].seconds[0] > SLOW * best} - {OURS, "plain_loop"}
            names = [name for name in names if name not in slow]
