"""What is the caller's is afterwards as it was: after success, an exception, Ctrl-C, running out of memory."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mli_fast
from mli_fast.engine import calls, forced
from tests.cases import Case, assert_same_points, case
from tests.data import Batch
from tests.models import ARCHITECTURES, endpoints_of


def bits(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tensors_in(value: Any) -> Iterable[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def snapshot(c: Case) -> dict[str, Any]:
    """All of the caller's world that a sweep could disturb."""
    model = c.model
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "values": {name: (id(t), t.data_ptr(), bits(t)) for name, t in everything},
        "requires grad": {name: t.requires_grad for name, t in everything},
        "gradients": {name: None if t.grad is None else (id(t.grad), bits(t.grad)) for name, t in everything},
        "modes": {name: module.training for name, module in model.named_modules()},
        "types": {name: type(module) for name, module in model.named_modules()},
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "theta_0": {key: (id(t), t.data_ptr(), bits(t), t.requires_grad) for key, t in c.theta_0.items()},
        "theta_T": {key: (id(t), t.data_ptr(), bits(t), t.requires_grad) for key, t in c.theta_T.items()},
        "batches": [(id(t), bits(t), t.requires_grad) for t in tensors_in(c.batches)],
        "torch random state": bits(torch.get_rng_state()),
        "numpy random state": str(np.random.get_state()),  # noqa: NPY002 - the global one is what must not move
        "python random state": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "environment": dict(os.environ),
    }  # fmt: skip


def lived_in(name: str) -> Case:
    """A case whose model has been in use: half of it training, half of it frozen, gradients lying about."""
    c = case(name)
    c.model.train()
    for i, module in enumerate(c.model.modules()):
        if i % 3 == 2:
            module.eval()
    for i, parameter in enumerate(c.model.parameters()):
        parameter.requires_grad_(i % 3 != 1)
        if i % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    return c


class Mishap(Exception):
    """An error that only the caller's code can raise."""


class RaisesOnShortBatch(nn.Module):
    """Raises in the last, shorter batch, after the model has been used on two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.first(x)))
        if len(x) == 3:
            raise Mishap("short batch")
        return self.last(hidden)


def stops_after(batches: list[Batch], error: BaseException) -> Iterator[Batch]:
    """A loader that raises in place of its third batch."""
    yield from batches[:2]
    raise error


def metric_that_raises(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that works on two batches."""
    if len(targets) == 3:
        raise Mishap("short batch")
    return outputs.square().mean(1)


