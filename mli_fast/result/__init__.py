"""What a sweep returns: values at points of parameter space with their provenance; to read, plot, save and load."""

from mli_fast.result.summary import describe
from mli_fast.result.sweep_result import SweepResult, load

__all__ = ["SweepResult", "describe", "load"]
