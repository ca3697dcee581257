"""Batches on their way to the device: what fits is there beforehand, else the next is copied while one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mli_fast.engine.batches import check_batch
from mli_fast.interrupts import at_once
from mli_fast.trees import mapped, tensors_in

SHARE = 0.25  # of a GPU's free memory that an (X, y) pair may take


def resident(pair: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """The pair on a GPU if it takes less than `SHARE` of the memory that is free there, else as it is."""
    if device.type != "cuda":
        return pair
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(t.numel() * t.element_size() for t in pair if t.device != device)
    return (pair[0].to(device), pair[1].to(device)) if size <= SHARE * free else pair


def fed(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """The batches on `device`; on a GPU each is sent from pinned memory while the one before is worked on."""
    if device.type != "cuda":
        for batch in _read(batches):
            check_batch(batch)
            yield mapped(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)
        return
    side = torch.cuda.Stream(device)
    sent: tuple[Any, torch.cuda.Event] | None = None
    for batch in _read(batches):
        check_batch(batch)
        with torch.cuda.stream(side):
            following = mapped(lambda x: _send(x, device) if isinstance(x, Tensor) else x, batch), side.record_event()
        if sent is not None:
            yield _arrived(*sent)
        sent = following
    if sent is not None:
        yield _arrived(*sent)


def _read(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, between which Ctrl-C is taken, and while the loader is at work."""
    with at_once():
        iterator = iter(batches)
    while True:
        with at_once():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    pinned = tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
    return pinned.to(device, non_blocking=True)


def _arrived(batch: Any, event: torch.cuda.Event) -> Any:
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for tensor in tensors_in(batch):
        if tensor.is_cuda:
            tensor.record_stream(stream)  # its memory is not handed out again before this stream is done with it
    return batch
