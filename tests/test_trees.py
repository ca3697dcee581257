"""Copies of batches: sizes, strides, and who shares memory with whom are as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.modes import MODES, forced
from mli_fast.trees import same_geometry

DTYPES = [torch.uint8, torch.bool, torch.int16, torch.float32, torch.int64, torch.complex128]


@st.composite
def windows(draw: st.DrawFn) -> list[Tensor]:
    """Tensors of any dtype at any place of one memory of 256 bytes, strides and overlaps included."""
    memory = (torch.arange(256) ** 2 // 7 % 2).to(torch.uint8)  # bytes that a bool may hold
    found = []
    for _ in range(draw(st.integers(1, 4))):
        whole = memory.view(draw(st.sampled_from(DTYPES)))
        offset = draw(st.integers(0, len(whole) - 1))
        rows, step = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        columns = draw(st.integers(1, 3))
        if offset + max(rows - 1, 0) * step + columns <= len(whole):
            found.append(whole.as_strided((rows, columns), (step, 1), offset))
    return found


@given(windows())
def test_copies_lie_as_the_originals_do(tensors: list[Tensor]) -> None:
    copies = same_geometry(tensors)
    for a, b in zip(tensors, copies, strict=True):
        assert a.dtype is b.dtype
        assert a.shape == b.shape
        assert a.stride() == b.stride()
        assert a.numpy().tobytes() == b.numpy().tobytes()
        assert a.numel() == 0 or a.untyped_storage()._cdata != b.untyped_storage()._cdata
    starts = [t.data_ptr() for t in tensors if t.numel()]
    apart = [t.data_ptr() for t in copies if t.numel()]
    assert [s - starts[0] for s in starts] == [s - apart[0] for s in apart]


def test_a_transforms_tensors_are_copied_apart() -> None:
    def f(x: Tensor) -> Tensor:
        (own,) = same_geometry([x])
        return own.mul_(3)

    assert torch.func.jvp(f, (torch.ones(2),), (torch.ones(2),))[1].tolist() == [3.0, 3.0]


class Writes(nn.Module):
    """Changes one tensor of the batch and reads another that may lie in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        x.mul_(2)
        scale = 1 if beside.is_floating_point() else 1e-9  # bits of a float
        return self.layer(x) * (scale * beside.float()).sum(-1, keepdim=True).tanh()


def parts(memory: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Two windows of one memory, which overlap, from an element on that need not lie on a cache line."""
    rows = memory[start : start + 40].view(4, 10)
    return rows[:, :5], rows[:, 3:7]


def columns(memory: Tensor, start: int) -> tuple[Tensor, Tensor]:
    x, beside = parts(memory, start)
    return x, beside.clone()


def as_other_numbers(memory: Tensor, start: int) -> tuple[Tensor, Tensor]:
    x, beside = parts(memory, start)
    return x, beside.view(torch.int32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("windows_of", [parts, columns, as_other_numbers])
def test_batches_that_share_memory(mode: str, windows_of: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    memory, targets = torch.randn(100), torch.arange(4) % 3
    a, b = Writes(), Writes()
    data = [(windows_of(memory, start), targets) for start in (0, 7, 13, 59)]
    given_memory = memory.clone()
    with forced(mode):
        found = mli_fast.sweep(Writes(), a, b, data, [0.0, 0.4, 1.0], progress=False)
    assert torch.equal(memory, given_memory)
    model = Writes()
    for alpha, loss in zip([0.0, 0.4, 1.0], found.loss, strict=True):
        model.load_state_dict({k: torch.lerp(v, b.state_dict()[k], alpha) for k, v in a.state_dict().items()})
        expected = []
        for start in (0, 7, 13, 59):
            with torch.no_grad():
                expected.append(F.cross_entropy(model(*windows_of(memory.clone(), start)), targets).item())
        np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


class Listed(list):  # type: ignore[type-arg]
    """A list that something hangs on."""

    scale = 1.0


class Held(dict):  # type: ignore[type-arg]
    """Likewise a dict."""

    scale = 1.0


@dataclasses.dataclass
class Data:
    """Likewise a dataclass."""

    x: Tensor
    scale = 1.0


def tagged(x: Tensor) -> Tensor:
    """Likewise a tensor."""
    return x.clone()


MAKERS: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda x: Listed([x]), "dict": lambda x: Held(x=x), "dataclass": Data, "tensor": tagged,
}  # fmt: skip


@pytest.mark.parametrize("made", MAKERS)
def test_what_hangs_on_a_batch_beside_its_items_is_seen_by_the_model(made: str) -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        x = inputs if made == "tensor" else inputs.x if made == "dataclass" else next(iter(_items(inputs)))
        return model(x) * inputs.scale, targets

    data = []
    for scale in (1.0, 2.0, 3.0, 1.0):
        inputs = MAKERS[made](torch.randn(4, 3))
        inputs.scale = scale
        data.append((inputs, torch.arange(4) % 2))
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    options: dict[str, Any] = {"forward": forward, "progress": False, "check": False}
    with forced("plain"):
        expected = mli_fast.sweep(a, a, b, data, 3, **options).loss
    np.testing.assert_allclose(mli_fast.sweep(a, a, b, data, 3, **options).loss, expected, rtol=1e-6)
    lone = [mli_fast.sweep(a, a, b, [batch], 3, **options).loss for batch in data]
    np.testing.assert_allclose(np.mean(lone, axis=0), expected, rtol=1e-6)


def _items(inputs: Any) -> Any:
    return inputs.values() if isinstance(inputs, dict) else inputs


def test_packed_sequences_are_batches() -> None:
    data = []
    for lengths in ([4, 3, 1], [4, 2, 2], [3, 3, 1]):
        x = torch.randn(3, 4, 5)
        data.append(
            (nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True), torch.arange(3) % 2)
        )

    def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return model[1](model[0](batch[0])[1][-1]), batch[1]

    a, b = (nn.ModuleList([nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)]) for _ in range(2))
    with forced("plain"):
        expected = mli_fast.sweep(a, a, b, data, 4, forward=forward, progress=False).loss
    for check in (False, "all"):
        found = mli_fast.sweep(a, a, b, data, 4, forward=forward, check=check, progress=False)
        np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
