"""sweep() against its peers: values first, peers at their best batch size, then interleaved rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.peers import PEERS, PLAIN, SCALED_ALPHAS, Options, Peer, Run
from benchmarks.gpu.precision import fastest
from benchmarks.gpu.timing import OutOfTime, seconds, within
from benchmarks.gpu.workloads import WORKLOADS, Problem, Workload
from benchmarks.gpu.workloads import tiny as smaller
from benchmarks.measure import relative_error
from benchmarks.peers import Unavailable

OURS = "mli_fast"
NAMES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16"}  # of sweep(precision=)
SLOW = 2.0  # a peer so many times slower than the best is timed in the first round alone
ROUNDS = 5


def keys(tiny: bool = False) -> list[str]:
    """The workloads, each in one precision."""
    return list(WORKLOADS)


def measure(key: str, budget: float, emit: Callable[[dict[str, Any]], None], device: torch.device, tiny: bool) -> None:
    """One workload: a variant for mli_fast and for every peer, with what was tried, its error and its seconds."""
    ends = time.monotonic() + budget
    workload = smaller(WORKLOADS[key]) if tiny else WORKLOADS[key]
    problem, about = workload.build(device)
    row: dict[str, Any] = {"workload": workload.name, "title": workload.title, "precision": workload.precision}
    row |= {"data": about, "goal": workload.goal, "goal_plain": workload.goal_plain, "variants": {}}
    expected, few = reference(workload, problem)
    row |= {"reference": "float64" if workload.exact else "float32", "tolerance": workload.tolerance}
    emit(row)
    variants, runs = row["variants"], {}
    torch._dynamo.config.recompile_limit = 64  # all candidates stay compiled until the rounds
    with fastest(workload.precision):
        ours = variants[OURS] = {"title": OURS, "seconds": []}
        runs[OURS] = _checked(ours, lambda: prepare_ours(problem, workload, ours), expected, few, workload.tolerance)
        emit(row)
        for index, (name, peer) in enumerate(PEERS.items()):
            candidates = peer.candidates(workload)
            if not candidates:
                continue
            # a fifth is left for the rounds, and no peer may take all that the later ones need
            share = (0.8 * budget - (budget - (ends - time.monotonic()))) / (len(PEERS) - index)
            variants[name] = {"title": peer.title, "seconds": []}
            runs[name] = _tuned(peer, candidates, problem, variants[name], max(2 * share, 1.0), expected, few, workload)
            emit(row)
        if workload.precision == "float32":
            variants[PLAIN.name] = _plain(workload, problem, expected, few, max(2.0, ends - time.monotonic()))
            emit(row)
        timed = {name: run for name, run in runs.items() if run is not None}
        _rounds(timed, variants, device, ends, lambda: emit(row))
    emit(summarised(row))


def reference(workload: Workload, problem: Problem) -> tuple[np.ndarray, list[int]]:
    """The losses at the ends and in the middle, in wider arithmetic, and which alphas these are."""
    few = sorted({0, len(problem.alphas) // 2, len(problem.alphas) - 1})
    wide = problem.cast(torch.float64 if workload.exact else torch.float32).at(problem.alphas[few])
    with fastest("float32"):
        return PEERS["loop"].prepare(wide, Options(workload.loop_batches[0]))(), few


def prepare_ours(problem: Problem, workload: Workload, about: dict[str, Any]) -> Run:
    """The whole public call, defaults throughout."""
    from mli_fast import sweep

    device = problem.X.device
    model = problem.factory().eval()
    loader: Any = (problem.X, problem.y)
    if workload.language:
        parts = zip(problem.X.split(32), problem.y.split(32), strict=True)
        loader = [{"input_ids": x, "labels": y} for x, y in parts]
    criterion = "causal_lm" if workload.language else "cross_entropy"
    # TF32 exists on a GPU alone: elsewhere this only runs the code
    precision = None if device.type == "cpu" and problem.precision == "tf32" else NAMES[problem.precision]

    def run() -> np.ndarray:
        result = sweep(
            model,
            problem.start,
            problem.end,
            loader,
            problem.alphas,
            criterion=criterion,
            precision=precision,
            device=device,
            progress=False,
        )
        kept = ("engine", "engine_reason", "backend", "kernels", "chunk", "rows_per_pass", "compiled")
        about["provenance"] = {name: result.provenance[name] for name in kept if name in result.provenance}
        return np.asarray(result.loss)

    return run


def _checked(
    variant: dict[str, Any], prepare: Callable[[], Run], expected: np.ndarray, few: list[int], tolerance: float
) -> Run | None:
    """The first run, whose values decide whether there are others."""
    started = time.perf_counter()
    try:
        run = prepare()
        values = run()
    except Unavailable as error:
        variant["reason"] = str(error)
        return None
    except Exception as error:  # noqa: BLE001  a way that fails is a result
        variant |= {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
        return None
    variant["first_call_s"] = time.perf_counter() - started
    variant["error"] = relative_error(values[few], expected)
    variant["correct"] = variant["error"] <= tolerance
    if not variant["correct"]:
        variant["reason"] = f"losses are off by {variant['error']:.1e}, more than {tolerance:.0e}"
        return None
    return run


def _tuned(
    peer: Peer,
    candidates: list[Options],
    problem: Problem,
    variant: dict[str, Any],
    limit: float,
    expected: np.ndarray,
    few: list[int],
    workload: Workload,
) -> Run | None:
    """The peer at the fastest of its candidates, in so many seconds; what time did not allow is left out, and said."""
    best: tuple[float, Run, Options] | None = None
    tried: list[dict[str, Any]] = []
    variant["tried"] = tried
    try:
        with within(limit, peer.title):
            for options in candidates:
                found: dict[str, Any] = {}
                run = _checked(found, partial(peer.prepare, problem, options), expected, few, workload.tolerance)
                tried.append({**asdict(options), **found})
                if run is None:
                    continue
                took = seconds(run, problem.X.device)
                tried[-1]["seconds"] = took
                if best is None or took < best[0]:
                    best = took, run, options
                    variant |= {k: found[k] for k in ("error", "correct", "first_call_s")} | {
                        "options": asdict(options)
                    }
    except OutOfTime as error:
        variant["cut_off"] = f"{error}: {len(tried)} of {len(candidates)} candidates tried"
    if best is None:
        variant["reason"] = next((t.get("failed") or t.get("reason") for t in tried), None) or variant.get("cut_off")
        return None
    return best[1]


def _plain(workload: Workload, problem: Problem, expected: np.ndarray, few: list[int], limit: float) -> dict[str, Any]:
    """The plain loop, timed at a few alphas and scaled to all."""
    options = PLAIN.candidates(workload)[0]
    variant: dict[str, Any] = {"title": PLAIN.title, "seconds": [], "options": asdict(options)}
    ends = few[:: len(few) - 1][:SCALED_ALPHAS] if len(few) > 1 else few
    part = problem.at(problem.alphas[ends])
    try:
        with within(limit, PLAIN.title):
            run = PLAIN.prepare(part, options)
            started = time.perf_counter()
            values = run()
            took = time.perf_counter() - started
    except OutOfTime as error:
        return variant | {"reason": str(error)}
    variant["error"] = relative_error(values, expected[[few.index(i) for i in ends]])
    variant["correct"] = variant["error"] <= workload.tolerance
    variant["seconds"] = [took * len(problem.alphas) / len(ends)]
    variant["scaled"] = f"from {len(ends)} of {len(problem.alphas)} alphas"
    return variant


def _rounds(
    runs: dict[str, Run],
    variants: dict[str, dict[str, Any]],
    device: torch.device,
    ends: float,
    emit: Callable[[], None],
) -> None:
    """Everyone once per round, the order turned by one; at least two rounds."""
    names = list(runs)
    for run in runs.values():
        run()
    started = time.monotonic()
    for turn in range(ROUNDS):
        if turn >= 2 and time.monotonic() + (time.monotonic() - started) / turn > ends:
            break
        gc.collect()
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            variants[name]["seconds"].append(seconds(runs[name], device))
        if turn == 0 and names:
            peers = [variants[name]["seconds"][0] for name in names if name != OURS]
            best = min(peers, default=float("inf"))
            names = [n for n in names if n == OURS or variants[n]["seconds"][0] <= SLOW * best]
        emit()


def summarised(row: dict[str, Any]) -> dict[str, Any]:
    """The row with everyone's median, the best peer, and the ratios that count."""
    for variant in row["variants"].values():
        variant["median_s"] = statistics.median(variant["seconds"]) if variant["seconds"] else None
    ours, plain = row["variants"][OURS]["median_s"], row["variants"].get(PLAIN.name, {}).get("median_s")
    peers = {n: v["median_s"] for n, v in row["variants"].items() if n not in (OURS, PLAIN.name) and v["median_s"]}
    best = min(peers, key=lambda name: peers[name], default=None)
    row |= {"ours_s": ours, "best_peer": best, "best_peer_s": peers.get(best) if best else None}
    row["ratio"] = peers[best] / ours if best and ours else None
    row["ratio_plain"] = plain / ours if plain and ours else None
    return row
