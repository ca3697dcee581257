"""One row of the table: values checked first, then every variant timed in turn, round after round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.peers import PEERS, Options, Run, tuned_loop
from benchmarks.tuning import Tuning, tune_all
from benchmarks.workloads import Problem, Workload

OURS = "mli_fast"
TOLERANCE = 1e-5  # relative, of every variant's losses at every alpha
SLOW = 2.5  # a peer this many times slower than the best in the first round is left out of the others
HOPELESS = 6.0


@dataclass
class Variant:
    """What was measured of one way of doing the work."""

    name: str
    title: str
    seconds: list[float] = field(default_factory=list)
    error: float | None = None  # largest relative difference to the plain loop
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
    reference_error: float  # of the plain loop against fp64
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
            "points": self.workload.points,
            "ours_s": ours,
            "best_peer": best.name if best else None,
            "best_peer_s": best.median_s if best else None,
            "plain_loop_s": plain,
            "best_peer_over_ours": best.median_s / ours if best and best.median_s and ours else None,
            "plain_loop_over_ours": plain / ours if plain and ours else None,
            "target_best_peer": self.workload.target_peer,
            "target_plain_loop": self.workload.target_plain,
            "plain_loop_error_against_fp64": self.reference_error,
            "variants": {name: variant.as_json() for name, variant in self.variants.items()},
        }


def double(problem: Problem) -> Problem:
    """The same problem in fp64."""

    def wide(theta: dict[str, Any]) -> dict[str, Any]:
        return {name: value.double() if value.is_floating_point() else value for name, value in theta.items()}

    return problem._replace(
        model_factory=lambda: problem.model_factory().double(),
        theta_0=wide(problem.theta_0),
        theta_T=wide(problem.theta_T),
        X=problem.X.double(),
    )


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference; infinite where a value is missing, NaN or of another count."""
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.max(np.abs(values - expected) / np.abs(expected)))


def prepare_ours(problem: Problem, about: dict[str, Any]) -> Run:
    """The whole public call, defaults throughout: it also does accuracy and the standard errors."""
    from mli_fast import sweep

    model = problem.model_factory().eval()

    def run() -> np.ndarray:
        result = sweep(model, problem.theta_0, problem.theta_T, (problem.X, problem.y), problem.alphas, progress=False)
        kept = ("engine", "backend", "precision", "chunk", "compile", "kernels")
        about["provenance"] = {key: result.provenance[key] for key in kept if key in result.provenance}
        return np.asarray(result.loss)

    return run


def measure(workload: Workload, seconds: float, log: Callable[[str], None] = print) -> Measurement:
    """Tunes, checks and times every variant of one workload in about `seconds` of wall time.

    Raises:
        AssertionError: if the plain loop, which the others are checked against, is itself off the fp64 result.
    """
    started = time.perf_counter()
    problem, data = workload.build()
    reference_error = _reference_error(problem, workload)
    assert reference_error <= TOLERANCE, f"{workload.name}: the plain loop is {reference_error:.1e} from fp64"
    log(f"{workload.title} ({data})")
    tunings = tune_all(workload, problem, budget_s=0.45 * seconds / len(PEERS))
    variants, runs = _checked(workload, problem, tunings, log)
    left = max(0.0, seconds - (time.perf_counter() - started))
    _interleave(runs, variants, left)
    for variant in variants.values():
        shown = f"{1e3 * variant.median_s:9.1f} ms  x{len(variant.seconds)}" if variant.median_s else variant.reason
        log(f"  {variant.title:26s} {shown}")
    return Measurement(workload, data, reference_error, variants)