@pytest.mark.parametrize(
    "name", ["mlp", "cnn-bn", "dropout-eval", "gpt2", "tied-autoencoder", "writes-into-its-input", "weight-norm"]
)
def test_the_callers_things_are_as_they_were(engine: str, name: str) -> None:
    c = lived_in(name)
    before = snapshot(c)
    c.sweep([0.0, 0.3, 1.0], chunk=2)
    assert_unchanged(before, snapshot(c))


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Item by item, so that a failure says what has moved."""
    for what, value in before.items():
        assert after[what] == value, f"{what} changed"


@pytest.mark.parametrize("where", ["model", "loader", "metric", "criterion", "ctrl-c"])
def test_the_callers_things_are_as_they_were_after(where: str, engine: str) -> None:
    c = lived_in("mlp-batch-norm")
    error: type[BaseException] = Mishap
    options: dict[str, Any] = {"metrics": ("accuracy",)}
    if where == "model":
        model = RaisesOnShortBatch()
        c = Case(model, *endpoints_of(lambda _: model), c.batches)
    elif where == "loader":
        options["loader"] = stops_after(c.batches, Mishap("no more"))
    elif where == "metric":
        options["metrics"] = {"size": metric_that_raises}
    elif where == "criterion":
        options["criterion"] = metric_that_raises
    else:
        error, options["loader"] = KeyboardInterrupt, stops_after(c.batches, KeyboardInterrupt())
    before = snapshot(c)
    with pytest.raises(error):
        c.sweep([0.0, 0.3, 1.0], chunk=2, **options)
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("where", ["data-loader", "shuffling-data-loader", "own-noise"])
def test_random_numbers_that_the_loader_draws_leave_no_trace(engine: str, where: str) -> None:
    c = case("mlp")
    x, y = torch.cat([x for x, _ in c.batches]), torch.cat([y for _, y in c.batches])

    def noisy() -> Iterator[Batch]:
        for inputs, targets in c.batches:
            yield inputs + torch.randn(1) * random.random() * np.random.rand(), targets  # noqa: NPY002

    own = where == "own-noise"
    loader = noisy() if own else DataLoader(TensorDataset(x, y), batch_size=5, shuffle=where.startswith("shuffling"))
    before = snapshot(c)
    c.sweep([0.0, 0.5], loader=loader)
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("where", ["gpt2-train", "dropout-train", "batch-norm-train"])
def test_training_mode_of_the_callers_model_does_not_change_the_values(engine: str, where: str) -> None:
    name = {"gpt2-train": "gpt2", "dropout-train": "dropout-eval", "batch-norm-train": "cnn-bn"}[where]
    training, evaluating = case(name), case(name)
    training.model.train()
    assert_same_points(training.sweep(3), evaluating.sweep(3), range(3))


def test_a_sweep_works_inside_no_grad_and_inference_mode_alike(engine: str) -> None:
    c = case("cnn-bn")
    outside = c.sweep(3)
    with torch.no_grad():
        assert_same_points(c.sweep(3), outside, range(3))
    with torch.inference_mode():
        assert_same_points(c.sweep(3), outside, range(3))


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "writes-into-its-input"])
def test_tensors_made_in_inference_mode_will_do(engine: str, name: str) -> None:
    c = case(name)
    with torch.inference_mode():
        batches = [(x.clone(), y.clone()) for x, y in c.batches]
        theta_0, theta_T = ({key: value.clone() for key, value in s.items()} for s in (c.theta_0, c.theta_T))
    assert batches[0][0].is_inference()
    result = c.sweep(3, theta_0=theta_0, theta_T=theta_T, loader=batches)
    ordinary = [(x.clone(), y.clone()) for x, y in c.batches]  # laid out in memory as those are
    assert_same_points(result, c.sweep(3, loader=ordinary), range(3))


class KeepsNotes(nn.Module):
    """Keeps what it has seen, as an attribute, in a list and in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(6, 8), nn.Linear(8, 4), [0]
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        self.calls += 1
        self.seen.append(len(x))
        self.hidden = hidden
        return self.last(hidden)


@pytest.mark.parametrize("under", [nullcontext(), forced("plain")], ids=["auto", "plain"])
def test_a_model_that_keeps_notes_keeps_none_of_the_sweep(under: AbstractContextManager[None]) -> None:
    model = KeepsNotes()
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    before = snapshot(c)
    with under:
        result = c.sweep(3)
    assert result.provenance["engine"] == "plain"
    assert_unchanged(before, snapshot(c))
    assert model.seen == [0]
    assert int(model.calls) == 0


def test_checkpoints_may_be_modules_that_are_then_left_alone(engine: str) -> None:
    c, first, last = case("cnn-bn"), ARCHITECTURES["cnn-bn"].model(), ARCHITECTURES["cnn-bn"].model()
    first.load_state_dict(c.theta_0)
    last.load_state_dict(c.theta_T)
    held = {key: (t.data_ptr(), bits(t)) for m in (first, last) for key, t in m.state_dict(keep_vars=True).items()}
    assert_same_points(c.sweep(3, theta_0=first, theta_T=last.train()), c.sweep(3), range(3))
    assert last.training
    assert held == {
        key: (t.data_ptr(), bits(t)) for m in (first, last) for key, t in m.state_dict(keep_vars=True).items()
    }


def test_the_model_itself_may_be_an_endpoint(engine: str) -> None:
    c = case("mlp")
    model = ARCHITECTURES["mlp"].model()
    model.load_state_dict(c.theta_T)
    assert_same_points(c.sweep(4, model=model, theta_T=model), c.sweep(4), range(4))
    assert all(bits(model.state_dict()[key]) == bits(c.theta_T[key]) for key in c.theta_T)


# --------------------------------------------------------------------------------------------------------------- memory


SEEN: list[int] = []
"""Points per call that `exhausted` let through."""


def exhausted(points: int, limit: int, kind: int) -> None:
    """Raises as torch does on a GPU (kind 0) and on a CPU (kind 1)."""
    if points > limit:
        if kind == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
        )
    SEEN.append(points)


