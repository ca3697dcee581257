"""Finds the CUDA part of the compiled module, or says why it is of no use here."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mli_fast.native import loading


def built() -> Any | None:
    """The submodule ``mli_fast._native.cuda``, None where the build went without CUDA."""
    return getattr(loading.module(), "cuda", None)


def architectures() -> tuple[str, ...]:
    """What the CUDA kernels are compiled for, such as ("sm_80", "sm_90a", "compute_80"); empty without them."""
    module = built()
    return () if module is None else tuple(module.architectures.split())


@functools.cache
def why_missing() -> str | None:
    """Why no CUDA kernel can run here, None if one can. Does not start CUDA where there is no GPU."""
    if (reason := loading.why_missing()) is not None:
        return reason
    module = built()
    if module is None:
        return "the compiled module was built without CUDA"
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"the kernels need compute capability 8.0, this GPU has {torch.cuda.get_device_capability()}"
    missing: str | None = module.why_missing()
    return missing


def require() -> Any:
    """The submodule.

    Raises:
        RuntimeError: It is missing, or there is no GPU that it could run on.
    """
    if (reason := why_missing()) is not None:
        raise RuntimeError(f"no CUDA kernels: {reason}")
    return built()


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def launch_on(device: torch.device) -> tuple[int, int]:
    """Number of the device and address of its current stream, as the kernels are told them."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
