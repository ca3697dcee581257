"""Our kernels against PyTorch's own operations: values first, by a float64 judge, then times, all ways interleaved."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import BUILDERS, Bench, Case, all_cases, tiny_cases
from benchmarks.gpu.precision import DTYPES, fastest
from benchmarks.gpu.timing import OutOfTime, interleaved, medians, wait, within
from mli_fast.ops.backend import backends, requested, usable
from mli_fast.ops.dispatch import architecture

ROUTES = ("reference", "triton", "native")
COMPILE_S = 12.0  # that a route may take at the least for its first call
UNITS = 4  # in the last place that a result may be off beyond twice the vendor's error


def keys(tiny: bool = False) -> list[str]:
    """The names of all cases."""
    return list(_cases(tiny))


def _cases(tiny: bool) -> dict[str, Case]:
    return {case.key: case for case in (tiny_cases() if tiny else all_cases())}


class Asked:
    """Calls with one backend asked for, as within one sweep: what is laid out once per sweep is laid out once."""

    def __init__(self, backend: str, tf32: bool) -> None:
        self._context, self._stack = contextvars.copy_context(), ExitStack()
        self.choice = self._context.run(self._stack.enter_context, requested(backend, tf32))

    def close(self) -> None:
        """To be called when the last call is done."""
        self._context.run(self._stack.close)

    def wrap(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` with that backend, and with cuDNN's switches as a sweep sets them."""

        def run() -> Any:
            cudnn = torch.backends.cudnn
            before = cudnn.benchmark, cudnn.deterministic
            cudnn.benchmark, cudnn.deterministic = False, True
            try:
                return self._context.run(work)
            finally:
                cudnn.benchmark, cudnn.deterministic = before

        return run

    def kernel(self, op: str) -> str:
        """The kernel that computed `op`, "reference" where PyTorch's own operations did."""
        found = sorted(name.partition(":")[2] for name in self.choice.used if name.startswith(f"{op}:"))
        return next((name for name in found if name != "reference"), "reference")


def measure(key: str, seconds: float, emit: Callable[[dict[str, Any]], None], device: torch.device, tiny: bool) -> None:
    """One case: a row for each route, the vendor's time in all of them."""
    case, ends = _cases(tiny)[key], time.monotonic() + seconds
    with torch.no_grad(), fastest(case.dtype), ExitStack() as stack:
        torch.manual_seed(0)
        bench = BUILDERS[case.op](case, device)
        exact = bench.exact()
        vendor_error = error_of(bench.picked(bench.vendor()), exact)
        rows, works = _checked(case, bench, exact, vendor_error, device, ends, stack)
        emit({"rows": rows})
        left = min(1.0, max(0.15 * seconds, ends - time.monotonic() - 0.3 * seconds))
        found = medians(interleaved({"vendor": bench.vendor, **works}, device, left))
    for row in rows:
        ms = found.get(row["route"])
        if ms is None:
            continue
        row |= {"ms": ms, "vendor_ms": found["vendor"], "ratio": found["vendor"] / ms}
        row |= {"tflops": bench.flops / ms / 1e9, "gbps": bench.moved / ms / 1e6}
        row["plain_ms"] = min((found[r["route"]] for r in rows if r["plain"] and r["route"] in found), default=None)
    emit({"rows": rows})


def error_of(values: Tensor, exact: Tensor) -> dict[str, float]:
    """The largest and the mean (root of squares) difference, relative to the largest and the mean exact value."""
    off = values.double() - exact
    largest, norm = float(exact.abs().max()), float(exact.norm())
    return {"error": float(off.abs().max()) / max(largest, 1e-300), "rms_error": float(off.norm()) / max(norm, 1e-300)}


def _checked(
    case: Case,
    bench: Bench,
    exact: Tensor,
    vendor_error: dict[str, float],
    device: torch.device,
    ends: float,
    stack: ExitStack,
) -> tuple[list[dict[str, Any]], dict[str, Callable[[], Any]]]:
    """Runs every route once: a row for each, and the calls of those whose values are right."""
    arch = architecture(device)[0]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    eps = torch.finfo(DTYPES[case.other or case.dtype] if case.op in ("blend", "combine") else DTYPES[case.dtype]).eps
    rows, works = [], {}
    routes = [(name, name, bench.ours) for name in ROUTES]
    routes += [(f"vendor on {name} blend", name, work) for name, work in bench.plain.items()]
    for route, backend, work in routes:
        row: dict[str, Any] = {"op": case.op, "kernel": None, "route": route, "dtype": case.dtype, "other": case.other}
        row |= {"shape_class": bench.cls, "shape": case.text, "arch": arch, "gpu": gpu, "goal": case.goal}
        row |= {"vendor": bench.about_vendor, "plain": route == "reference" or work is not bench.ours}
        row |= {f"vendor_{name}": value for name, value in vendor_error.items()}
        row |= {"correct": None, "reason": None}
        rows.append(row)
        if not usable(backend, device.type) and not (backend == "triton" and usable("triton", "cpu")):
            row["reason"] = f"{backend} is not usable here: {backends()[backend]['reason']}"
            continue
        asked = Asked(backend, case.dtype == "tf32")
        stack.callback(asked.close)
        call = asked.wrap(work)
        try:
            with within(max(COMPILE_S, ends - time.monotonic()), f"{case.key} by {route}"):
                values = bench.picked(call())  # compiles, where it has to
                call()
        except OutOfTime as error:
            row["reason"] = str(error)
            continue
        except Exception as error:  # noqa: BLE001  a kernel that fails is a result
            row |= {"correct": False, "reason": f"{type(error).__name__}: {str(error)[:300]}"}
            try:
                wait(device)
            except Exception as fault:  # the GPU takes no more work from this process
                raise RuntimeError(f"{route}: {error}") from fault
            continue
        row["kernel"] = asked.kernel(case.op) if not row["plain"] else "reference"
        if row["kernel"] == "reference" and not row["plain"]:
            row["reason"] = f"no {backend} kernel takes this"
            continue
        row |= error_of(values, exact)
        row["correct"] = row["error"] <= 2 * vendor_error["error"] + UNITS * eps
        if row["correct"]:
            works[route] = call
        else:
            row["reason"] = f"error {row['error']:.1e} against float64, the vendor's is {vendor_error['error']:.1e}"
    return rows, works
