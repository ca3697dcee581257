"""Ctrl-C at any line: what it leaves behind, and that it comes through."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mli_fast
from mli_fast import interrupts
from tests.cases import assert_same_points, case
from tests.data import Batch
from tests.test_batch_norm import options_of
from tests.test_left_alone import assert_unchanged, lived_in, snapshot

WATCHED = ("/mli_fast/", "/torch/_functorch/", "/torch/utils/_contextlib", "/torch/autograd/", "/contextlib.py")
TRIES = 12  # of each sweep
ALPHAS = [0.0, 0.3, 1.0]


@pytest.fixture(autouse=True)
def pythons_handler() -> Iterator[None]:
    """Ctrl-C is as in a terminal, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupter:
    """Within it, Ctrl-C is pressed at the n-th line that runs in mli_fast or in what PyTorch changes modes by."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines = at, 0
        # Where the interrupted frame is looked at, this one is a debugger's, as it would be
        own = types.FunctionType(type(self)._trace.__code__, globals() | {"__name__": "bdb"})
        self._tracing = types.MethodType(own, self)

    def _trace(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if event == "call" and not any(part in frame.f_code.co_filename for part in WATCHED):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self._tracing

    def __enter__(self) -> Interrupter:
        sys.settrace(self._tracing)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)


class MapsItself(nn.Module):
    """Uses a transform of PyTorch's in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.func.vmap(self.first)(x).tanh())


def transposed(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    return model(inputs.clone()), targets


def world() -> dict[str, Any]:
    """What of PyTorch's and Python's is there for all."""
    return {
        "level": torch._C._functorch.maybe_current_level(),
        "modes": torch._C._len_torch_dispatch_stack(),
        "functions": torch._C._len_torch_function_stack(),
        "handler": signal.getsignal(signal.SIGINT),
        "methods": [vars(torch.Tensor).get(name) for name in ("tolist", "numpy", "data_ptr", "__matmul__")],
        "makers": [torch.tensor, torch.from_numpy, threading.Thread.start],
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._is_fwd_grad_enabled()),
        "autocast": torch.is_autocast_enabled("cpu"),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "waits": interrupts._current,
    }


def mapping(model: nn.Module) -> dict[str, Any]:
    c = case("mlp")
    new, other = MapsItself(), MapsItself()
    return {"model": model, "theta_0": new.state_dict(), "theta_T": other.state_dict(), "loader": c.batches}