def _reference_error(problem: Problem, workload: Workload) -> float:
    few = problem.take(examples=1024, alphas=problem.alphas[:: max(1, len(problem.alphas) // 3)])
    options = Options(min(256, len(few.X)))
    plain = PEERS["plain_loop"].prepare(few, options)()
    return relative_error(plain, tuned_loop.prepare(double(few), options)())


def _checked(
    workload: Workload, problem: Problem, tunings: dict[str, Tuning], log: Callable[[str], None]
) -> tuple[dict[str, Variant], dict[str, Run]]:
    """Prepares and warms every variant and checks its values; a peer that is wrong or cannot run gets no time."""
    variants, runs = {OURS: Variant(OURS, OURS)}, {}
    quick_options = tunings["tuned_loop"].options or Options(workload.batch_sizes[0])
    expected: dict[bool, np.ndarray] = {}
    for name, peer in PEERS.items():
        tuning = tunings[name]
        variant = variants[name] = Variant(name, peer.title, tuning=tuning, first_call_s=tuning.first_call_s)
        if tuning.options is None:
            variant.reason = tuning.reason or "no candidate ran: " + str(tuning.tried[-1:])
            continue
        run = peer.prepare(problem, tuning.options)
        seconds, values = _timed(run)
        if name == "plain_loop":
            expected[False] = values
        elif peer.own_alphas:  # it answers another question: the plain loop answers that one too
            # The tuned loop, which has been checked by now, is the quicker judge.
            expected[True] = tuned_loop.prepare(peer.question(problem), quick_options)()
        variant.error = relative_error(values, expected[peer.own_alphas])
        if variant.error > TOLERANCE:
            variant.reason = f"values differ by {variant.error:.1e}, more than {TOLERANCE:.0e}: not timed"
            log(f"  {peer.title}: {variant.reason}")
            continue
        runs[name] = run
        variant.about["checked_run_s"] = seconds  # may hold compilation
    _check_ours(problem, variants[OURS], runs, expected[False])
    return variants, runs


def _check_ours(problem: Problem, ours: Variant, runs: dict[str, Run], expected: np.ndarray) -> None:
    """Warms mli_fast up; wrong or failing, it gets no time either, and its test fails with the reason."""
    try:
        run = prepare_ours(problem, ours.about)
        ours.first_call_s, values = _timed(run)
    except Exception as error:  # noqa: BLE001  any failure of ours is a result to report beside the peers' figures
        ours.reason = f"failed: {type(error).__name__}: {error}"
        return
    ours.error = relative_error(values, expected)
    if ours.error > TOLERANCE:
        ours.reason = f"values differ by {ours.error:.1e}, more than {TOLERANCE:.0e}: not timed"
        return
    runs[OURS] = run


def _set_aside_hopeless(runs: dict[str, Run], variants: dict[str, Variant]) -> None:
    """A peer whose run takes many seconds and many times the best peer's keeps its checked run as its only figure."""

    def least(variant: Variant) -> float:
        estimate = variant.tuning.estimate_s if variant.tuning else float("inf")
        return min(variant.about["checked_run_s"], estimate)

    peers = [name for name in runs if name not in (OURS, "plain_loop")]
    best = min((least(variants[name]) for name in peers), default=0.0)
    for name in peers:
        if least(variants[name]) > max(HOPELESS * best, 5.0):
            variants[name].seconds = [variants[name].about["checked_run_s"]]
            variants[name].about["timed_once"] = (
                f"over {HOPELESS:g} times the best peer; may hold seconds of compilation"
            )
            del runs[name]


def _interleave(runs: dict[str, Run], variants: dict[str, Variant], left_s: float, most: int = 9) -> None:
    """At least three rounds; in each, every variant once, the order turned by one.

    After the first round the peers that cannot be the best are left out; the plain loop, which has a column, stays.
    """
    _set_aside_hopeless(runs, variants)
    names = list(runs)
    started = time.perf_counter()
    for turn in range(most):
        if turn >= 3 and (time.perf_counter() - started) * (turn + 1) / turn > left_s:
            return
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            variants[name].seconds.append(_timed(runs[name])[0])
        if turn == 0:
            best = min(variants[name].seconds[0] for name in names if name != OURS)
            slow = {name for name in names if variants[name].seconds[0] > SLOW * best} - {OURS, "plain_loop"}
            names = [name for name in names if name not in slow]


def _timed(run: Run) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    values = run()
    return time.perf_counter() - started, values
