"""The Triton kernels' block sizes, measured on this GPU before anything is timed and kept on disk for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import BUILDERS, Case
from benchmarks.gpu.kernels import UNITS, Asked, error_of
from benchmarks.gpu.precision import DTYPES, fastest
from benchmarks.gpu.timing import OutOfTime, interleaved, medians, within

CASES = {
    f"{case.op} {case.dtype} {case.text}": case
    for case in (
        Case("linear", "bfloat16", (50, 512, 1024, 1024)),
        Case("linear", "bfloat16", (8, 4096, 2048, 2048)),
        Case("linear", "bfloat16", (50, 64, 4096, 4096)),
        Case("linear", "bfloat16", (50, 16, 4096, 4096)),
        Case("linear_of_products", "bfloat16", (16, 4096, 1024, 1024)),
        Case("linear", "float32", (16, 4096, 1024, 1024)),
        Case("linear", "tf32", (16, 4096, 1024, 1024)),
        Case("linear", "float32", (50, 512, 1024, 1024)),
    )
}


def keys(tiny: bool = False) -> list[str]:
    """What is tuned, the most useful first."""
    return list(CASES)


def measure(key: str, seconds: float, emit: Callable[[dict[str, Any]], None], device: torch.device, tiny: bool) -> None:
    """Try the default and then the candidates until the time is over; the fastest right one is kept."""
    from mli_fast.ops import launching

    case = CASES[key]
    if tiny:
        case = Case(case.op, case.dtype, (2, case.shape[1] // 256 + 1, 17, 19))
    ends = time.monotonic() + seconds
    asked = Asked("triton", case.dtype == "tf32")
    with torch.no_grad(), fastest(case.dtype):
        bench = BUILDERS[case.op](case, device)
        exact, call = bench.exact(), asked.wrap(bench.ours)
        allowed = 2 * error_of(bench.picked(bench.vendor()), exact)["error"]
        allowed += UNITS * torch.finfo(DTYPES[case.dtype]).eps

        def limited() -> Tensor:
            try:
                with within(max(0.05, ends - time.monotonic()), "tuning"):
                    return call()
            except OutOfTime as error:
                raise TimeoutError(str(error)) from None

        def timed(work: Callable[[], Tensor]) -> float:
            return medians(interleaved({"it": work}, device, 0.1))["it"]

        cls = launching.rows_class(case.shape[1])
        standard = launching.default(case.op, case.dtype, cls, launching.capability(device))
        others = [c for c in launching.TUNABLE[case.op](case.dtype, cls) if dict(c) != dict(standard)]
        candidates = [standard, *others][: 2 if tiny else None]
        outcomes = launching.tune(
            case.op,
            case.dtype,
            cls,
            limited,
            lambda values: error_of(bench.picked(values), exact)["error"] <= allowed,
            candidates=candidates,
            measure=timed,
        )
        rows: list[dict[str, Any]] = [
            {"configuration": dict(c), "outcome": o if isinstance(o, float) else o[:200]} for c, o in outcomes
        ]
    asked.close()
    measured = sorted((r for r in rows if isinstance(r["outcome"], float)), key=lambda r: r["outcome"])
    emit({"kernel": case.op, "dtype": case.dtype, "shape_class": cls, "tried": len(measured), "of": len(rows)})
    emit({"default_ms": rows[0]["outcome"], "best": measured[:1], "outcomes": rows})
