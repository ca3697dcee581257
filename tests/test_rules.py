"""Programs that were wrong once, and programs that try to get round the rules of a record: right, or refused."""

from __future__ import annotations

import copy
import queue
import threading
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.modes import MODES, forced
from mli_fast.engine.running import PlanWarning
from tests.by_hand import ALPHAS, D, Form, Net, batches, ends, plain_losses, simple


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


def polled() -> None:
    while True:
        if MAILBOX:
            x, y, layer = MAILBOX.pop()
            with torch.no_grad():
                y.copy_(layer(x))
            POSTED.append(True)
        time.sleep(1e-4)


MAILBOX: deque[Any] = deque()
POSTED: deque[bool] = deque()
threading.Thread(target=polled, daemon=True).start()


def left_in_a_mailbox(net: Net, x: Tensor) -> Tensor:
    y = x * 0
    MAILBOX.append((x, y, net.stem))
    while not POSTED:
        time.sleep(1e-4)
    POSTED.clear()
    return net.out(x) + y


def applied_to_elements(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    h.apply_(lambda z: 0.5 * z)
    return net.out(h.map_(h.clone(), lambda a, b: a + abs(b)))


def written_through_dlpack(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h)).mul_(0.5)
    return net.out(h)


def foreach_after_tanh(net: Net, x: Tensor) -> Tensor:
    h = torch.tanh(net.stem(x))
    torch._foreach_mul_([h, x], 0.5)
    return net.out(h) + x


def conditional(net: Net, x: Tensor) -> Tensor:
    h = net.stem(x)
    return net.out(torch.cond(h.sum() > 0, lambda t: t * 2, lambda t: t - 1, (h,)))


def split_by_name(net: Net, x: Tensor) -> Tensor:
    parts = torch.ops.aten.tensor_split(x.sum(0), (x[:, 0] > 0).sum().reshape(1))
    return net.out(net.stem(x)) * (1.0 + len(parts[0]))


def packed_by_hand(net: Net, x: Tensor) -> Tensor:
    first = 2 + (x[0, 0] > 0).long()
    packed = nn.utils.rnn.PackedSequence(net.stem(x), torch.stack([first, 4 - first]))
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
    return net.out(padded[0, :1] + padded[1, -1:]) + x


def detached_in_place(net: Net, x: Tensor) -> Tensor:
    x.detach_()
    return net.out(net.stem(x * 1).detach_()) + x


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
    scripted_list, in_a_warm_pool, handed_over, left_in_a_mailbox, applied_to_elements, written_through_dlpack,
    foreach_after_tanh, conditional, split_by_name, packed_by_hand,
    detached_in_place, swapped, ranked, singular,
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
    "left_in_a_mailbox": "written to by what is not seen",
    "applied_to_elements": "a Python function is given the elements",
    "written_through_dlpack": "memory of a tensor leaves PyTorch",
    "conditional": "while it is recorded",
    "split_by_name": "called as such",
    "swapped": "swapped",
    "ranked": "singular values",
    "singular": "singular values",
    "printed": "modes are switched off",
    "data_exchanged": "memory was exchanged",
    "normed_in_training": "writes to",
    "embedded": "writes to",
    "closures": "reaches the caller's own",
}


def lengths(net: Net, x: Tensor) -> Tensor:
    return net.out(net.stem(x)) * torch.LongTensor([int(n) for n in (x > 0).sum(1)])[:, None]


def new_of_batch(net: Net, x: Tensor) -> Tensor:
    return net.out(net.stem(x)) * x.new_tensor([t.sum() for t in x])[:, None]


def legacy(net: Net, x: Tensor) -> Tensor:
    return net.out(net.stem(x)) * torch.Tensor([t.sum() for t in x])[:, None]


@pytest.mark.parametrize("alphas", [ALPHAS, [0.3]])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("form", [lengths, new_of_batch, legacy])
def test_tensors_made_of_a_batchs_numbers_are_that_batchs(form: Form, grouped: bool, alphas: list[float]) -> None:
    theta_0, theta_T = ends(form, None)
    data = batches()
    options: dict[str, Any] = {"check": False, "progress": False}
    with forced("plain"):
        expected = mli_fast.sweep(Net(form), theta_0, theta_T, data, alphas, **options).loss
    options |= {} if grouped else {"metrics": ("accuracy", "gauss_length")} if len(alphas) > 1 else {}
    found = mli_fast.sweep(Net(form), theta_0, theta_T, data, alphas, **options)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)


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
