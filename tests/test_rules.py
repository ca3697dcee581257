"""Programs that were wrong once, and programs that try to get round the rules of a record: right, or refused."""

from __future__ import annotations

import copy
import queue
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.checking import difference
from mli_fast.engine.modes import MODES, forced
from mli_fast.engine.running import PlanWarning
from mli_fast.program import _same_constant as same_constant

ALPHAS = [0.0, 0.3, 0.7, 1.0]
D = 5
Form = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """The layers of the forms below, and the ways in which models reach parameters past their attributes."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.stem, self.f1, self.f2, self.out = (nn.Linear(D, D) for _ in range(4))
        self.conv, self.conv2, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.stacked = nn.Parameter(torch.randn(4, D, D))
        self.square = nn.Parameter(torch.eye(D) + 0.1 * torch.randn(D, D))
        self.register_buffer("flags", torch.tensor([1.0, -1.0, 1.0, -1.0]))
        self.register_buffer("scratch", torch.zeros(4, D), persistent=False)
        self.ws = [self.f1.weight]
        self.call = lambda x: self.f1(x)
        self.bound = self.f2.forward
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def image(net: Net, x: Tensor) -> Tensor:
    return x.repeat(1, 8)[:, :32].reshape(-1, 2, 4, 4)


def in_place_residual(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    h += net.f2(torch.relu(net.f1(h)))
    return net.out(h)


def doubled(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    h.add_(h)
    h += torch.sigmoid(h)
    return net.out(h)


def relu_after_reader(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    y = net.f2(h)
    F.relu(h, inplace=True)
    return net.out(y + h)


def batch_written(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    x.add_(1)
    return net.out(torch.relu(y)) + x[:, :5]


def two_readers_then_written(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    y, z = net.f1(h), net.f2(h)
    h.mul_(2)
    return net.out(y * z + h)


def conv_norm_in_place(net: Net, x: Tensor) -> Tensor:
    h = net.bn(net.conv(image(net, x)))
    z = net.conv2(h)
    h = torch.relu_(h)
    h += z
    return h.mean((2, 3))


def part_zeroed(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    h[:, 0] = 0
    return net.out(torch.relu(h))


def clamped(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    h.clamp_(min=0)
    return net.out(h + net.f1(h))


def gates(net: Net, x: Tensor) -> Tensor:
    a, b, c, d = [x @ net.stacked[k] for k in range(4)]
    return net.out(torch.sigmoid(a) * torch.tanh(b) + torch.sigmoid(c) * d)


def flags(net: Net, x: Tensor) -> Tensor:
    for i in range(4):
        if net.flags[i].item() > 0:
            x = torch.tanh(net.stem(x)) * (i + 1)
    return net.out(x)


def pre_activation(net: Net, x: Tensor) -> Tensor:
    t = net.stem(x)
    shortcut = net.f1(t)
    t = torch.relu_(t)
    return net.out(torch.relu(shortcut + t))


def mask_written(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    y[x > 0.3] = 0
    return net.out(torch.relu(y) + y)


def aten_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    torch.ops.aten.add_.Tensor(y, x)
    return net.out(F.gelu(y))


def closures(net: Net, x: Tensor) -> Tensor:
    return net.out(net.call(x) + F.linear(x, net.ws[0]) + net.bound(x))


def derivative(net: Net, x: Tensor) -> Tensor:
    return torch.func.jvp(lambda v: torch.tanh(net.stem(v)), (x,), (torch.ones_like(x),))[1] + net.out(x)


def gradient(net: Net, x: Tensor) -> Tensor:
    with torch.enable_grad():
        v = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(torch.tanh(net.stem(v)).sum(), v)
    return net.out(g)


def mapped(net: Net, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: net.out(torch.tanh(net.stem(row))))(x)


def autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.out(torch.relu(net.stem(x)))


def powers(net: Net, x: Tensor) -> Tensor:
    return net.out(net.stem(x) ** 2 + net.f1.bias**2)


def zeros_plus(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out += net.stem(x)
    return net.out(out)


def added_around_a_clamp(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x).add_(0.1)
    h.clamp_(-1, 1)
    return net.out(h.add_(0.2))


def chunks_written(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    a, b = h[:, :4].chunk(2, 1)
    a.mul_(2)
    b.add_(a)
    return net.out(h)


def into_memory(net: Net, x: Tensor) -> Tensor:
    torch.add(net.stem(x), net.f1(x), out=net.scratch)
    return net.out(net.scratch)


def strides(net: Net, x: Tensor) -> Tensor:
    y = net.conv(image(net, x))
    flat = y.view(y.size(0), -1)
    return flat[:, :5] * float(y.is_contiguous()) + y.stride(1) + y.as_strided((1, 5), (5, 1))


def without_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = net.stem(x).abs().amax()
    return net.out(x) / scale


def raises_and_goes_on(net: Net, x: Tensor) -> Tensor:
    try:
        torch.linalg.cholesky(-net.square)
        return net.out(x)
    except RuntimeError:
        return -net.out(x)


def of_numbers(net: Net, x: Tensor) -> Tensor:
    return net.out(x) * torch.tensor([float(w.norm()) for w in (net.f1.weight, net.f2.weight)]).sum()


def of_tensors(net: Net, x: Tensor) -> Tensor:
    return net.out(x) * torch.tensor([t.norm() for t in (net.f1.weight, net.f2.weight)]).sum()


def through_numpy(net: Net, x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(net.stem(x).detach().numpy())) + net.out(x)


def numpy_writes(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    y.detach().numpy()[:] = 3.0
    return net.out(y)


def in_threads(net: Net, x: Tensor) -> Tensor:
    def call(layer: nn.Module) -> Tensor:
        with torch.no_grad():
            return layer(x)

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(call, (net.f1, net.f2, net.out)))  # type: ignore[return-value]


def printed(net: Net, x: Tensor) -> Tensor:
    return net.out(x) * (len(repr(net.stem(x))) % 7 + 1)


def early_exit(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    return net.out(h) if h.mean().item() > 0.1 else net.f1(h)


def checked(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    assert not torch.isnan(h).any()
    assert not torch.equal(h, x)
    return net.out(h)


def ragged(net: Net, x: Tensor) -> Tensor:
    n = (x.abs().sum(1) * 2).long() % 4 + 1
    return torch.stack([net.out(x[i, : int(k)].mean() * x[i]) for i, k in enumerate(n.tolist())])


def masked_rows(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    kept = h[h[:, 0] > 0]
    return net.out(x) + kept.sum(0) * kept.shape[0]


def data_exchanged(net: Net, x: Tensor) -> Tensor:
    y = net.stem(x)
    y.data = net.f1(x)
    return net.out(y)


def normed_in_training(net: Net, x: Tensor) -> Tensor:
    h = net.conv(image(net, x))
    return F.batch_norm(h, net.bn.running_mean, net.bn.running_var, training=True).mean((2, 3)) + net.out(x)[:, :3]


def embedded(net: Net, x: Tensor) -> Tensor:
    return F.embedding((x[:, 0].abs() * 10).long() % D, net.f1.weight, max_norm=0.5) + net.out(x)


def parameter_given_back(net: Net, x: Tensor) -> Tensor:
    return net.square[:4] if len(x) == 4 else net.out(x)


@torch.jit.script
def listed(x: Tensor) -> Tensor:
    numbers: list[float] = x.tolist()
    total = 0.0
    for number in numbers:
        total += number
    return torch.full((1,), total)


def scripted_list(net: Net, x: Tensor) -> Tensor:
    return net.out(x) + listed(net.stem(x).flatten())


WARM, WORK, DONE = ThreadPool(1), queue.Queue(), queue.SimpleQueue()  # type: ignore[var-annotated]


def work() -> None:
    while True:
        task = WORK.get()
        with torch.no_grad():
            DONE.put(task())


threading.Thread(target=work, daemon=True).start()


def in_a_warm_pool(net: Net, x: Tensor) -> Tensor:
    return net.out(x) + sum(WARM.map(lambda layer: layer(x).detach(), [net.stem, net.f1]))


def handed_over(net: Net, x: Tensor) -> Tensor:
    y = x * 0
    WORK.put(lambda: y.copy_(net.stem(x)))
    DONE.get()
    return net.out(x) + y


def swapped(net: Net, x: Tensor) -> Tensor:
    y, z = net.stem(x), x * 2
    torch.utils.swap_tensors(y, z)
    return net.out(x) + y


def ranked(net: Net, x: Tensor) -> Tensor:
    rank = torch.empty((), dtype=torch.long)
    torch.linalg.matrix_rank(net.square * (net.stem(x)[0] > 0), out=rank)
    return net.out(x) * (1.0 + rank)


def singular(net: Net, x: Tensor) -> Tensor:
    return net.out(x) * torch.linalg.svdvals(net.square).sum() + torch.linalg.norm(net.stacked[0], 2) + x.norm()


FORMS: list[Form] = [
    in_place_residual, doubled, relu_after_reader, batch_written, two_readers_then_written, conv_norm_in_place,
    part_zeroed, clamped, gates, flags, pre_activation, mask_written, aten_in_place, closures, derivative, gradient,
    mapped, autocast, powers, zeros_plus, added_around_a_clamp, chunks_written, into_memory, strides, without_gradient,
    raises_and_goes_on, of_numbers, of_tensors, through_numpy, numpy_writes, in_threads, printed, early_exit, checked,
    ragged, masked_rows, data_exchanged, normed_in_training, embedded, parameter_given_back,
    scripted_list, in_a_warm_pool, handed_over, swapped, ranked, singular,
]  # fmt: skip
REASONS = {  # what is refused, and what the provenance says of it
    "raises_and_goes_on": "raised",
    "of_tensors": "hold more than numbers",
    "through_numpy": "memory of a tensor leaves PyTorch",
    "numpy_writes": "memory of a tensor leaves PyTorch",
    "in_threads": "thread",
    "scripted_list": "TorchScript code that calls prim::tolist",
    "in_a_warm_pool": "thread",
    "handed_over": "thread",
    "swapped": "swapped",
    "ranked": "singular values",
    "singular": "singular values",
    "printed": "modes are switched off",
    "data_exchanged": "memory was exchanged",
    "normed_in_training": "writes to",
    "embedded": "writes to",
    "closures": "reaches the caller's own",
}


def ends(form: Form, constant: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)
    a, b = Net(form).state_dict(), Net(form).state_dict()
    for k in b:
        if constant is not None and k.startswith(constant):
            b[k] = a[k].clone()
        if "running_var" in k:
            b[k] = b[k] + 0.5
    return a, b


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(torch.randn(4, D), torch.arange(4) % 3) for _ in range(3)]


def plain_losses(net: Net, theta_0: dict[str, Tensor], theta_T: dict[str, Tensor]) -> np.ndarray:
    """A loop that loads each point afresh for each batch, which is a copy: a program may write to either."""
    found = []
    for alpha in ALPHAS:
        total = 0.0
        for x, y in batches():
            mixed = {
                k: torch.lerp(v.double(), theta_T[k].double(), alpha).to(v.dtype) if v.is_floating_point() else v
                for k, v in theta_0.items()
            }
            net.load_state_dict(mixed)
            net.eval()
            with torch.no_grad():
                total += float(F.cross_entropy(net(x.clone()).float(), y, reduction="sum"))
        found.append(total / 12)
    return np.array(found)


@pytest.mark.parametrize("constant", [None, "stem", "f1", "conv"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_programs_are_right_in_every_mode(form: Form, constant: str | None) -> None:
    theta_0, theta_T = ends(form, constant)
    kept = copy.deepcopy((theta_0, theta_T))
    expected = plain_losses(Net(form), theta_0, theta_T)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        for mode in MODES:
            with forced(mode):
                found[mode] = mli_fast.sweep(Net(form), theta_0, theta_T, batches(), ALPHAS, progress=False)
    assert np.array_equal(found["replay"].loss, found["plain"].loss)
    for mode, result in found.items():
        np.testing.assert_allclose(result.loss, expected, rtol=2e-2 if form is autocast else 1e-5, err_msg=mode)
    provenance = found["planned"].provenance
    reason = REASONS.get(form.__name__)
    assert (provenance["engine"] == "plain") is (reason is not None)
    assert reason is None or reason in provenance["engine_reason"]
    for before, after in zip(kept, (theta_0, theta_T), strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)


# ------------------------------------------------------------------------------------------- state, and the self-check


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


@pytest.mark.parametrize(
    ("form", "name"),
    [
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


@pytest.mark.parametrize("form", [carries_a_tensor, counts, moves_a_buffer])
def test_each_batch_may_start_from_the_model_as_given(form: Form, engine: str) -> None:
    theta_0, theta_T = ends(form, None)
    total = np.zeros(len(ALPHAS))
    for batch in batches():
        total += mli_fast.sweep(Net(form), theta_0, theta_T, [batch], ALPHAS, state="per-batch", progress=False).loss
    together = mli_fast.sweep(Net(form), theta_0, theta_T, batches(), ALPHAS, state="per-batch", progress=False)
    np.testing.assert_allclose(together.loss, total / 3, rtol=1e-6)


class Wrong:
    """A plan whose results are off at one point."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
        from mli_fast.engine.plan import Plan

        true = Plan.result

        def result(plan: Any, given: Any, shared: Any) -> Any:
            outputs, targets = true(plan, given, shared)
            if given.start <= point < given.start + given.count:
                outputs[point - given.start] *= 1.5
            return outputs, targets

        monkeypatch.setattr(Plan, "result", result)


