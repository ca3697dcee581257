"""The API functions over one path: sweep a line, evaluate any path at any points, a surface over a plane."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from mli_fast.adaptive import refine
from mli_fast.checkpoints import Source
from mli_fast.engine.batches import Forward
from mli_fast.evaluation import Data, Evaluation, Job
from mli_fast.options import Options
from mli_fast.paths import Line, Path
from mli_fast.result import SweepResult


def sweep(
    model: nn.Module,
    theta_0: Source,
    theta_T: Source,
    loader: Data,
    alphas: int | str | Any = 50,
    *,
    criterion: str | Callable[[Any, Any], Tensor] = "cross_entropy",
    metrics: Iterable[str] | Mapping[str, Callable[[Any, Any], Tensor]] = ("accuracy",),
    batch_norm: str = "interpolate",
    calibration: Any = None,
    schedule: Mapping[str, Any] | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    backend: str = "auto",
    forward: Forward | None = None,
    chunk: int | str = "auto",
    compile: bool | str = "auto",
    progress: bool | None = None,
    tol: float | None = None,
    check: bool | str = True,
    state: str | None = None,
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
        alphas: a count (that many from 0 to 1), or any 1-D sequence; values outside [0, 1] extrapolate. "adaptive":
            points in [0, 1] where the loss bends, until its piecewise-cubic interpolant (`SweepResult.at`) is within
            `tol` wherever that can be checked. The data is then read once and kept in memory.
        criterion: "cross_entropy", "mse", "nll", "bce_with_logits", "causal_lm", a module of `torch.nn.modules.loss`
            (its mean over all terms of all batches, with its class weights, `ignore_index` and label smoothing), or a
            callable (outputs, targets) -> per-example losses [B]; a 0-d result is taken as the batch mean. Of a model
            that returns something with `.logits`, criterion and metrics are given these; `forward` gives them anything
            else. Both are functions of their arguments alone.
        metrics: a dict name -> callable (outputs, targets) -> [B], or of these names. Per alpha: "accuracy",
            "class_loss", "class_accuracy", "prediction_histogram", "loss_slope" (d loss / d alpha, exact, by
            forward-mode differentiation), "flips" (share of examples whose prediction is not that at the alpha before),
            "agreement" (share predicted as at the largest alpha), "cka" (linear CKA of the outputs with those at the
            largest alpha). Of the whole line, means over examples: "gauss_length" (the angles between chords of the
            outputs), "gauss_length_jvp" (between exact tangents), "path_length", "monotone_examples" (share of examples
            whose own loss is monotone on [0, 1]). Those hold one batch's outputs at all points.
        batch_norm: running statistics "interpolate" as the parameters do; are those of the "start" or the "end"
            (of batch norms of any class, frozen ones too; not of instance norms); "recalibrate": the exact mean and
            variance over the calibration data at every point, layer after layer; "recalibrate-ema": what a pass with
            batch norms in training mode, and all else in eval mode, leaves of reset statistics (Lucas et al. 2021);
            "update-bn": what `torch.optim.swa_utils.update_bn` leaves, with the whole model in training mode; dropout
            draws the same at every point, from the random state at the call. "batch": those of each batch. A warning
            names norms that a policy does not reach.
        calibration: the data for the "recalibrate" policies and "update-bn", as `loader`; all but "recalibrate" want
            batches.
        schedule: what moves otherwise than by alpha: kinds ("weight", "bias", "norm", "embedding", "last_bias"), layers
            or patterns of names -> "start", "end", "homogeneous", `schedules.power(p)` or a function of alphas; see
            `mli_fast.schedules.assign`. What is held at one end needs no value at the other.
        precision: None (the parameters' own), "fp64", "fp32", "bf16" (operands rounded to bfloat16, sums in float32);
            on a GPU also "fp16", likewise, and "tf32" (float32 whose products round their operands to TF32). Elsewhere
            float32 is float32: PyTorch's TF32 switches are set for the call and put back.
        device: where to work; None: where the model is.
        backend: "auto" (the kernels that were measured to win on such a device, see `mli_fast.backends`), "reference"
            (plain PyTorch), "native" (the compiled kernels), "triton" (on a GPU).
        forward: (model, batch) -> (outputs, targets), for any other layout of a batch.
        chunk: the most points per pass, where passes take several, or "auto".
        compile: True runs passes through torch.compile.
        progress: True, False, or None: a bar if the standard error is a terminal.
        tol: for alphas="adaptive", the error allowed, in units of the loss; 0.01 unless given.
        check: True compares the first batches, and points in turn as 3 % of the time allows, with plain PyTorch; "all"
            compares every point of every batch; False compares nothing, at your own risk. Where something differs, all
            values are taken anew by plain PyTorch, with a warning.
        state: None: a model that carries something from one pass to the next is an error that names it. "per-batch":
            each batch starts from the model as it is given.

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
    options = Options(
        criterion,
        metrics,
        batch_norm,
        calibration,
        schedule,
        precision,
        device,
        backend,
        forward,
        chunk,
        compile,
        progress,
        check,
        state,
    )
    line = Line(theta_0, theta_T)
    if isinstance(alphas, str):
        return _adaptive(model, line, alphas, loader, options, tol)
    if tol is not None:
        raise ValueError("tol is for alphas='adaptive'; here the alphas are given")
    return _evaluate(model, line, line.points(alphas), loader, options)


def evaluate(model: nn.Module, path: Path, points: int | Any, loader: Data, **options: Any) -> SweepResult:
    """Loss and accuracy at points of any path, in one pass over the data.

    Args:
        model: the architecture, as for `sweep`.
        path: a `Line`, `Plane`, `Bezier`, `Polyline`, `TaskVectors` or random directions.
        points: a count or a 1-D sequence for a path of one axis; coordinates [P, k] for one with k axes.
        loader: the data, as for `sweep`.
        **options: those of `sweep`.

    Returns:
        Over dimension `alpha` for paths of one axis, else over `point`, with a coordinate for each axis.

    Raises:
        ValueError: as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> a, b, c = (torch.nn.Linear(3, 2) for _ in range(3))
        >>> bent = mli_fast.Bezier(a, b, c)
        >>> mli_fast.evaluate(a, bent, 61, (torch.randn(7, 3), torch.arange(7) % 2)).loss.shape
        (61,)
    """
    return _evaluate(model, _checked(path), path.points(points), loader, Options(**options))


def surface(
    model: nn.Module, plane: Path, loader: Data, x: int | Any = 25, y: int | Any = 25, **options: Any
) -> SweepResult:
    """Loss and accuracy over a grid of a path with two axes, in one pass over the data (Li et al. 2018).

    Args:
        model: the architecture, as for `sweep`.
        plane: a `Plane`, two random directions, or another path of two axes.
        loader: the data, as for `sweep`.
        x: the coordinates on the first axis: a count (over the path's own range) or a 1-D sequence.
        y: on the second.
        **options: those of `sweep`.

    Returns:
        Over dimensions `x` and `y`, the first and the second axis; `.plot()` draws contours.

    Raises:
        ValueError: a path that does not have two axes; else as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> a, b, c = (torch.nn.Linear(3, 2) for _ in range(3))
        >>> mli_fast.surface(a, mli_fast.Plane(a, b, c), (torch.randn(7, 3), torch.arange(7) % 2), x=5, y=4).loss.shape
        (5, 4)
    """
    if len(_checked(plane).axes) != 2:
        raise ValueError(f"a surface needs a path of two axes; a {plane.kind} here has {len(plane.axes)}")
    columns = [plane.along(axis, given) for axis, given in zip(plane.axes, (x, y), strict=True)]
    grid = np.stack([g.reshape(-1) for g in np.meshgrid(*columns, indexing="ij")], axis=1)
    flat = _evaluate(model, plane, grid, loader, Options(**options)).dataset
    dims = dict(zip(("x", "y"), columns, strict=True))

    def folded(variable: xr.DataArray) -> Any:
        if "point" not in variable.dims:
            return variable.dims, variable.values
        return (*dims, *variable.dims[1:]), variable.values.reshape(*map(len, columns), *variable.shape[1:])

    others = {name: coordinate for name, coordinate in flat.coords.items() if name not in plane.axes}
    variables = {name: folded(variable) for name, variable in flat.data_vars.items()}
    return SweepResult(xr.Dataset(variables, coords={**dims, **others}, attrs=flat.attrs))


def _checked(path: Any) -> Path:
    if not isinstance(path, Path):
        raise TypeError(f"path: expected one of mli_fast.paths, such as Line or Plane, got {type(path).__name__}")
    return path


def _evaluate(model: nn.Module, path: Path, points: Any, loader: Data, options: Options) -> SweepResult:
    with Evaluation(model, loader, options) as evaluation:
        (dataset,) = evaluation.run([Job(path, points)])
    return _result(dataset, path, evaluation)


def _adaptive(
    model: nn.Module, line: Line, alphas: str, loader: Data, options: Options, tol: float | None
) -> SweepResult:
    """Rounds of points until the loss is known within `tol`; one pass over the data, which is in memory, for each."""
    if alphas != "adaptive":
        raise ValueError(f"alphas={alphas!r}: expected 'adaptive', a count or a 1-D sequence of numbers")
    rounds: list[xr.Dataset] = []
    with Evaluation(model, loader, options) as evaluation:
        evaluation.refuse_functionals("alphas='adaptive'")
        evaluation.keep_data()

        def losses(new: Any) -> Any:
            rounds.extend(evaluation.run([Job(line, new)]))
            return rounds[-1]["loss"].values

        refine(losses, 0.01 if tol is None else tol)
    joined = xr.concat(rounds, "alpha", data_vars="minimal").sortby("alpha")
    # what is paired with the alpha before was paired within a round
    steps = [name for name in joined.data_vars if str(name).startswith("loss_step")]
    return _result(joined.drop_vars(steps), line, evaluation, rounds=len(rounds), points=joined.sizes["alpha"], tol=tol)


def _result(dataset: xr.Dataset, path: Path, evaluation: Evaluation, **more: Any) -> SweepResult:
    made = evaluation.provenance()
    marks = [[label, list(place)] for label, place in path.marks]
    anchors = made.pop("anchors")[0]
    dataset.attrs["provenance"] = json.dumps({"path": path.kind, "anchors": anchors, "marks": marks, **made, **more})
    return SweepResult(dataset)
