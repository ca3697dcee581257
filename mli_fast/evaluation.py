"""What all API functions do: anchors and points made, the engine run over the data, the results gathered."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from mli_fast import batch_norm as batch_norms
from mli_fast import functionals, native, schedules, version
from mli_fast.buffers import reused
from mli_fast.caller import caller
from mli_fast.capture import of_outputs_alone
from mli_fast.checkpoints import Anchors, Source, gather, load_state, unchanged_files
from mli_fast.checkpoints.values import blends
from mli_fast.criteria import Custom
from mli_fast.engine import Work, evaluate_all
from mli_fast.engine.batches import checked_loader, checked_pair, cut, default_forward, is_pair
from mli_fast.engine.calibration import calibrated, missed
from mli_fast.engine.feeding import fed, resident
from mli_fast.engine.guard import noting, on, random_state_kept, without_autocast
from mli_fast.engine.listing import listing
from mli_fast.engine.network import Network
from mli_fast.engine.passes import Passes
from mli_fast.engine.planner import Planner
from mli_fast.engine.points import Points
from mli_fast.engine.rows import bytes_per_example, rows_per_pass
from mli_fast.engine.slopes import Slopes
from mli_fast.interrupts import at_once, deferred
from mli_fast.losses import loss
from mli_fast.ops.backend import Choice, requested, require, triton_version
from mli_fast.ops.dispatch import KERNELS
from mli_fast.options import PRECISIONS, Options
from mli_fast.paths import Path
from mli_fast.reducers import Reducer, check_metrics
from mli_fast.trees import copied

Array = NDArray[np.float64]
Data = Iterable[Any] | tuple[Tensor, Tensor]
Placed = dict[str, tuple[Tensor, ...]]
FACTORS = (("lora_A", "lora_B"), ("lora_down", "lora_up"))  # whose product is added to a weight
CALIBRATION_ROWS = 512  # of a calibration pair that are kept together; parts are put together again as memory allows


class NonFiniteWarning(UserWarning, RuntimeWarning):
    """A checkpoint holds NaN or Inf."""


@dataclass(frozen=True)
class Job:
    """Points of one path.

    Attributes:
        path: the path.
        points: [P], or [P, k] of a path with k axes.
        moving: the names that move along it; None: all.
        held: the anchor whose values all other names have.
    """

    path: Path
    points: Array
    moving: frozenset[str] | None = None
    held: int = 0


class Evaluation:
    """One call of an API function: a network, its data and the options; use it as a context.

    Within the context random states, device and arithmetic are those of the work; afterwards they are the caller's.

    Args:
        model: the architecture.
        loader: the data, read once by each `run`.
        options: the rest.

    Raises:
        ValueError: data or options that do not fit.
        TypeError: of the wrong kind.
    """

    def __init__(self, model: nn.Module, loader: Data, options: Options) -> None:
        self.options = options
        self.criterion = loss(options.criterion)
        self.device = options.place(model)
        require(options.backend, self.device)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wrapped: see Options.compile
        self._loader = loader
        self._started = time.perf_counter()
        self._states: dict[Any, Any] = {}
        self._gathered: dict[Path, Anchors] = {}
        self._placed: dict[Path, Placed] = {}
        self._held: dict[tuple[Path, str, int], Tensor] = {}
        self._once: dict[Any, Tensor] = {}
        self._order: list[str] | None = None
        self._versions: list[tuple[str, Tensor, int]] = []
        if options.schedule is not None:
            schedules.check(self._model, options.schedule)  # before anything is read
        self._told: set[str] = set()

    def __enter__(self) -> Evaluation:
        tf32 = self.options.precision == "tf32"
        with contextlib.ExitStack() as stack:
            stack.enter_context(deferred())  # outermost: what waits is taken when all the rest is put back
            contexts: list[Any] = [
                on(self.device, tf32),
                random_state_kept(),
                torch.inference_mode(False),
                torch.no_grad(),
                unchanged_files(),
            ]
            contexts.append(without_autocast({"cpu", self.device.type}))
            for context in contexts:
                stack.enter_context(context)
            self._choice: Choice = stack.enter_context(requested(self.options.backend, tf32))
            stack.enter_context(reused())
            self._pair = checked_pair(self._loader) if is_pair(self._loader) else None
            self.network = Network(
                self._model, self.options.forward or default_forward, self.options.dtype, self.device
            )
            stack.enter_context(self.network.borrowing())
            if self.options.batch_norm == "batch":
                stack.enter_context(batch_norms.normalising_by(self.network.model, batch_norms.of_the_batch))
                self.network.look_again()
            self._batches = checked_loader(self._loader) if self._pair is None else None
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def anchors(self, path: Path) -> Anchors:
        """The values of every parameter at the path's anchors; each checkpoint is read once.

        Raises:
            ValueError: checkpoints that do not fit the model.
        """
        if path not in self._gathered:
            path.check_unchanged()
            states = [self._state(source, name) for source, name in zip(path.anchors, path.names, strict=True)]
            gathered = gather(self._model, states, path.names, self._held_anchors(path))
            if any(known.versioned != gathered.versioned for known in self._gathered.values()):
                raise ValueError(
                    "some checkpoints are of other versions of the model's modules than others: load each into the "
                    "model and pass its state_dict()"
                )
            self._gathered[path], self.network.versioned = gathered, gathered.versioned
            self._versions += [
                (f"{path.names[at if len(group) > 1 else -1]}: {name!r}", tensor, tensor._version)
                for name, group in gathered.values.items()
                for at, tensor in enumerate(group)
                if not tensor.is_inference()
            ]
            self._warn(gathered, path.names)
        return self._gathered[path]

    def _held_anchors(self, path: Path) -> dict[str, int] | None:
        """What a schedule gives the values of one anchor at all points; None for paths that take no schedule."""
        if len(path.axes) != 1:
            return None
        options, found = self.options, schedules.held(self._model, self.options.schedule or {})
        if options.batch_norm in ("start", "end"):  # which decides on these
            found = {n: at for n, at in found.items() if n not in batch_norms.statistics_at_an_end(self._model)}
        rows = {at: path.coefficients(np.array([at]))[0] for at in set(found.values())}
        alone = {at: int(row.argmax()) for at, row in rows.items() if np.count_nonzero(row) == 1 and row.max() == 1}
        return {name: alone[at] for name, at in found.items() if at in alone}

    def _state(self, source: Source, name: str) -> Source:
        """A file's content, read once however many paths lead there; anything else as it is."""
        if not isinstance(source, (str, os.PathLike)):
            return source
        key = os.path.realpath(source)
        if key not in self._states:
            with at_once():
                self._states[key] = load_state(source, name)
        return self._states[key]

    def _named(self, source: Source) -> str:
        """How the provenance calls a checkpoint: of a file also the key that its weights lie under."""
        if not isinstance(source, (str, os.PathLike)):
            return type(source).__name__
        given, place = os.fspath(source), getattr(self._states.get(os.path.realpath(source)), "place", "")
        return f"{given}{'.' if '::' in given else '::'}{place}" if place else given

    def order(self, path: Path) -> Callable[[], list[str]]:
        """What finds the layers in the order of their calls, from one forward pass at the path's first anchor."""

        def traced() -> list[str]:
            if self._order is None:
                groups = {name: (group[0],) for name, group in self._on_device(path).items()}
                one = torch.ones(1, 1, dtype=torch.float64, device=self.device)
                with noting("while the order of the layers was traced in batch 0"):
                    batch = copied(next(fed([self._first_batch()], self.device)))
                    self.network.load(Points(groups, one, {}, self.network.dtypes), 0)
                    self._order = schedules.depth_order(lambda _: self.network.run(batch), self.network.model)
                    self.network.state.restore()
                    self.network.forget()
            return self._order

        return traced

    def _first_batch(self) -> Any:
        if self._pair is not None:
            return tuple(t[:2] for t in self._pair)  # one alone has no statistics
        assert self._batches is not None
        with at_once():
            self._batches, first = _peeked(self._batches)
        return first

    def keep_data(self) -> None:
        """From now on the data may be read several times: it is in memory."""
        if self._batches is not None:
            with at_once():
                self._batches = list(self._batches)

    def refuse_functionals(self, where: str) -> None:
        """Raise where points come in rounds, so that what needs all of a line's points at once cannot run.

        Raises:
            ValueError: a metric is one of these.
        """
        for name in check_metrics(self.options.metrics)[0]:
            if name in functionals.NAMES and name != functionals.SLOPE:
                raise ValueError(
                    f"metric {name!r} needs all points of a line at once, and {where} finds them in rounds; sweep "
                    "the result's alphas again for it"
                )

    def run(self, jobs: Sequence[Job], share_cache: bool = False) -> list[xr.Dataset]:
        """The results of jobs, with the dimension "alpha" for paths of one axis and "point" for others.

        Args:
            jobs: what is to be evaluated, in one pass over the data.
            share_cache: the jobs have anchors in common.

        Raises:
            ValueError: checkpoints, data or options that do not fit.
        """
        works = [self._work(job, self.anchors(job.path)) for job in jobs]
        rows = None
        batches = self._batches
        if self._pair is not None:
            pair = resident(self._pair, self.device)
            rows = len(pair[0])
            if self.options.batch_norm != "batch":  # else the pair is one batch
                widest = bytes_per_example(self.network, works[0].points, pair, self.device)
                rows = rows_per_pass(rows, widest, self.device)
            batches = cut(pair, rows)
        assert batches is not None
        progress = sys.stderr.isatty() if self.options.progress is None else self.options.progress
        planner = self._planner()
        evaluate_all(works, planner, batches, progress, share_cache)
        changed = next((what for what, tensor, before in self._versions if tensor._version != before), None)
        if changed is not None and not self.network.borrows:
            raise ValueError(f"{changed} was written to during the sweep (by training that goes on?); pass a copy")
        anchors = [[self._named(s) for s in job.path.anchors] for job in jobs]
        self._ran: dict[str, Any] = {"anchors": anchors, "rows_per_pass": rows}
        self._ran |= _how_it_ran(works, planner, self._choice.used) | _of_checkpoints(list(self._gathered.values()))
        self._ran["seconds"] = time.perf_counter() - self._started
        return [_dataset(job, work.reducer) for job, work in zip(jobs, works, strict=True)]

    def _planner(self) -> Planner:
        passes = Passes(self.network, self.options.state)
        own = [self.criterion.function] if isinstance(self.criterion, Custom) else []
        own += check_metrics(self.options.metrics)[1].values()
        return Planner(passes, self.device, self.options.check, self.options.compile is True, own)

    def described(self, job: Job) -> list[str]:
        """How the first batch would be computed, in lines of text."""
        work, planner = self._work(job, self.anchors(job.path)), self._planner()
        batch = next(fed([self._first_batch()], self.device))
        plan = planner.route(work.points, batch, None, None).plan
        if plan is None:
            return [f"plain PyTorch, point by point: {'; '.join(planner.reasons)}"]
        return [*(f"note: {reason}" for reason in planner.reasons), *listing(plan)]

    def provenance(self) -> dict[str, Any]:
        """How the last run was made, the same however often it is asked."""
        options, names = self.options, check_metrics(self.options.metrics)
        return self._ran | {
            "backend_asked_for": options.backend,
            "precision": options.precision or _named_dtypes(self.network.dtypes.values()),
            "batch_norm": options.batch_norm,
            "schedule": None if options.schedule is None else {k: _called(v) for k, v in options.schedule.items()},
            "criterion": self.criterion.name,
            "metrics": [*names[0], *names[1]],
        }

    def _work(self, job: Job, anchors: Anchors) -> Work:
        options, path = self.options, job.path
        one_axis = len(path.axes) == 1
        points = self._points(job, anchors, path.coefficients(job.points), schedules.coefficients)
        moving = {name: self.network.twins[name] for name in points.moving}
        criterion, (names, functions) = self.criterion, check_metrics(options.metrics)
        if isinstance(criterion, Custom):
            criterion = criterion.calling(
                of_outputs_alone(criterion.function, f"the criterion {criterion.name}", moving)
            )
        functions = {k: of_outputs_alone(f, f"the metric {k!r}", moving) for k, f in functions.items()}
        reducer = Reducer(criterion, names, functions, len(job.points), job.points if one_axis else None)
        slopes = None
        if reducer.wants_slopes:
            if options.batch_norm in batch_norms.CALIBRATED:
                raise ValueError(
                    f"slopes along the path are not defined for batch_norm={options.batch_norm!r}, whose statistics "
                    "are no function of alpha here; use 'interpolate', 'batch', 'start' or 'end'"
                )
            directions = self._points(job, anchors, path.derivatives(job.points), schedules.derivatives)
            slopes = Slopes(self.network, points, directions, criterion)
        before = len(points.tables)
        if options.batch_norm in batch_norms.CALIBRATED:
            points = calibrated(options.batch_norm, self.network, points, self._calibration())
        if options.batch_norm != "interpolate":
            self._check_reach(points, len(points.tables) > before)
        self._check_variances(points, job.points)
        chunk = None if options.chunk == "auto" else int(options.chunk)
        return Work(points, reducer, job.points, path.axes, slopes, chunk)

    def _points(self, job: Job, anchors: Anchors, coefficients: Array, scheduled: Callable[..., Any]) -> Points:
        """The job's anchors on the device with these coefficients, and those of names on a schedule of their own."""
        values, options = dict(self._on_device(job.path)), self.options
        if job.moving is not None:
            values = {n: a if n in job.moving else self._one(job.path, n, job.held) for n, a in values.items()}
        if options.batch_norm in ("start", "end"):
            for name in batch_norms.statistics_at_an_end(self._model):
                if name in values:
                    values[name] = self._one(job.path, name, 0 if options.batch_norm == "start" else -1)
        others: dict[str, Tensor] = {}
        if options.schedule is not None:
            assigned = schedules.assign(self._model, options.schedule, self.order(job.path))
            tables = scheduled(job.path, job.points, assigned)
            tensors = {id(t): torch.from_numpy(t).to(self.device) for t in tables.values()}
            others = {name: tensors[id(table)] for name, table in tables.items() if name in values}
        points = Points(values, torch.from_numpy(coefficients).to(self.device), others, self.network.dtypes)
        whole = [name for name, group in values.items() if len(group) > 1 and not blends(group[0].dtype)]
        return points.with_tables({name: points.whole(name) for name in whole}) if whole else points

    def _on_device(self, path: Path) -> Placed:
        """The path's anchors on the device, once however many jobs have them."""
        if path not in self._placed:
            groups = self.anchors(path).values
            sent = {name: tuple(self._sent(t, len(group) == 1) for t in group) for name, group in groups.items()}
            if self.device.type == "cuda":  # kernels take anchors that lie equally far apart, as any two do
                sent = {n: torch.stack(group).unbind() if len(group) > 2 else group for n, group in sent.items()}
            self._placed[path] = sent
        return self._placed[path]

    def _sent(self, tensor: Tensor, constant: bool) -> Tensor:
        """A tensor on the device, once: in float64 where the work is, a constant in the compute dtype."""
        dtype = self.options.dtype
        wanted = dtype if tensor.is_floating_point() and (constant or dtype == torch.float64) else None
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, wanted
        if key not in self._once:
            self._once[key] = tensor.to(device=self.device, dtype=wanted)
        return self._once[key]

    def _one(self, path: Path, name: str, anchor: int) -> tuple[Tensor]:
        """One anchor's value as a constant, the same tensor for all jobs: what they share is known by it."""
        group = self._on_device(path)[name]
        key = path, name, anchor if len(group) > 1 else 0
        if key not in self._held:
            value = group[key[2]]
            dtype = self.options.dtype if value.is_floating_point() else None
            self._held[key] = value.to(dtype=dtype)
        return (self._held[key],)

    def _calibration(self) -> list[Any]:
        """The calibration batches on the device, read once however many jobs there are."""
        if "calibration" not in self._states:
            given = self.options.calibration
            if is_pair(given):
                if self.options.batch_norm in batch_norms.IN_BATCHES:
                    raise ValueError(
                        f"batch_norm={self.options.batch_norm!r} depends on the batches of training: give calibration= "
                        "as batches (a DataLoader, or a list of (inputs, targets)), not as one (X, y) pair"
                    )
                given = cut(checked_pair(given, "calibration"), CALIBRATION_ROWS)
            with noting("while the calibration data was read"):
                self._states["calibration"] = list(fed(checked_loader(given, "calibration"), self.device))
        return self._states["calibration"]

    def _warn(self, anchors: Anchors, called: Sequence[str]) -> None:
        whole = [name for name in anchors.kept if not name.endswith("num_batches_tracked")]  # eval mode never reads it
        if whole:
            self._tell(
                "whole",
                f"{len(whole)} tensor(s) that are not floating-point differ between {' and '.join(called)}, the first "
                f"is {whole[0]!r}: they are not blended; a point that is no anchor has those of {called[-1]}",
            )
        moving = {name for name, group in anchors.values.items() if len(group) > 1}
        factors = [name for name in moving for a, b in FACTORS if a in name and name.replace(a, b) in moving]
        if factors:
            self._tell(
                "factors",
                f"low-rank factors move apart ({min(factors)!r} and its partner, {len(factors)} pairs): their product "
                "is quadratic in alpha; merge adapters into the weights for a line between networks",
            )
        if not anchors.nonfinite:
            return
        name, where = next(iter(anchors.nonfinite.items()))
        which = " and ".join(called[i] for i in where)
        text = (
            f"{len(anchors.nonfinite)} tensor(s) hold NaN or Inf, the first is {name!r} in {which}; points that use "
            "them will be NaN, an endpoint that does not is exact"
        )
        self._tell("values", text, NonFiniteWarning)

    def _tell(self, of: str, text: str, kind: type[Warning] = UserWarning) -> None:
        """Warn of something, once however many jobs and paths there are."""
        if of not in self._told:
            self._told.add(of)
            warnings.warn(text, kind, stacklevel=caller())

    def _check_reach(self, points: Points, calibrated: bool) -> None:
        """Warn of running statistics that the policy says nothing of, or that there are none; once for all jobs."""
        policy, model = self.options.batch_norm, self._model
        if "reach" in self._told:
            return
        self._told.add("reach")
        of_an_end = policy in ("start", "end")
        norms: Any = batch_norms.set_to_an_end(model) if of_an_end else batch_norms.batch_norms(model)
        if not (calibrated if policy in batch_norms.CALIBRATED else norms):
            text = "found no batch norm with running statistics in this model: it changes nothing"
            self._tell("batch norms", f"batch_norm={policy!r} {text}")
        elif of_an_end:
            self._tell_missed([name for name in batch_norms.keepers(model) if name not in norms])
        else:
            batch = next(fed([self._first_batch()], self.device))
            self._tell_missed(missed(policy, self.network, points, batch))

    def _tell_missed(self, names: list[str]) -> None:
        if names:
            kind = type(self._model.get_submodule(names[0])).__name__
            self._tell(
                "batch norms",
                f"batch_norm={self.options.batch_norm!r} does not reach {len(names)} module(s) with running "
                f"statistics, the first is {names[0]!r} ({kind}): theirs are interpolated; it sets those "
                "of batch norms, where these are called as modules",
            )

    def _check_variances(self, points: Points, at: Array) -> None:
        """Warn of running variances that are negative at a point, as beyond the anchors: the loss is NaN there."""
        norms = batch_norms.keepers(self._model)
        if self.options.batch_norm == "batch":
            norms = {name: norm for name, norm in norms.items() if name not in batch_norms.batch_norms(self._model)}
        for name in (batch_norms.names_of(norm)[1] for norm in norms):
            if name not in points.anchors:
                continue  # calibrated, or no value of a checkpoint's
            anchors = points.anchors[name]
            inside = len(anchors) == 1 or bool((points.coefficients(name) >= 0).all())
            if inside and not any(bool((a < 0).any()) for a in anchors):
                continue
            below = (points.rows(name, 0, points.count) < 0).flatten(1).any(1)
            if bool(below.any()):
                where = at[int(below.int().argmax())]
                text = f"{name!r} is negative at {where}, and the loss NaN; see batch_norm="
                self._tell("variances", text, NonFiniteWarning)
                return