def simple(net: Net, x: Tensor) -> Tensor:
    return net.out(torch.sigmoid(net.stem(x)))


@pytest.mark.parametrize("point", range(len(ALPHAS)))
def test_a_wrong_plan_is_seen_and_its_values_are_taken_anew(point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    Wrong(monkeypatch, point)
    with pytest.warns(PlanWarning, match="all values are plain PyTorch's now"):
        result = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, check="all", progress=False)
    np.testing.assert_allclose(result.loss, plain_losses(Net(simple), theta_0, theta_T), rtol=1e-5)
    assert "differs" in result.provenance["engine_reason"]
    assert "plain" in result.provenance["engine"]


def test_where_the_data_cannot_be_read_again_a_wrong_plan_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    Wrong(monkeypatch, 0)
    with pytest.raises(RuntimeError, match="cannot be read again"):
        mli_fast.sweep(Net(simple), theta_0, theta_T, iter(batches()), ALPHAS, check="all", progress=False)


def test_without_a_check_a_wrong_plan_is_the_callers_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    theta_0, theta_T = ends(simple, None)
    expected = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False).loss
    Wrong(monkeypatch, 1)
    found = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, check=False, progress=False)
    assert (found.loss != expected).tolist() == [False, True, False, False]
    assert found.provenance["check"] is False


