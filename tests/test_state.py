"""What a model carries on is an error that names it, wherever and whenever it shows; what it merely writes is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.modes import MODES, forced

ALPHAS = [0.0, 0.3, 1.0]
D = 5


class Net(nn.Module):
    """A layer whose forward is given."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form
        self.f, self.out = nn.Linear(D, D), nn.Linear(D, D)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.longest, self.kept, self.table = 4, None, None

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def grows_with_the_longest(net: Net, x: Tensor) -> Tensor:
    """As rotary embeddings do that are scaled by the longest text seen."""
    if len(x) > net.longest:
        net.longest = len(x)
        net.scale = torch.tensor(1.0 + len(x) / 10)
    return net.out(net.f(x) * net.scale)


def kept_from_the_first(net: Net, x: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = net.f(x[:1])
    return net.out(x + net.kept)


def kept_weight(net: Net, x: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = net.f.weight.tanh()
    return net.out(x @ net.kept)


def decayed(net: Net, x: Tensor) -> Tensor:
    net.f.weight.data.mul_(0.5)
    return net.out(net.f(x))


def decayed_and_printed(net: Net, x: Tensor) -> Tensor:
    net.f.weight.data.mul_(0.5)
    return net.out(net.f(x) * len(str(x)))


def table_by_shape(net: Net, x: Tensor) -> Tensor:
    """Kept, but the same whatever the point and the batch."""
    if net.table is None:
        net.table = torch.arange(D).float().sin()
    return net.out(net.f(x) + net.table)


def clamped_in_place(net: Net, x: Tensor) -> Tensor:
    """Written, but to the same values however often."""
    net.f.weight.data.clamp_(-0.2, 0.2)
    return net.out(net.f(x))


def ends(form: Any) -> tuple[Net, Net]:
    torch.manual_seed(0)
    return Net(form), Net(form)


def batches(*lengths: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, D), torch.arange(n) % 3) for n in lengths]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("form", "lengths", "name"),
    [
        (grows_with_the_longest, (4, 7, 4), "longest"),
        (grows_with_the_longest, (7, 4, 4), "longest"),
        (kept_from_the_first, (4, 4), "kept"),
        (kept_weight, (4,), "kept"),
        (decayed, (4, 4), r"f\.weight"),
        (decayed_and_printed, (4, 4), r"f\.weight"),
    ],
)
def test_state_is_seen_at_other_points_and_in_other_batches(
    mode: str, form: Any, lengths: tuple[int, ...], name: str
) -> None:
    data = batches(*lengths)
    with forced(mode), pytest.raises(ValueError, match=rf"carries state .*{name}.*state='per-batch'"):
        mli_fast.sweep(Net(form), *ends(form), data, ALPHAS, progress=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", [table_by_shape, clamped_in_place])
def test_what_is_written_alike_each_time_is_no_state(mode: str, form: Any) -> None:
    data, (a, b) = batches(4, 7, 4), ends(form)
    with forced(mode):
        found = mli_fast.sweep(Net(form), a, b, data, ALPHAS, progress=False)
    for alpha, loss in zip(ALPHAS, found.loss, strict=True):
        model = Net(form)
        model.load_state_dict({k: torch.lerp(v, b.state_dict()[k], alpha) for k, v in a.state_dict().items()})
        with torch.no_grad():
            total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in data)
        np.testing.assert_allclose(loss, total / 15, rtol=1e-5)


def simple(net: Net, x: Tensor) -> Tensor:
    return net.out(net.f(x))


def test_a_criterion_that_reads_the_callers_model_is_an_error() -> None:
    model = Net(simple)

    def decay(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + 0.1 * model.f.weight.square().sum()

    with pytest.raises(ValueError, match=r"the criterion decay reads the parameter 'f\.weight'.*forward="):
        mli_fast.sweep(model, *ends(simple), batches(4), ALPHAS, criterion=decay, progress=False)
    metrics = {"size": lambda outputs, targets: outputs.mean(1) + model.out.bias.sum()}
    with pytest.raises(ValueError, match=r"the metric 'size' reads the parameter 'out\.bias'"):
        mli_fast.sweep(model, *ends(simple), batches(4), ALPHAS, metrics=metrics, progress=False)


def test_a_criterion_may_read_what_does_not_move() -> None:
    model, (a, b) = Net(simple), ends(simple)
    b.f.load_state_dict(a.f.state_dict())

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") * (1 + model.f.bias.square().sum())

    found = mli_fast.sweep(model, a, b, batches(4), ALPHAS, criterion=weighted, progress=False)
    plain = mli_fast.sweep(model, a, b, batches(4), ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, plain.loss * (1 + model.f.bias.square().sum().item()), rtol=1e-5)