class _Peeked:
    """An iterable whose first item has been looked at."""

    def __init__(self, first: Any, rest: Iterator[Any], whole: Iterable[Any]) -> None:
        self._items, self._whole = itertools.chain([first], rest), whole

    def __iter__(self) -> Iterator[Any]:
        return self._items

    def __len__(self) -> int:
        return len(self._whole)  # type: ignore[arg-type]


def _peeked(batches: Iterable[Any]) -> tuple[Iterable[Any], Any]:
    if isinstance(batches, (list, tuple)) and batches:
        return batches, batches[0]
    rest = iter(batches)
    try:
        first = next(rest)
    except StopIteration:
        raise ValueError("the loader is empty: there is nothing to evaluate") from None
    return _Peeked(first, rest, batches), first


def _dataset(job: Job, reducer: Reducer) -> xr.Dataset:
    """The reducer's variables over the job's points."""
    axes = job.path.axes
    dim = "alpha" if len(axes) == 1 else "point"
    found = {
        name: (tuple(dim if d == "point" else d for d in dims), values)
        for name, (dims, values) in reducer.variables().items()
    }
    columns = job.points.reshape(len(job.points), -1).T
    coordinates: dict[str, Any] = {
        dim if dim == "alpha" else axis: (dim, column) for axis, column in zip(axes, columns, strict=True)
    }
    classes = [values.shape[1] for dims, values in found.values() if "class" in dims]
    if classes:
        coordinates["class"] = np.arange(classes[0])
    return xr.Dataset(found, coords=coordinates)


