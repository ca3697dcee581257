"""Batch-norm policies: where the running statistics of a point come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

POLICIES = ("interpolate", "start", "end")
LATER = ("recalibrate", "recalibrate-ema", "batch")


def check(policy: str, calibration: object) -> None:
    """Raise unless this version has the policy.

    Raises:
        ValueError: unknown, not there yet, or `calibration` given to a policy that uses none.
    """
    if policy in LATER:
        raise ValueError(
            f"batch_norm={policy!r} comes with a later version of mli_fast; this one has "
            f"{', '.join(map(repr, POLICIES))}"
        )
    if policy not in POLICIES:
        raise ValueError(f"batch_norm={policy!r} is not one of {', '.join(map(repr, POLICIES + LATER))}")
    if calibration is not None:
        raise ValueError(f"calibration is used by batch_norm='recalibrate' alone; batch_norm={policy!r} needs none")


def running_statistics(model: nn.Module) -> list[str]:
    """The names of every batch norm's running mean and variance."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer in ("running_mean", "running_var")
        if getattr(module, buffer) is not None
    ]


def coefficients(model: nn.Module, policy: str, default: Tensor) -> dict[str, Tensor]:
    """The coefficients [P, R] of the running statistics where they do not move as the parameters do.

    Args:
        model: the architecture.
        policy: "interpolate" (as the parameters), "start" (the first anchor's), "end" (the last anchor's).
        default: float64 [P, R], those of the parameters.
    """
    if policy == "interpolate":
        return {}
    held = torch.zeros_like(default)
    held[:, 0 if policy == "start" else -1] = 1.0
    return dict.fromkeys(running_statistics(model), held)
