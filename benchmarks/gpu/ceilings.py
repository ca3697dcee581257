"""What the GPU can do at best: bytes copied, products, and how near our blends come to the copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.precision import DTYPES, fastest
from benchmarks.gpu.timing import interleaved, medians

PRODUCTS = ("bfloat16", "tf32", "float32")


def keys(tiny: bool = False) -> list[str]:
    """The ceilings' names."""
    return ["copy", *(f"gemm {name}" for name in PRODUCTS)]


def measure(key: str, seconds: float, emit: Callable[[dict[str, Any]], None], device: torch.device, tiny: bool) -> None:
    """One ceiling: TB/s read and written, or TFLOP/s."""
    budget = min(seconds / 2, 1.5)
    if key == "copy":
        source = torch.empty(2**10 if tiny else 2**30, dtype=torch.int32, device=device)
        target = torch.empty_like(source)
        ms = medians(interleaved({"copy": lambda: target.copy_(source)}, device, budget))["copy"]
        emit({"ms": ms, "tbps": 2 * source.nbytes / ms / 1e9})
        return
    precision, size = key.removeprefix("gemm "), 64 if tiny else 8192
    with fastest(precision):
        a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
        torch.mm(a, b)
        ms = medians(interleaved({"mm": lambda: torch.mm(a, b)}, device, budget))["mm"]
    emit({"ms": ms, "tflops": 2 * size**3 / ms / 1e9})
