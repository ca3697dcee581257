"""The engine: data in the outer loop, points in the inner one."""

from mli_fast.engine.plan import ENGINES, Plan, forced
from mli_fast.engine.run import Work, run

__all__ = ["ENGINES", "Plan", "Work", "forced", "run"]
