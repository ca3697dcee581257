"""Loss and accuracy along lines of parameter space, every point in one pass over the data."""

from mli_fast import measures
from mli_fast.ops.backend import backends
from mli_fast.result import SweepResult, load
from mli_fast.sweep import sweep
from mli_fast.version import VERSION as __version__

__all__ = ["SweepResult", "__version__", "backends", "load", "measures", "sweep"]