SWEEPS: dict[str, tuple[str, Callable[[list[Batch]], dict[str, Any]]]] = {
    "plain": ("mlp", lambda _: {}),
    "slopes": ("mlp", lambda _: {"metrics": ("accuracy", "loss_slope")}),
    "forward": ("dropout-eval", lambda _: {"forward": transposed}),
    "recalibrate": ("mlp-batch-norm", lambda b: options_of("recalibrate", b)),
    "update-bn": ("mlp-batch-norm", lambda b: options_of("update-bn", b)),
    "batch": ("mlp-batch-norm", lambda b: options_of("batch", b)),
    "transform": ("mlp", lambda _: mapping(MapsItself())),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_at_any_line_all_is_put_back_and_the_next_sweep_is_the_first(name: str) -> None:
    architecture, options = SWEEPS[name]
    c = lived_in(architecture)
    given = options(c.batches)
    first = c.sweep(ALPHAS, **given)
    before, around = snapshot(c), world()
    with Interrupter() as counting:
        c.sweep(ALPHAS, **given)
    rng, taken = random.Random(name), 0
    for at in sorted(rng.sample(range(1, counting.lines + 1), TRIES)):
        try:
            with Interrupter(at):
                c.sweep(ALPHAS, **given)
        except KeyboardInterrupt:
            taken += 1
        assert world() == around, f"line {at} of {counting.lines}"
    assert taken >= TRIES - 1  # lines may be fewer by then: what is cached once in a process
    assert_unchanged(before, snapshot(c))
    assert_same_points(c.sweep(ALPHAS, **given), first, range(len(ALPHAS)))


def test_training_a_curve_is_broken_off_likewise() -> None:
    c = lived_in("mlp-batch-norm")
    arguments = (c.model, c.theta_0, c.theta_T, c.batches)

    def fit() -> Any:
        return mli_fast.fit_bezier(*arguments, epochs=2, points=3, metrics=())

    first, before, around = fit(), snapshot(c), world()
    with Interrupter() as counting:
        fit()
    for at in random.Random(0).sample(range(1, counting.lines + 1), TRIES // 2):
        with Interrupter(at), contextlib.suppress(KeyboardInterrupt):
            fit()
        assert world() == around, f"line {at} of {counting.lines}"
    assert_unchanged(before, snapshot(c))
    assert (fit().losses == first.losses).all()


def press_later(seconds: float) -> None:
    """Ctrl-C is pressed so long from now."""
    threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


class Sleeps(nn.Module):
    """Takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(30)
        return self.last(x)


@pytest.mark.parametrize("where", ["loader", "iter", "model", "metric", "criterion"])
def test_the_callers_own_code_is_interrupted_at_once(where: str) -> None:
    c = case("mlp")

    def asleep(*_: Any) -> Any:
        time.sleep(30)

    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            if where == "iter":
                asleep()
            return slow()

    def slow() -> Iterator[Batch]:
        yield c.batches[0]
        asleep()

    options: dict[str, Any] = {
        "loader": {"loader": Loader()},
        "iter": {"loader": Loader()},
        "model": {"model": Sleeps(), "theta_0": Sleeps().state_dict(), "theta_T": Sleeps().state_dict()},
        "metric": {"metrics": {"slow": asleep}},
        "criterion": {"criterion": asleep},
    }[where]
    around, began = world(), time.monotonic()
    press_later(1.0)
    with pytest.raises(KeyboardInterrupt):
        c.sweep(ALPHAS, **options)
    assert time.monotonic() - began < 10
    assert world() == around


def test_a_long_sweep_ends_within_about_a_pass() -> None:
    c = case("cnn-bn")
    press_later(1.0)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        c.sweep(ALPHAS, loader=(batch for _ in range(10**6) for batch in c.batches))
    assert time.monotonic() - began < 10


class Stop(Exception):
    """What the caller's own handler raises."""


def test_the_callers_handler_is_called_once_and_is_back() -> None:
    c, seen = case("mlp"), []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)
        raise Stop

    before = signal.signal(signal.SIGINT, handler)
    try:
        with deferred_twice(), pytest.raises(Stop):
            interrupts.safe()
        with Interrupter(2000), pytest.raises(Stop):
            c.sweep(ALPHAS)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT] * 2


@contextlib.contextmanager
def deferred_twice() -> Iterator[None]:
    with interrupts.deferred(), interrupts.deferred():
        careful()
        yield


def press() -> None:
    signal.raise_signal(signal.SIGINT)


# as PyTorch's code
careful = types.FunctionType(press.__code__, {"signal": signal, "__name__": "torch.somewhere"})


def test_what_waits_is_taken_at_the_end_also_after_an_error() -> None:
    reached = []

    def fails() -> None:
        with interrupts.deferred():
            careful()
            reached.append(True)
            raise ValueError("another")

    with pytest.raises(KeyboardInterrupt) as caught:
        fails()
    assert reached
    assert isinstance(caught.value.__context__, ValueError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait_and_the_next_block_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.0)
    around, reached = world(), []

    def presses_twice() -> None:
        with interrupts.deferred():
            torch._C._functorch._vmap_increment_nesting(2, "error")
            careful()
            careful()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        presses_twice()
    assert not reached
    assert world() == around
    test_what_waits_is_taken_at_the_end_also_after_an_error()


def test_twice_in_quick_succession_is_once() -> None:
    """Some launchers send a signal to the group and to the process."""
    around, reached = world(), []

    def presses_twice() -> None:
        with interrupts.deferred():
            careful()
            careful()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        presses_twice()
    assert reached
    assert world() == around


def test_what_was_never_left_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE", 0.0)
    before, lost = signal.getsignal(signal.SIGINT), interrupts.deferred()
    lost.__enter__()  # broken off before anybody knew that it has to be left
    careful()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            careful()
    with interrupts.deferred():
        pass
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "default"])
def test_a_handler_that_is_not_python_is_left(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts.deferred():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_replaced() -> None:
    found: list[Any] = []

    def work() -> None:
        with interrupts.deferred(), interrupts.at_once():
            interrupts.safe()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_a_sweep_within_the_loader_of_another_is_deferred_all_the_same() -> None:
    with interrupts.deferred(), interrupts.at_once(), pytest.raises(KeyboardInterrupt):
        careful()
    reached = []

    def nested() -> None:
        with interrupts.deferred():
            careful()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt), interrupts.deferred(), interrupts.at_once():
        nested()
    assert reached
