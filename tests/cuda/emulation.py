"""Compiles CUDA sources for the CPU, with headers of `emulated/` in place of what only a GPU has; their test values."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

EMULATED = Path(__file__).parent / "emulated"
SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"


def _headers() -> Path | None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    places = ([Path(nvcc).resolve().parents[1] / "include"] if nvcc else []) + [Path("/usr/local/cuda/include")]
    return next((p for p in places if (p / "cuda_bf16.h").exists()), None)


def build(
    folder: Path, sources: Mapping[str, str], replacements: Iterable[Path], units: Sequence[str], *flags: str
) -> ctypes.CDLL:
    """A library of `units`, compiled in `folder` beside the sources (name -> text) and the replacements, which win."""
    include, compiler = _headers(), shutil.which("g++")
    if include is None or compiler is None:
        pytest.skip(f"needs g++ ({compiler}) and CUDA's headers ({include})")
    for name, text in sources.items():
        (folder / name).write_text(text)
    for path in replacements:
        shutil.copy(path, folder)
    library = folder / "emulated.so"
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-w", f"-I{include}", *flags]
    subprocess.run([*command, "-x", "c++", *units, "-o", library], check=True, cwd=folder)
    return ctypes.CDLL(str(library))


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rounded(x: Tensor) -> Tensor:
    """float32 to the nearest TF32 value, ties away from zero."""
    bits = x.view(torch.int32)
    return torch.where(torch.isfinite(x), (bits + 0x1000) & ~0x1FFF, bits).view(torch.float32)