def test_batches_of_many_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from mli_fast.engine import planner

    monkeypatch.setattr(planner, "KINDS", 3)
    theta_0, theta_T = ends(simple, None)
    data = [(torch.randn(n, D), torch.arange(n) % 3) for n in range(1, 9)]
    result = mli_fast.sweep(Net(simple), theta_0, theta_T, data, ALPHAS, progress=False)
    assert "too many kinds of batches" in result.provenance["engine_reason"]
    with forced("plain"):
        plain = mli_fast.sweep(Net(simple), theta_0, theta_T, data, ALPHAS, progress=False)
    np.testing.assert_allclose(result.loss, plain.loss, rtol=1e-6)


def test_an_ambient_autocast_changes_nothing(engine: str) -> None:
    theta_0, theta_T = ends(simple, None)
    alone = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)
    assert np.array_equal(alone.loss, within.loss)


# --------------------------------------------------------------------------------------------- found by a fresh reader


def data_signed(net: Net, x: Tensor) -> Tensor:
    net.f1.weight.data = net.f1.weight.data.sign()
    return net.out(net.f1(x))


def padded(net: Net, x: Tensor) -> Tensor:
    layer = net.layers[0]
    h = layer(x.reshape(2, 2, D)[..., :4], src_key_padding_mask=torch.tensor([[False, True], [False, False]]))
    return net.out(F.pad(h.reshape(4, 4), (0, 1)))


