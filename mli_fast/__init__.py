"""Loss and accuracy along lines and over surfaces of parameter space, every point in one pass over the data."""

from mli_fast import measures, schedules
from mli_fast.connectivity import BezierFit, fit_bezier
from mli_fast.explanation import explain
from mli_fast.lines import layerwise, sweep_many
from mli_fast.ops.backend import backends
from mli_fast.paths import (
    Bezier,
    Line,
    Plane,
    Polyline,
    TaskVectors,
    all_pairs,
    random_directions,
    run_folders,
    to_one,
)
from mli_fast.result import SweepResult, load
from mli_fast.sweep import evaluate, surface, sweep
from mli_fast.version import VERSION as __version__

__all__ = [
    "Bezier",
    "BezierFit",
    "Line",
    "Plane",
    "Polyline",
    "SweepResult",
    "TaskVectors",
    "__version__",
    "all_pairs",
    "backends",
    "evaluate",
    "explain",
    "fit_bezier",
    "layerwise",
    "load",
    "measures",
    "random_directions",
    "run_folders",
    "schedules",
    "surface",
    "sweep",
    "sweep_many",
    "to_one",
]
