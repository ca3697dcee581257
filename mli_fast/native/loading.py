"""Finds the compiled module ``mli_fast._native``, or says why there is none."""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType


@lru_cache(maxsize=1)
def load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("MLI_FAST_NATIVE") == "0":
        return None, "switched off by MLI_FAST_NATIVE=0"
    try:
        native = importlib.import_module("mli_fast._native")
    except (ImportError, ValueError) as error:  # ValueError: MLI_FAST_ISA names a set that is not usable here
        return None, f"mli_fast._native cannot be imported: {error}"
    native.set_openmp(gomp_parallel())
    return native, None


def gomp_parallel() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch itself is linked to; 0 where there is none.

    Other packages bring runtimes of their own. A second pool of threads fights torch's, whose workers go on spinning
    for a while after each operation: four times slower was measured.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return 0
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    for path in paths:
        if Path(path).name == "libtorch_cpu.so":
            try:
                function = ctypes.CDLL(path).GOMP_parallel  # looked up in the library and all that it is linked to
            except (OSError, AttributeError):  # a runtime without GNU entry points
                return 0
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def module() -> ModuleType | None:
    """The compiled module, or None; then `why_missing` says why."""
    return load()[0]


def why_missing() -> str | None:
    """Why there are no compiled kernels here, or None if there are."""
    return load()[1]


def isa() -> str:
    """Name of the instruction set in use: "portable", "avx2" or "avx512"; "none" without the compiled module."""
    native = module()
    return "none" if native is None else native.isa()


def require() -> ModuleType:
    """The compiled module.

    Raises:
        RuntimeError: it is missing.
    """
    native, reason = load()
    if native is None:
        raise RuntimeError(f"no compiled kernels: {reason}")
    return native