class Fused(Net):
    """Computes a product when it goes to eval mode."""

    def train(self, mode: bool = True) -> Fused:
        if not mode:
            self.fused = (self.f2.weight @ self.f1.weight).detach()
        return super().train(mode)


def fused(net: Any, x: Tensor) -> Tensor:
    return net.out(x @ net.fused.t())


def with_layers(form: Form) -> Net:
    net = Net(form)
    torch.manual_seed(5)
    net.layers = nn.ModuleList([nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)])
    return net


@pytest.mark.parametrize(("make", "form"), [(Net, data_signed), (with_layers, padded), (Fused, fused)])
def test_what_a_fresh_reader_broke(make: Any, form: Form, engine: str) -> None:
    theta_0, theta_T = (make(form).state_dict() for _ in range(2))
    for k, v in theta_T.items():
        if v.is_floating_point() and "running" not in k:
            theta_T[k] = v + 0.3 * torch.randn_like(v)
    found = mli_fast.sweep(make(form), theta_0, theta_T, batches(), ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, plain_losses(make(form), theta_0, theta_T), rtol=1e-5)
    assert found.provenance["engine"] == "plain"


def test_an_error_of_linear_algebra_is_raised_at_the_points_that_have_it(engine: str) -> None:
    def solved(net: Net, x: Tensor) -> Tensor:
        return x @ torch.linalg.cholesky(net.square)

    theta_0, theta_T = ends(solved, None)
    theta_0["square"], theta_T["square"] = -torch.eye(D), 3 * torch.eye(D)
    with pytest.raises(RuntimeError, match="cholesky"):
        mli_fast.sweep(Net(solved), theta_0, theta_T, batches(), [0.0, 0.5, 0.8, 1.0], progress=False)
    alone = mli_fast.sweep(Net(solved), theta_0, theta_T, batches(), [0.5, 0.8, 1.0], progress=False)
    assert np.isfinite(alone.loss).all()


