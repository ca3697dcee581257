"""One forward pass, recorded."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mli_fast.capture.exits import noted
from mli_fast.capture.operators import PLAIN_DATA
from mli_fast.capture.record import Record
from mli_fast.capture.recorder import Recorder, _Refusal
from mli_fast.trees import mapped, tensors_in


@dataclass
class Captured:
    """What a pass gave, and its record.

    Attributes:
        result: (outputs, targets), as plain PyTorch computed them.
        record: None where the pass cannot be recorded.
        reason: why not.
        twins_seen: whether the pass reached the caller's own parameters.
    """

    result: Any
    record: Record | None
    reason: str
    twins_seen: bool


def captured(
    run: Callable[[Any], Any], batch: Any, parameters: Mapping[str, Tensor], twins: Mapping[str, Tensor]
) -> Captured:
    """Run once, and record.

    Args:
        run: batch -> (outputs, targets).
        batch: one that may be written to.
        parameters: name -> the model's parameters and persistent buffers.
        twins: name -> other tensors that the model may reach in their place.

    Raises:
        Exception: what the pass raises.
    """
    with _young_objects_told():
        recorder = Recorder(parameters, twins, list(tensors_in(batch)))
        try:
            with noted(recorder.exit, recorder.refuse, recorder.unseen, recorder.of_python_data), recorder:
                result = run(batch)
            if recorder.refused is None:
                _note_outputs(recorder, result)
            record = recorder.record if recorder.refused is None else None
            return Captured(result, record, recorder.refused or "", recorder.twins_seen)
        finally:
            recorder.close()


def _note_outputs(recorder: Recorder, result: Any) -> None:
    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor):
            recorder.record.outputs.append(recorder.filled(x))
            return None
        if type(x) not in PLAIN_DATA:
            raise _Refusal(f"the outputs hold a {type(x).__name__}, which cannot be looked into")
        recorder.record.outputs.append(None)
        return x

    try:
        recorder.record.tree = mapped(leaf, result, objects=False)
    except _Refusal as refusal:
        recorder.refuse(str(refusal))


@contextmanager
def _young_objects_told() -> Iterator[None]:
    """Within the block the collector's youngest generation is what was made in it."""
    was_on = gc.isenabled()
    gc.collect(0)
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
