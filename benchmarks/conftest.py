"""Options of the benchmarks, and the one JSON they write: pytest-benchmark's, with our summary in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, table

SUMMARY = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mli_fast benchmarks")
    group.addoption("--sizes", choices=("main", "other", "quick"), default="main", help="which workloads")
    group.addoption("--whole", action="store_true", help="peers are timed at all points of every row")
    group.addoption("--minutes", type=float, default=9.0, help="wall time for the sweeps, shared by the workloads")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[SUMMARY] = {"load_at_start": os.getloadavg(), "rows": [], "memory": None}


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What the table is made of; every benchmark adds its part."""
    return pytestconfig.stash[SUMMARY]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.describe())


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """The commit measured, and whether the tree had changes; None outside a repository."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    return {"id": git("rev-parse", "--verify", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["versions"] = machine.versions()
    output_json["mli_fast"] = config.stash[SUMMARY]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash[SUMMARY]
    if found["rows"] or found["memory"]:
        terminalreporter.write_sep("=", "mli_fast against its peers")
        terminalreporter.write_line(table.markdown(found))
        terminalreporter.write_line("")
        terminalreporter.write_line(table.details(found))