@contextmanager
def bounded(limit: int, only_rows: int = 0, kind: int = 0) -> Iterator[None]:
    """Chains of layers run out of memory for more than `limit` points at once (in batches of `only_rows`, if set)."""
    chain = calls.NativeChain.__call__

    def call(self: Any, x: Any, residual: Any, points: int, *rest: Any) -> Tensor:
        rows = len(x[0]) if isinstance(x, list) else len(x) // points
        if only_rows in (0, rows):
            exhausted(points, limit, kind)
        return chain(self, x, residual, points, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls.NativeChain, "__call__", call)
        yield


class Exhausts(nn.Module):
    """A model that runs out of memory at any point."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(6, 9), nn.Linear(9, 4), kind

    def forward(self, x: Tensor) -> Tensor:
        exhausted(1, 0, self.kind)
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("kind", [0, 1], ids=["OutOfMemoryError", "DefaultCPUAllocator"])
@pytest.mark.parametrize("only_rows", [0, 3], ids=["every-batch", "last-batch-only"])
@pytest.mark.parametrize("chunk", [13, "auto"])
def test_running_out_of_memory_halves_the_chunk_and_goes_on(chunk: int | str, only_rows: int, kind: int) -> None:
    SEEN.clear()
    alphas = np.linspace(0, 1, 13)
    plenty = case("mlp").sweep(alphas, chunk=13)
    with bounded(3, only_rows, kind):
        result = case("mlp").sweep(alphas, chunk=chunk)
    assert_same_points(result, plenty, range(13))
    np.testing.assert_array_equal(result["loss_step"], plenty["loss_step"])
    assert result.count == 13
    assert plenty.provenance["chunk"] == 13
    assert 1 <= result.provenance["chunk"] <= 3


@pytest.mark.parametrize("kind", [0, 1], ids=["OutOfMemoryError", "DefaultCPUAllocator"])
@pytest.mark.parametrize("under", ["plain", "planned"])
def test_out_of_memory_at_one_point_says_what_it_would_need(under: str, kind: int) -> None:
    model = Exhausts(kind)
    c = Case(model, *endpoints_of(lambda _: model), case("mlp").batches)
    before = snapshot(c)
    with forced(under), pytest.raises(RuntimeError, match=r"(?is)memory.*\d+(\.\d+)?\s*([KMGT]i?B|bytes)") as caught:
        c.sweep(4, chunk=4)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "batch 0" in text or "batch 1" in text, text
    assert_unchanged(before, snapshot(c))


@pytest.mark.parametrize("live", ["theta_0", "theta_T", "both"])
def test_a_model_that_reaches_the_callers_weights_may_be_an_end_itself(live: str) -> None:
    """What it reaches by a closure gets each point's values; the end keeps its own."""

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
            layer = self.layer
            self.call = lambda x: layer(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.call(x)))

    model, other = Closed(), Closed()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    data = [(torch.randn(5, 4), torch.arange(5) % 3)]
    ends = (model if live != "theta_T" else other, model if live != "theta_0" else other)
    copies = [own if end is model else other.state_dict() for end in ends]
    expected = mli_fast.sweep(model, *copies, data, 4, progress=False).loss
    for given in (ends, [end.state_dict() for end in ends]):
        assert mli_fast.sweep(model, *given, data, 4, progress=False).loss.tolist() == expected.tolist()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_sweeps_in_two_threads_leave_pytorch_as_it_is() -> None:
    """While a pass is recorded methods are patched; two threads must not put back each other's."""

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.05)
            return self.layer(x)

    owners = [(Tensor, "numpy"), (Tensor, "tolist"), (torch, "tensor"), (torch, "matmul"), (threading.Thread, "start")]
    before = [getattr(owner, name) for owner, name in owners]
    data = [(torch.randn(12, 8), torch.arange(12) % 3)]
    found: list[Any] = []

    def job(wait: float) -> None:
        time.sleep(wait)
        found.append(mli_fast.sweep(Slow(), Slow(), Slow(), data, 3, progress=False).loss)

    threads = [threading.Thread(target=job, args=(wait,)) for wait in (0.0, 0.03)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert [getattr(owner, name) for owner, name in owners] == before
