"""What a model carries on is an error that names it, wherever and whenever it shows; what it merely writes is not."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.modes import MODES, forced
from tests.by_hand import ALPHAS, D, Form, Net, batches, ends, plain_losses, simple


class Keeping(Net):
    """Has places where the forms below keep something."""

    def __init__(self, form: Any) -> None:
        super().__init__(form)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.longest, self.kept, self.table = 4, None, None


def grows_with_the_longest(net: Keeping, x: Tensor) -> Tensor:
    """As rotary embeddings do that are scaled by the longest text seen."""
    if len(x) > net.longest:
        net.longest = len(x)
        net.scale = torch.tensor(1.0 + len(x) / 10)
    return net.out(net.f1(x) * net.scale)


def kept_from_the_first(net: Keeping, x: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = net.f1(x[:1])
    return net.out(x + net.kept)


def kept_weight(net: Keeping, x: Tensor) -> Tensor:
    if net.kept is None:
        net.kept = net.f1.weight.tanh()
    return net.out(x @ net.kept)


def decayed(net: Keeping, x: Tensor) -> Tensor:
    net.f1.weight.data.mul_(0.5)
    return net.out(net.f1(x))


def decayed_and_printed(net: Keeping, x: Tensor) -> Tensor:
    net.f1.weight.data.mul_(0.5)
    return net.out(net.f1(x) * len(str(x)))


def table_by_shape(net: Keeping, x: Tensor) -> Tensor:
    """Kept, but the same whatever the point and the batch."""
    if net.table is None:
        net.table = torch.arange(D).float().sin()
    return net.out(net.f1(x) + net.table)


def clamped_in_place(net: Keeping, x: Tensor) -> Tensor:
    """Written, but to the same values however often."""
    net.f1.weight.data.clamp_(-0.2, 0.2)
    return net.out(net.f1(x))


def two(form: Any) -> tuple[Keeping, Keeping]:
    torch.manual_seed(0)
    return Keeping(form), Keeping(form)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("form", "lengths", "name"),
    [
        (grows_with_the_longest, (4, 7, 4), "longest"),
        (grows_with_the_longest, (7, 4, 4), "longest"),
        (kept_from_the_first, (4, 4), "kept"),
        (kept_weight, (4,), "kept"),
        (decayed, (4, 4), r"f1\.weight"),
        (decayed_and_printed, (4, 4), r"f1\.weight"),
    ],
)
def test_state_is_seen_at_other_points_and_in_other_batches(
    mode: str, form: Any, lengths: tuple[int, ...], name: str
) -> None:
    data = batches(*lengths)
    with forced(mode), pytest.raises(ValueError, match=rf"carries state .*{name}.*state='per-batch'"):
        mli_fast.sweep(Keeping(form), *two(form), data, ALPHAS, progress=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", [table_by_shape, clamped_in_place])
def test_what_is_written_alike_each_time_is_no_state(mode: str, form: Any) -> None:
    data, (a, b) = batches(4, 7, 4), two(form)
    with forced(mode):
        found = mli_fast.sweep(Keeping(form), a, b, data, ALPHAS, progress=False)
    expected = plain_losses(Keeping(form), a.state_dict(), b.state_dict(), (4, 7, 4))
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


def test_a_criterion_that_reads_the_callers_model_is_an_error() -> None:
    model = Keeping(simple)

    def decay(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + 0.1 * model.f1.weight.square().sum()

    with pytest.raises(ValueError, match=r"the criterion decay reads the parameter 'f1\.weight'.*forward="):
        mli_fast.sweep(model, *two(simple), batches(4), ALPHAS, criterion=decay, progress=False)
    metrics = {"size": lambda outputs, targets: outputs.mean(1) + model.out.bias.sum()}
    with pytest.raises(ValueError, match=r"the metric 'size' reads the parameter 'out\.bias'"):
        mli_fast.sweep(model, *two(simple), batches(4), ALPHAS, metrics=metrics, progress=False)


@pytest.mark.parametrize("where", ["criterion", "metric"])
def test_a_criterion_that_reads_what_forward_leaves_behind_is_right(where: str, engine: str) -> None:
    model, (a, b) = Keeping(simple), two(simple)
    kept: dict[str, Tensor] = {}
    model.stem.register_forward_hook(lambda module, args, output: kept.update(h=output))

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") + kept["h"].square().mean()

    data = batches(4, 7, 4)
    options: dict[str, Any] = {"criterion": penalised} if where == "criterion" else {"metrics": {"own": penalised}}
    found = mli_fast.sweep(model, a, b, data, ALPHAS, progress=False, **options)
    expected = []
    for alpha in ALPHAS:
        mixed = {k: torch.lerp(v, b.state_dict()[k], alpha) for k, v in a.named_parameters()}
        model.load_state_dict(mixed, strict=False)
        with torch.no_grad():
            expected.append(sum(penalised(model.eval()(x), y).sum().item() for x, y in data) / 15)
    values = found.loss if where == "criterion" else found["own"]
    np.testing.assert_allclose(np.asarray(values), expected, rtol=1e-5)
    assert found.provenance["engine"] == "plain"


def test_a_criterion_may_read_what_does_not_move() -> None:
    model, (a, b) = Keeping(simple), two(simple)
    b.f1.load_state_dict(a.f1.state_dict())

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") * (1 + model.f1.bias.square().sum())

    found = mli_fast.sweep(model, a, b, batches(4), ALPHAS, criterion=weighted, progress=False)
    plain = mli_fast.sweep(model, a, b, batches(4), ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, plain.loss * (1 + model.f1.bias.square().sum().item()), rtol=1e-5)


def carries_a_tensor(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.stem(x) + net.cache.get("h", 0.0))
    net.cache["h"] = h
    return net.out(h)


def counts(net: Net, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.out(x) * net.calls


def draws_from_numpy(net: Net, x: Tensor) -> Tensor:
    return net.out(x) * float(np.random.rand())  # noqa: NPY002


def moves_a_buffer(net: Net, x: Tensor) -> Tensor:
    net.flags.mul_(0.5)
    return net.out(x) * net.flags.abs().sum()


def keeps_the_largest(net: Net, x: Tensor) -> Tensor:
    torch.maximum(net.flags, x.abs().amax(), out=net.flags)
    return net.out(x / net.flags.amax())


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (keeps_the_largest, "flags"),
        (carries_a_tensor, "cache"),
        (counts, "calls"),
        (draws_from_numpy, "random stream"),
        (moves_a_buffer, "flags"),
    ],
)
def test_what_a_model_carries_on_is_an_error_that_names_it(form: Form, name: str, engine: str) -> None:
    theta_0, theta_T = ends(form, None)
    with pytest.raises(ValueError, match=rf"carries state .*{name}.*state='per-batch'"):
        mli_fast.sweep(Net(form), theta_0, theta_T, batches(), ALPHAS, progress=False)


def fills_a_cache_once(net: Net, x: Tensor) -> Tensor:
    if "bias" not in net.cache:
        net.cache["bias"] = net.stacked.sum(0)
    return net.out(x @ net.cache["bias"])


class ClearedByEval(Net):
    """As LeViT's attention biases: `eval()` and `train()` clear what passes keep."""

    def train(self, mode: bool = True) -> ClearedByEval:
        super().train(mode)
        self.cache = {}
        return self


