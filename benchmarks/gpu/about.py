"""What the figures belong to: GPU, driver, versions, commit. `python -m benchmarks.gpu.about` prints it as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = 2  # exit status


def said(*command: str) -> str | None:
    """What a command prints, None where it fails or there is none."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> dict[str, Any]:
    """The commit, and whether the tree had changes; None where there is no git."""
    status = said("git", "status", "--porcelain")
    return {"id": said("git", "rev-parse", "--verify", "HEAD"), "dirty": None if status is None else bool(status)}


def gpu() -> dict[str, Any]:
    """The GPU that is used, and its driver.

    Raises:
        RuntimeError: there is none, or no PyTorch that sees it; one sentence.
    """
    try:
        import torch
    except ImportError:
        raise RuntimeError(f"gpu-check needs PyTorch with CUDA, and {sys.executable} has no torch.") from None
    if not torch.cuda.is_available():
        raise RuntimeError(f"gpu-check needs an NVIDIA GPU, and PyTorch {torch.__version__} sees none here.")
    properties = torch.cuda.get_device_properties(0)
    query = ("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader", "--id=0")
    return {
        "name": torch.cuda.get_device_name(0),
        "capability": "sm_{}{}".format(*torch.cuda.get_device_capability(0)),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "count": torch.cuda.device_count(),
        "driver, largest clock, power limit": said(*query),
    }


def versions() -> dict[str, Any]:
    """Of all that was measured, and of what built it."""
    import torch

    from benchmarks.machine import _version
    from benchmarks.machine import versions as python_packages

    more = {name: _version(name) for name in ("triton", "transformers", "torchvision", "pytest", "pybind11", "xarray")}
    nvcc = said("nvcc", "--version")
    cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None}
    return python_packages() | more | cuda | {"nvcc": nvcc.splitlines()[-1] if nvcc else None}


def main() -> int:
    from benchmarks.machine import describe

    try:
        found = {"gpu": gpu()}
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return NO_GPU
    print(json.dumps(found | {"versions": versions(), "machine": describe(), "commit": commit()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
