"""The API functions over many lines: several runs, or one parameter group after another, in one pass over data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from mli_fast import schedules
from mli_fast.checkpoints import Anchors, Source
from mli_fast.evaluation import Data, Evaluation, Job
from mli_fast.measures import distance
from mli_fast.options import Options
from mli_fast.paths import Line, Path, run_folders
from mli_fast.result import SweepResult

Lines = Mapping[str, Path | tuple[Source, Source]] | Sequence[Path | tuple[Source, Source]] | str | os.PathLike[str]


def sweep_many(
    model: nn.Module,
    lines: Lines,
    loader: Data,
    alphas: int | Any = 50,
    *,
    metrics: Iterable[str] | Mapping[str, Any] = ("accuracy", "gauss_length"),
    **options: Any,
) -> SweepResult:
    """`sweep` over many lines of one network, in one pass over the data; a checkpoint in several is read once.

    Args:
        model: the architecture, as for `sweep`.
        lines: label -> (theta_0, theta_T) or a path of one axis, or a sequence of these (labels 0, 1, ...); or the
            path of a folder of runs. `to_one`, `all_pairs` and `run_folders` make such mappings.
        loader: the data, as for `sweep`.
        alphas: of all lines: a count or a 1-D sequence.
        metrics: as for `sweep`.
        **options: those of `sweep`.

    Returns:
        Over dimensions `run` and `alpha`, each line as `sweep` has it, with `distance` (norm of theta_T - theta_0) and
        `distance_relative` (that over the norm of theta_0) per run. `.table()` has a row per run, `.filter()` keeps
        those that end well.

    Raises:
        ValueError: no lines; else as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> a, b, c = (torch.nn.Linear(3, 2) for _ in range(3))
        >>> pairs = mli_fast.all_pairs({"a": a, "b": b, "c": c})
        >>> mli_fast.sweep_many(a, pairs, (torch.randn(7, 3), torch.arange(7) % 2), alphas=5).loss.shape
        (3, 5)
    """
    paths = _paths(lines)
    points = [path.points(alphas) for path in paths.values()]
    if not all(np.array_equal(own, points[0]) for own in points):
        raise ValueError(
            f"alphas={alphas}: a count means another range for some of these paths; give the alphas themselves"
        )
    with Evaluation(model, loader, Options(metrics=metrics, **options)) as evaluation:
        datasets = evaluation.run([Job(path, own) for path, own in zip(paths.values(), points, strict=True)])
        for path, dataset in zip(paths.values(), datasets, strict=True):
            _add_distance(dataset, evaluation.anchors(path))
    kinds = dict.fromkeys(path.kind for path in paths.values())
    return _joined("run", list(paths), datasets, evaluation, path=" and ".join(kinds))


def layerwise(
    model: nn.Module,
    theta_0: Source,
    theta_T: Source,
    loader: Data,
    alphas: int | Any = 25,
    *,
    groups: Any = None,
    others: str = "end",
    cumulative: str | None = None,
    **options: Any,
) -> SweepResult:
    """Loss and accuracy where one group of parameters moves and the others are held (Vlaar & Frankle 2022).

    All groups at all alphas take one pass over the data, and what lies before a group in the network is computed once:
    the last activations held, four at most, are left to the next group.

    Args:
        model: the architecture, as for `sweep`.
        theta_0: one end, as for `sweep`; alpha = 0.
        theta_T: the other; alpha = 1.
        loader: the data, as for `sweep`.
        alphas: a count or a 1-D sequence.
        groups: None or "layer", "kind", "parameter", a list of kinds, layers or patterns of names, or a mapping of
            labels to these; see `mli_fast.schedules.groups`. Layers are in the order of their calls.
        others: where the parameters that do not move are: at the "end", theta_T, or at the "start", theta_0.
        cumulative: "bottom": with a group move all those before it; "top": all those after it; None: it moves alone.
        **options: those of `sweep`.

    Returns:
        Over dimensions `group` and `alpha`; `.plot()` draws a heat map.

    Raises:
        ValueError: an unknown group, or one that matches nothing; else as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(7, 3), torch.arange(7) % 2
        >>> mli_fast.layerwise(net(), net(), net(), data, alphas=5)["group"].tolist()
        ['0', '2']
    """
    if others not in ("end", "start"):
        raise ValueError(f"others={others!r}: expected 'end' or 'start', where what does not move is held")
    if cumulative not in (None, "bottom", "top"):
        raise ValueError(f"cumulative={cumulative!r}: expected None, 'bottom' or 'top'")
    if isinstance(model, nn.Module) and not any(True for _ in model.parameters()):
        raise ValueError("model: it has no parameters, so that no group of them can move")
    line = Line(theta_0, theta_T)
    points = line.points(alphas)
    with Evaluation(model, loader, Options(**options)) as evaluation:
        found = schedules.groups(model, groups, evaluation.order(line))
        moving = _moving(found, cumulative)
        held = 0 if others == "start" else 1
        jobs = [Job(line, points, names, held) for names in moving]
        datasets = evaluation.run(jobs, share_cache=True)
    return _joined(
        "group", list(found), datasets, evaluation, path="layer-wise line", others=others, cumulative=cumulative
    )


def _paths(lines: Lines) -> dict[str, Path]:
    """The lines as label -> path."""
    if isinstance(lines, (str, os.PathLike)):
        return dict(run_folders(lines))
    if not isinstance(lines, (Mapping, Sequence)):
        raise TypeError(f"lines: expected a mapping or a sequence of lines, or a folder, got {type(lines).__name__}")
    given = lines.items() if isinstance(lines, Mapping) else ((str(i), line) for i, line in enumerate(lines))
    paths: dict[str, Path] = {}
    for label, line in given:
        if isinstance(line, tuple) and len(line) == 2:
            line = Line(*line)
        if not isinstance(line, Path) or len(line.axes) != 1:
            raise TypeError(f"lines[{label!r}]: expected (theta_0, theta_T) or a path of one axis, got {line!r}")
        if str(label) in paths:
            raise ValueError(f"lines: the label {str(label)!r} is there twice")
        paths[str(label)] = line
    if not paths:
        raise ValueError("lines is empty: at least one is needed")
    return paths


def _moving(groups: Mapping[str, tuple[str, ...]], cumulative: str | None) -> list[frozenset[str]]:
    """The names that move with each group."""
    each = [frozenset(names) for names in groups.values()]
    if cumulative is None:
        return each
    ranges = [each[: i + 1] if cumulative == "bottom" else each[i:] for i in range(len(each))]
    return [frozenset().union(*some) for some in ranges]


def _add_distance(dataset: xr.Dataset, anchors: Anchors) -> None:
    ends: list[dict[str, Tensor]] = [{name: group[r] for name, group in anchors.values.items()} for r in (0, -1)]
    found = distance(*ends)
    dataset["distance"], dataset["distance_relative"] = found.absolute, found.relative


def _joined(
    dim: str, labels: list[str], datasets: list[xr.Dataset], evaluation: Evaluation, **more: Any
) -> SweepResult:
    """The datasets along a further dimension in front."""
    count = datasets[0]["count"]
    parts = [dataset.drop_vars("count") for dataset in datasets]
    joined = xr.concat(parts, dim=xr.Variable(dim, np.array(labels)), join="exact").assign(count=count)
    joined.attrs["provenance"] = json.dumps({**more, **evaluation.provenance()})
    return SweepResult(joined)