def test_a_loader_may_fill_the_same_memory_again(engine: str) -> None:
    theta_0, theta_T = ends(simple, None)

    def refilled() -> Any:
        x, y = torch.empty(4, D), torch.empty(4, dtype=torch.long)
        for given in batches():
            x.copy_(given[0])
            y.copy_(given[1])
            yield x, y

    found = mli_fast.sweep(Net(simple), theta_0, theta_T, refilled(), ALPHAS, progress=False)
    expected = mli_fast.sweep(Net(simple), theta_0, theta_T, batches(), ALPHAS, progress=False)
    assert np.array_equal(found.loss, expected.loss)


def test_a_criterion_may_write_to_what_it_gets(engine: str) -> None:
    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs.mul_(2)
        return F.cross_entropy(outputs, targets.sub_(1).remainder_(3), reduction="none")

    theta_0, theta_T = ends(simple, None)
    data = batches()

    def losses(alphas: list[float]) -> list[float]:
        options: dict[str, Any] = {"criterion": criterion, "metrics": (), "progress": False}
        return list(mli_fast.sweep(Net(simple), theta_0, theta_T, data, alphas, **options).loss)

    assert losses(ALPHAS) == [losses([alpha])[0] for alpha in ALPHAS]
    assert all(torch.equal(y, given) for (_, y), (_, given) in zip(data, batches(), strict=True))


_KEPT: dict[str, Tensor] = {}


def keeps_elsewhere(net: Net, x: Tensor) -> Tensor:
    _KEPT["h"] = torch.tanh(net.stem(x) + _KEPT.get("h", 0.0))
    return net.out(_KEPT["h"])


def test_state_that_the_model_does_not_hold_is_an_error_too(engine: str) -> None:
    theta_0, theta_T = ends(keeps_elsewhere, None)
    with pytest.raises(ValueError, match="something else the second time"):
        mli_fast.sweep(Net(keeps_elsewhere), theta_0, theta_T, batches(), ALPHAS, progress=False)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_batches_are_plain_pytorchs(layout: str) -> None:
    def mixed(net: Net, x: Tensor) -> Tensor:
        return net.out(torch.sparse.mm(x, net.square))

    theta_0, theta_T = ends(mixed, None)
    data = [(getattr((x > 0).float(), layout)(), y) for x, y in batches()]
    found = mli_fast.sweep(Net(mixed), theta_0, theta_T, data, ALPHAS, progress=False)
    dense = mli_fast.sweep(Net(mixed), theta_0, theta_T, [(x.to_dense(), y) for x, y in data], ALPHAS, progress=False)
    np.testing.assert_allclose(found.loss, dense.loss, rtol=1e-5)
    assert "layout" in found.provenance["engine_reason"]


@pytest.mark.parametrize(
    ("a", "b"), [(np.nan, 0.0), (np.inf, torch.finfo(torch.float32).max), (-np.inf, torch.finfo(torch.float32).min)]
)
def test_constants_and_results_are_told_apart_by_every_number(a: float, b: float) -> None:
    one, other = torch.tensor([a, 1.0]), torch.tensor([b, 1.0])
    assert not same_constant(one, other, literal=True)
    assert same_constant(one, one.clone(), literal=True)
    assert not same_constant(torch.tensor(0.0), torch.tensor(-0.0), literal=True)
    assert difference([one], [other], exact=True) is not None
    assert difference([one], [one.clone()], exact=True) is None
