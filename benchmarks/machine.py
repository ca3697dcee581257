"""The machine and the versions a figure belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "jax", "jaxlib", "loss-landscapes", "scikit-learn", "pytest-benchmark")
ISA = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def describe() -> dict[str, Any]:
    """CPU model, cores, instruction sets, memory and threads; no host name, no path."""
    info = _proc("cpuinfo")
    flags = set(info.get("flags", info.get("Features", "")).split())
    memory = int(_proc("meminfo").get("MemTotal", "0 kB").split()[0])
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [name for name in ISA if name in flags],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**20, 1),
        "system": platform.system(),
    }


def versions() -> dict[str, str | None]:
    """Versions of everything that was measured; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "mli_fast": _own_version()}
    return found | {name: _version(name) for name in PACKAGES}


def _own_version() -> str:
    import mli_fast  # asked itself: it may run from the working tree, not installed

    return mli_fast.__version__


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _proc(name: str) -> dict[str, str]:
    """The first value of each key of a file under /proc; empty where there is none."""
    path = Path("/proc") / name
    values: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
    return values