def test_a_cache_is_right_where_eval_clears_it_and_an_error_where_nothing_does(engine: str) -> None:
    theta_0, theta_T = ends(fills_a_cache_once, None)
    found = mli_fast.sweep(ClearedByEval(fills_a_cache_once), theta_0, theta_T, batches(), ALPHAS, progress=False)
    expected = plain_losses(ClearedByEval(fills_a_cache_once), theta_0, theta_T)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert found.provenance["engine"] == engine
    with pytest.raises(ValueError, match=r"carries state .*cache.*state='per-batch'"):
        mli_fast.sweep(Net(fills_a_cache_once), theta_0, theta_T, batches(), ALPHAS, progress=False)


@pytest.mark.parametrize("form", [carries_a_tensor, counts, moves_a_buffer])
def test_each_batch_may_start_from_the_model_as_given(form: Form, engine: str) -> None:
    theta_0, theta_T = ends(form, None)
    total = np.zeros(len(ALPHAS))
    for batch in batches():
        total += mli_fast.sweep(Net(form), theta_0, theta_T, [batch], ALPHAS, state="per-batch", progress=False).loss
    together = mli_fast.sweep(Net(form), theta_0, theta_T, batches(), ALPHAS, state="per-batch", progress=False)
    np.testing.assert_allclose(together.loss, total / 3, rtol=1e-6)


