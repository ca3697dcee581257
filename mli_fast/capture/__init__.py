"""Capture: one forward pass as a record of everything that PyTorch computed in it, or the reason why there is none."""

from mli_fast.capture.passes import captured
from mli_fast.capture.reach import of_outputs_alone
from mli_fast.capture.record import Exit, Op, Record, Ref
from mli_fast.capture.state import State

__all__ = ["Exit", "Op", "Record", "Ref", "State", "captured", "of_outputs_alone"]
