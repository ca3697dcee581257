"""The options that every API function takes, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mli_fast import batch_norm as batch_norms
from mli_fast.engine.batches import Forward
from mli_fast.engine.passes import STATES
from mli_fast.reducers import check_metrics

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GPU_PRECISIONS = ("tf32", "fp16")


@dataclass(frozen=True)
class Options:
    """See `mli_fast.sweep`.

    Raises:
        ValueError: an option that does not fit; the message names it.
        TypeError: of the wrong kind.
    """

    criterion: str | Callable[[Any, Any], Tensor] = "cross_entropy"
    metrics: Iterable[str] | Mapping[str, Callable[[Any, Any], Tensor]] = ("accuracy",)
    batch_norm: str = "interpolate"
    calibration: Any = None
    schedule: Mapping[str, Any] | None = None
    precision: str | None = None
    device: str | torch.device | None = None
    backend: str = "auto"
    forward: Forward | None = None
    chunk: int | str = "auto"
    compile: bool | str = "auto"
    progress: bool | None = None
    check: bool | str = True
    state: str | None = None

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is not one of None, {', '.join(map(repr, PRECISIONS))}")
        chunk = self.chunk
        if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
            raise ValueError(f"chunk={chunk!r}: expected 'auto' or a number of points, at least 1")
        if self.compile not in ("auto", True, False):
            raise ValueError(f"compile={self.compile!r}: expected 'auto', True or False")
        if self.check not in ("all", True, False):
            raise ValueError(f"check={self.check!r}: expected True, False or 'all'")
        if self.state not in STATES:
            raise ValueError(
                f"state={self.state!r}: expected None, or 'per-batch' where a batch starts from the model as given"
            )
        batch_norms.check(self.batch_norm, self.calibration)
        object.__setattr__(self, "metrics", self.metrics if isinstance(self.metrics, Mapping) else _names(self.metrics))
        check_metrics(self.metrics)

    @property
    def dtype(self) -> torch.dtype | None:
        """The compute dtype, None for the parameters' own."""
        return None if self.precision is None else PRECISIONS[self.precision]

    def place(self, model: nn.Module) -> torch.device:
        """Where the work is done.

        Raises:
            TypeError: the model is not an nn.Module.
            ValueError: no such device, or one without the precision asked for.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, the architecture, got {type(model).__name__}")
        place = self._device(next(iter(model.parameters()), None))
        if self.precision in GPU_PRECISIONS and place.type != "cuda":
            here = ", ".join(repr(p) for p in PRECISIONS if p not in GPU_PRECISIONS)
            raise ValueError(f"precision={self.precision!r} needs a GPU; on {place} there are {here}")
        return place

    def _device(self, first: Tensor | None) -> torch.device:
        given = self.device
        if given is None:
            given = "cpu" if first is None or first.device.type == "meta" else first.device
        called = f"device={str(given)!r}"
        try:
            place = torch.device(given)
            if place.type == "cuda" and not torch.cuda.is_available():
                raise ValueError(f"{called} is not available: this PyTorch sees no GPU")
            if place.type != "cpu":  # as coefficients are
                torch.empty(1, dtype=torch.float64, device=place)
        except (RuntimeError, AssertionError, ImportError, TypeError) as error:
            raise ValueError(
                f"{called} cannot be used: this PyTorch has no such device, or none with float64; pass 'cpu', or 'cuda'"
                " for a GPU"
            ) from error
        if place.type == "meta":
            raise ValueError(f"{called} holds no values; pass 'cpu', or 'cuda' for a GPU")
        if place.type == "cuda" and place.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return place


def _names(metrics: Any) -> tuple[str, ...]:
    if isinstance(metrics, str):
        return (metrics,)
    if not isinstance(metrics, Iterable):
        raise TypeError(
            "metrics: expected names, or a dict name -> callable (outputs, targets) -> [B]; () for none, got "
            f"{type(metrics).__name__}"
        )
    return tuple(metrics)
