"""The verb: evaluate a network along the line between two parameter sets, in one pass over the data."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mli_fast import batch_norm as batch_norms
from mli_fast import native, version
from mli_fast.buffers import reused
from mli_fast.checkpoints import Anchors, Source, gather
from mli_fast.criteria import criterion as criterion_of
from mli_fast.engine import Work, run
from mli_fast.engine.batches import Forward, checked_loader, checked_pair, cut, default_forward, is_pair
from mli_fast.engine.feeding import resident
from mli_fast.engine.guard import on, random_state_kept
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.engine.rows import bytes_per_example, rows_per_pass
from mli_fast.ops.backend import requested, require, triton_version
from mli_fast.ops.dispatch import KERNELS
from mli_fast.paths import Line
from mli_fast.reducers import Reducer, check_metrics
from mli_fast.result import SweepResult

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GPU_PRECISIONS = ("tf32", "fp16")


class NonFiniteWarning(UserWarning, RuntimeWarning):
    """A checkpoint holds NaN or Inf."""


def sweep(
    model: nn.Module,
    theta_0: Source,
    theta_T: Source,
    loader: Iterable[Any] | tuple[Tensor, Tensor],
    alphas: int | Any = 50,
    *,
    criterion: str | Callable[[Any, Any], Tensor] = "cross_entropy",
    metrics: Iterable[str] | Mapping[str, Callable[[Any, Any], Tensor]] = ("accuracy",),
    batch_norm: str = "interpolate",
    calibration: Any = None,
    schedule: Any = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    backend: str = "auto",
    forward: Forward | None = None,
    chunk: int | str = "auto",
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> SweepResult:
    """Loss and accuracy at theta(alpha) = (1 - alpha) theta_0 + alpha theta_T for many alpha (Goodfellow et al. 2014).

    The data is read once. The model runs in eval mode on a private copy; the model, both checkpoints and the random
    states are afterwards as they were.

    Args:
        model: the architecture; its own values are not used and not changed.
        theta_0: a state dict, a module, a path to .pt/.pth (read with weights_only=True) or .safetensors, or a folder
            of shards.
        theta_T: likewise; alpha = 1.
        loader: an iterable of (inputs, targets), or of dicts whose `labels` are the targets; or one pair (X, y) of
            tensors, cut into batches here.
        alphas: a count (that many from 0 to 1), or any 1-D sequence; values outside [0, 1] extrapolate.
        criterion: "cross_entropy", "mse", "nll", "bce_with_logits", "causal_lm", or a callable (outputs, targets) ->
            per-example losses [B]; a 0-d result is taken as the batch mean.
        metrics: of "accuracy", "class_loss", "class_accuracy", "prediction_histogram", or a dict name -> callable
            (outputs, targets) -> [B].
        batch_norm: running statistics "interpolate" as the parameters do, or are those of the "start" or the "end".
        calibration: for policies of a later version.
        schedule: None; schedules come with a later version.
        precision: None (the parameters' own), "fp64", "fp32", "bf16" (operands rounded to bfloat16, sums in float32);
            on a GPU also "fp16", likewise, and "tf32" (float32 whose products round their operands to TF32). Elsewhere
            float32 is float32: PyTorch's TF32 switches are set for the call and put back.
        device: where to work; None: where the model is.
        backend: "auto" (the kernels that were measured to win on such a device, see `mli_fast.backends`), "reference"
            (plain PyTorch), "native" (the compiled kernels), "triton" (on a GPU).
        forward: (model, batch) -> (outputs, targets), for any other layout of a batch.
        chunk: the number of points per pass of the vmap engine, or "auto".
        compile: True runs the vmapped network through torch.compile. On a GPU "auto" records passes as CUDA graphs
            where launching them is what takes the time, which a pass of the sweep itself shows. False does neither.
        progress: True, False, or None: a bar if the standard error is a terminal.

    Returns:
        A `SweepResult`: float64 loss, accuracy, ... per alpha, with standard errors and the provenance.

    Raises:
        ValueError: checkpoints, alphas, data or options that do not fit; the message names the key, shapes or batch.
        TypeError: arguments of the wrong kind.
        Exception: what the model, the loader or a metric raises, with the batch and the points in its notes.

    Example:
        >>> import torch, mli_fast
        >>> a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> result = mli_fast.sweep(a, a, b, (torch.randn(7, 3), torch.arange(7) % 2), alphas=5)
        >>> result.loss.shape, result.count
        ((5,), 7)
    """
    line = Line(alphas)
    dtype = _checked_options(schedule, precision, chunk, compile)
    tf32 = precision == "tf32"
    batch_norms.check(batch_norm, calibration)
    scored = criterion_of(criterion)
    names, functions = check_metrics(metrics)
    place = _device(model, device)
    _check_precision(precision, place)
    require(backend, place)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: the sweep compiles for itself
    started = time.perf_counter()
    with (
        on(place, tf32),
        random_state_kept(),
        torch.inference_mode(False),
        torch.no_grad(),
        requested(backend, tf32) as choice,
        reused(),
    ):
        pair = checked_pair(loader) if is_pair(loader) else None
        anchors = gather(model, (theta_0, theta_T))
        _warn(anchors)
        points = _points(model, line, anchors, batch_norm, dtype, place)
        network = Network(model, forward or default_forward, dtype, place)
        reducer = Reducer(scored, names, functions, len(line.alphas))
        work = Work(network, points, reducer, line.alphas, place, chunk, compile)
        rows = None
        if pair is not None:
            pair = resident(pair, place)
            work.example_bytes = bytes_per_example(network, points, pair, place)
            rows = rows_per_pass(work.example_bytes, place)
        batches = checked_loader(loader) if pair is None or rows is None else cut(pair, rows)
        run(work, batches, sys.stderr.isatty() if progress is None else progress)
    dataset = reducer.dataset(line.alphas)
    dataset.attrs["provenance"] = json.dumps(
        {
            "path": "line",
            "anchors": [_named(theta_0), _named(theta_T)],
            **_how_it_ran(work, choice.used),
            "rows_per_pass": rows,
            "backend_asked_for": backend,
            "precision": precision or _precision_of(anchors),
            "batch_norm": batch_norm,
            "criterion": scored.name,
            "metrics": [*names, *functions],
            "seconds": time.perf_counter() - started,
            **_of_checkpoints(anchors),
        }
    )
    return SweepResult(dataset)


def _points(
    model: nn.Module,
    line: Line,
    anchors: Anchors,
    batch_norm: str,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Points:
    """Anchors and coefficients on the device."""
    coefficients = torch.from_numpy(line.coefficients()).to(device)
    held = batch_norms.coefficients(model, batch_norm, coefficients)
    known = {name: c for name, c in held.items() if name in anchors.values}
    return Points(_placed(anchors, dtype, device), coefficients, known, dtype)


def _of_checkpoints(anchors: Anchors) -> dict[str, Any]:
    """The part of the provenance that says what was found in them."""
    return {
        "kept": anchors.kept,
        "widened": anchors.widened,
        "nonfinite": {name: list(where) for name, where in anchors.nonfinite.items()},
    }


def _how_it_ran(work: Work, kernels: set[str]) -> dict[str, Any]:
    """The part of the provenance that the arguments do not say."""
    plan = work.plan
    assert plan is not None
    return {
        "engine": plan.engine,
        "engine_reason": plan.reason,
        "compiled": plan.compiled,
        "cuda_graphs": work.passes.recording if work.passes is not None else "off",
        "chunk": plan.chunk if plan.engine == "vmap" else 1,
        "backend": _backend_of(kernels),
        "kernels": sorted(kernels),
        "instruction_set": native.isa(),
        "device": str(work.device),
        "device_name": torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "points": work.points.count,
        "examples": work.reducer.count,
        "batches": work.reducer.batches,
        "versions": {
            "mli_fast": version.VERSION,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton_version(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _backend_of(kernels: set[str]) -> str:
    """The names of the backends whose kernels ran; "reference" where it was PyTorch's own operations alone."""
    backend = {k.name: k.backend for k in KERNELS}
    names = {backend[k.split(":")[1]] for k in kernels if k.split(":")[1] in backend}
    return " and ".join(sorted(names)) or "reference"


def _checked_options(schedule: Any, precision: Any, chunk: Any, compile: Any) -> torch.dtype | None:
    """Raise for options that do not fit; the compute dtype, None for the parameters' own."""
    if schedule is not None:
        raise ValueError("schedule comes with a later version of mli_fast; this one moves every parameter linearly")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of None, {', '.join(map(repr, PRECISIONS))}")
    if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
        raise ValueError(f"chunk={chunk!r}: expected 'auto' or a number of points, at least 1")
    if compile not in ("auto", True, False):
        raise ValueError(f"compile={compile!r}: expected 'auto', True or False")
    return None if precision is None else PRECISIONS[precision]


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, the architecture, got {type(model).__name__}")
    first = next(iter(model.parameters()), None)
    if device is not None:
        place = torch.device(device)
    else:
        place = torch.device("cpu") if first is None or first.device.type == "meta" else first.device
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={str(device)!r} is not available: this PyTorch sees no GPU")
        if place.index is None:
            return torch.device("cuda", torch.cuda.current_device())
    return place


def _check_precision(precision: str | None, device: torch.device) -> None:
    if precision in GPU_PRECISIONS and device.type != "cuda":
        here = ", ".join(repr(p) for p in PRECISIONS if p not in GPU_PRECISIONS)
        raise ValueError(f"precision={precision!r} needs a GPU; on {device} there are {here}")


def _placed(anchors: Anchors, dtype: torch.dtype | None, device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    """The anchors on the device; in float64 where the work is, and constants in the compute dtype.

    On a GPU a parameter's anchors lie in one block, so that kernels take one address for all of them.
    """

    def place(tensor: Tensor, constant: bool) -> Tensor:
        wanted = dtype if tensor.is_floating_point() and (constant or dtype == torch.float64) else None
        return tensor.to(device=device, dtype=wanted)

    placed = {name: tuple(place(t, len(group) == 1) for t in group) for name, group in anchors.values.items()}
    if device.type == "cuda":
        return {name: torch.stack(group).unbind() if len(group) > 1 else group for name, group in placed.items()}
    return placed


def _warn(anchors: Anchors) -> None:
    if anchors.nonfinite:
        name, where = next(iter(anchors.nonfinite.items()))
        which = " and ".join(("theta_0", "theta_T")[i] for i in where)
        warnings.warn(
            f"{len(anchors.nonfinite)} tensor(s) hold NaN or Inf, the first is {name!r} in {which}; points that use "
            "them will be NaN, an endpoint that does not is exact",
            NonFiniteWarning,
            stacklevel=3,
        )


def _precision_of(anchors: Anchors) -> str:
    """The names of the parameters' own dtypes."""
    dtypes = {a[0].dtype for a in anchors.values.values() if a[0].is_floating_point()}
    names = {dtype: name for name, dtype in PRECISIONS.items()} | {torch.float16: "fp16"}
    return ", ".join(sorted(names.get(d, str(d)) for d in dtypes)) or "no floating parameters"


def _named(source: Source) -> str:
    """How the provenance calls a checkpoint."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
