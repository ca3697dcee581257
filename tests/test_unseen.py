"""What composites read and write behind the dispatcher: by operators in a record, or in none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mli_fast
from mli_fast.engine import forced
from tests.reference import plain_loop

ALPHAS = [0.0, 0.3, 0.7, 1.0]
Batch = tuple[Tensor, Tensor]


def mean(h: Tensor, n: Tensor) -> Tensor:
    return h.sum(1) / n[:, None]


def last_step(h: Tensor, n: Tensor) -> Tensor:
    return h[torch.arange(len(h)), n - 1]


def masked(h: Tensor, n: Tensor) -> Tensor:
    beyond = torch.arange(h.shape[1])[None] >= n[:, None]
    return h.masked_fill(beyond[..., None], -1e4).amax(1)


class Padded(nn.Module):
    """Sequences of lengths that the batch gives, packed and padded again."""

    def __init__(self, kind: str, batch_first: bool, pool: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.recurrent = getattr(nn, kind)(3, 5, batch_first=batch_first)
        self.out, self.batch_first, self.pool = nn.Linear(5, 2), batch_first, pool

    def forward(self, x: Tensor) -> Tensor:
        n = (x[:, :, 0] > -5).sum(1)
        x = x if self.batch_first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, n, self.batch_first, enforce_sorted=False)
        h, n = pad_packed_sequence(self.recurrent(packed)[0], self.batch_first)
        return self.out(self.pool(h if self.batch_first else h.transpose(0, 1), n))


def sequences(lengths: list[list[int]]) -> list[Batch]:
    g = torch.Generator().manual_seed(0)
    batches = []
    for each in lengths:
        x = torch.randn(len(each), max(each), 3, generator=g).clamp(-4, 4)
        for row, n in zip(x, each, strict=True):
            row[n:] = -9
        batches.append((x, torch.arange(len(each)) % 2))
    return batches


def assert_right(make: Callable[[], nn.Module], batches: list[Batch], engine: str) -> None:
    torch.manual_seed(3)
    model, other = make().eval(), make().eval()
    ends = model.state_dict(), other.state_dict()
    with forced("replay" if engine == "replay" else "planned"):
        result = mli_fast.sweep(model, *ends, batches, ALPHAS, progress=False, check=False)
    exact = plain_loop(model, *ends, batches, ALPHAS, "cross_entropy")
    np.testing.assert_allclose(result.loss, exact.loss, rtol=3e-6)
    assert result.provenance["engine"] == engine, result.provenance["engine_reason"]


@pytest.mark.parametrize("pool", [mean, last_step, masked])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_lengths_of_padded_sequences(kind: str, batch_first: bool, pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    batches = sequences([[5, 2, 3], [5, 3, 2], [4, 4, 1], [5, 2, 3]])
    for engine in ("planned", "replay"):
        assert_right(lambda: Padded(kind, batch_first, pool), batches, engine)


class Called(nn.Module):
    def __init__(self, step: Callable[[Called, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.out, self.step = nn.Linear(6, 4), nn.Linear(4, 3), step
        self.gru, self.rnn = nn.GRU(4, 4, batch_first=True), nn.RNN(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.step(self, x))


def sobol(net: Called, x: Tensor) -> Tensor:
    return net.stem(x) + torch.quasirandom.SobolEngine(4).draw(len(x))


def sobol_further(net: Called, x: Tensor) -> Tensor:
    return net.stem(x) * torch.quasirandom.SobolEngine(4).fast_forward(5).draw(len(x))


def shape_as_tensor(net: Called, x: Tensor) -> Tensor:
    return net.stem(x) * torch._shape_as_tensor(x)[1]


def filled_by_an_operator(net: Called, x: Tensor) -> Tensor:
    return torch.empty(len(x), 4).copy_(net.stem(x)) + torch.empty_like(x[:, :4]).zero_() + torch.empty(0, 4).sum()


def filled_through_a_view(net: Called, x: Tensor) -> Tensor:
    h = x.new_empty(len(x), 4)
    for i in range(4):
        h[:, i] = net.stem(x)[:, 3 - i]
    return h


def gru_from_a_hidden_state(net: Called, x: Tensor) -> Tensor:
    h = net.stem(x)
    return net.gru(h[:, None], h[None].contiguous())[0][:, 0]


def rnn_from_the_batch(net: Called, x: Tensor) -> Tensor:
    return net.rnn(net.stem(x)[:, None], x[None, :, :4].contiguous())[0][:, 0]


@pytest.mark.parametrize("step", [sobol, sobol_further, shape_as_tensor])
def test_what_is_written_unseen_is_plain(step: Callable[[Called, Tensor], Tensor]) -> None:
    assert_right(lambda: Called(step), vectors(), "plain")


@pytest.mark.parametrize(
    "step", [filled_by_an_operator, filled_through_a_view, gru_from_a_hidden_state, rnn_from_the_batch]
)
def test_what_is_seen_is_planned(step: Callable[[Called, Tensor], Tensor]) -> None:
    assert_right(lambda: Called(step), vectors(), "planned")


def vectors() -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=g), torch.arange(n) % 3) for n in (5, 5, 3)]