def _of_checkpoints(gathered: Sequence[Anchors]) -> dict[str, Any]:
    """The part of the provenance that says what was found in them."""
    merged: dict[str, dict[str, Any]] = {"kept": {}, "widened": {}, "nonfinite": {}}
    for anchors in gathered:
        merged["kept"] |= anchors.kept
        merged["widened"] |= anchors.widened
        merged["nonfinite"] |= {name: list(where) for name, where in anchors.nonfinite.items()}
    return merged


def _named_dtypes(dtypes: Iterable[torch.dtype]) -> str:
    """What the provenance calls the dtypes that parameters are computed in."""
    names = {dtype: name for name, dtype in PRECISIONS.items()} | {torch.float32: "fp32", torch.float16: "fp16"}
    return ", ".join(sorted({names.get(d, str(d)) for d in dtypes if d.is_floating_point})) or "no floating parameters"


def _how_it_ran(works: Sequence[Work], planner: Planner, kernels: set[str]) -> dict[str, Any]:
    """The part of the provenance that the arguments do not say."""
    device = planner.device
    return {
        "engine": " and ".join(sorted(planner.used)),
        "engine_reason": "; ".join(planner.reasons),
        "compiled": planner.compile,
        "check": planner.check,
        "chunk": max(work.passes for work in works),
        "backend": _backend_of(kernels),
        "kernels": sorted(kernels),
        "instruction_set": native.isa(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "points": sum(work.points.count for work in works),
        "examples": works[0].reducer.count,
        "batches": works[0].reducer.batches,
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


def _called(schedule: Any) -> str:
    return getattr(schedule, "__name__", str(schedule))
