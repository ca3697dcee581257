"""The engine: batches in, per-example values of every point out; captured, planned and run."""

from mli_fast.engine.modes import forced
from mli_fast.engine.running import Work, evaluate_all

__all__ = ["Work", "evaluate_all", "forced"]
