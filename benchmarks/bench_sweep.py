"""Every workload x every variant. A workload's variants are measured together, in turns, on its first test."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.measure import OURS, Measurement, Variant, measure
from benchmarks.peers import PEERS
from benchmarks.workloads import SETS

VARIANTS = (OURS, *PEERS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    workloads = SETS[metafunc.config.getoption("--sizes")]
    if metafunc.config.getoption("--whole"):
        workloads = tuple(replace(workload, sampled=None) for workload in workloads)
    metafunc.parametrize("workload", workloads, ids=lambda workload: workload.name, scope="module")
    metafunc.parametrize("variant", VARIANTS)


class Replay:
    """A timer for pytest-benchmark that returns rounds already measured, since it cannot take variants in turns."""

    __name__ = "interleaved_perf_counter"

    def __init__(self, seconds: list[float]) -> None:
        self.ticks = itertools.chain.from_iterable((0.0, value) for value in seconds)

    def __call__(self) -> float:
        return next(self.ticks)


@pytest.fixture(scope="module")
def measurements(request: pytest.FixtureRequest, summary: dict[str, Any]) -> Any:
    """workload -> Measurement, measured once and added to the summary."""
    done: dict[str, Measurement] = {}
    failed: dict[str, BaseException] = {}
    option = request.config.getoption
    deadline = time.monotonic() + 60 * option("--minutes")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {spec.params["workload"].name for spec in specs if spec and "workload" in spec.params}
    reporter: Any = request.config.pluginmanager.get_plugin("terminalreporter")

    def get(workload: Any) -> Measurement:
        if workload.name in failed:
            raise AssertionError(f"{workload.name} was not measured") from failed[workload.name]
        if workload.name not in done:
            # What one row leaves over goes to the rest.
            seconds = max(10.0, (deadline - time.monotonic()) / max(1, len(wanted) - len(done) - len(failed)))
            try:
                done[workload.name] = measure(workload, seconds, reporter.write_line)
            except Exception as error:
                failed[workload.name] = error  # measured once: the other variants of the row report the same failure
                raise
            summary["rows"].append(done[workload.name].as_json())
        return done[workload.name]

    return get


@pytest.fixture
def measured(workload: Any, variant: str, measurements: Any, request: pytest.FixtureRequest) -> Variant:
    """One variant of one workload; comes before `benchmark`, which reads its timer from the marker set here."""
    found = measurements(workload).variants[variant]
    if found.seconds:
        request.node.add_marker(pytest.mark.benchmark(group=workload.title, timer=Replay(found.seconds)))
    return found


def test_sweep(measured: Variant, benchmark: Any) -> None:
    if not measured.seconds and measured.name == OURS:
        pytest.fail(f"{OURS} {measured.reason}", pytrace=False)
    if not measured.seconds:
        pytest.skip(measured.reason or "not measured")
    benchmark.extra_info["max_relative_error"] = measured.error
    benchmark.pedantic(lambda: None, rounds=len(measured.seconds))