_KEPT: dict[str, Tensor] = {}


def keeps_elsewhere(net: Net, x: Tensor) -> Tensor:
    _KEPT["h"] = torch.tanh(net.stem(x) + _KEPT.get("h", 0.0))
    return net.out(_KEPT["h"])


def test_state_that_the_model_does_not_hold_is_an_error_too(engine: str) -> None:
    theta_0, theta_T = ends(keeps_elsewhere, None)
    with pytest.raises(ValueError, match="something else the second time"):
        mli_fast.sweep(Net(keeps_elsewhere), theta_0, theta_T, batches(), ALPHAS, progress=False)


def test_what_is_computed_of_parameters_once_and_kept_aside_is_an_error(engine: str) -> None:
    class Cached(Net):
        @functools.lru_cache(maxsize=8)  # noqa: B019 - what people write
        def mixed(self, times: int) -> Tensor:
            return self.stacked.sum(0) * times

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x @ self.mixed(2))

    theta_0, theta_T = ends(simple, None)
    with pytest.raises(ValueError, match="fresh copy of the model gives something else"):
        mli_fast.sweep(Cached(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)


@pytest.mark.parametrize("source", [itertools.count(1), random.Random(0)], ids=["count", "stream"])
def test_what_is_drawn_at_few_points_alone_is_an_error(source: Any) -> None:
    """Where a branch sends a point to plain PyTorch: no record shows what is kept there."""

    def rarely(net: Net, x: Tensor) -> Tensor:
        if net.out.bias.sum() > 0.5:
            x = x * (next(source) if isinstance(source, itertools.count) else source.random())
        return net.out(torch.sigmoid(net.stem(x)))

    theta_0, theta_T = ends(rarely, None)
    theta_0["out.bias"], theta_T["out.bias"] = torch.zeros(D), torch.ones(D)
    with forced("planned"), pytest.raises(ValueError, match=r"fresh copy|second time|carries state"):
        mli_fast.sweep(Net(rarely), theta_0, theta_T, batches(), [0.0, 0.01, 0.02, 0.03, 0.5], progress=False)


@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
def test_observers_that_go_on_in_eval_mode_are_an_error(listed: bool, engine: str) -> None:
    """The same batch again changes nothing, and they have a way of loading of their own."""
    quantization = pytest.importorskip("torch.ao.quantization")

    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(D, D), nn.Linear(D, 3)
            self.quantise = quantization.FakeQuantize(quantization.MovingAverageMinMaxObserver)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.quantise(self.first(x)))

    data = [(x * (1 + i), y) for i, (x, y) in enumerate(batches())]
    with pytest.raises(ValueError, match="carries state"):
        mli_fast.sweep(Observed(), Observed(), Observed(), data if listed else iter(data), ALPHAS, progress=False)


def test_a_list_of_views_is_no_state_of_its_own(engine: str) -> None:
    """Also where a model has a way of loading of its own: what it keeps is compared after two loads."""

    class Views(ClearedByEval):
        def __init__(self, form: Form) -> None:
            super().__init__(form)
            with torch.no_grad():
                self.kept = [self.f1.weight.t(), self.stacked[1]]

    def by_views(net: Net, x: Tensor) -> Tensor:
        return net.out(torch.tanh(x @ net.kept[0]) @ net.kept[1])

    theta_0, theta_T = ends(by_views, None)
    found = mli_fast.sweep(Views(by_views), theta_0, theta_T, batches(), ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, plain_losses(Views(by_views), theta_0, theta_T), rtol=1e-5)
    assert found.provenance["engine"] == engine
