"""The peers: every other way of computing the mean cross entropy along a line of parameters, at its honest best.

A peer is called as `peer(model_factory, theta_0, theta_T, X, y, alphas, batch_size) -> losses [A]`, or prepared once
with `peer.prepare(problem, options)`, which compiles and copies outside the clock, and then run again and again.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workloads import Problem

Run = Callable[[], np.ndarray]
State = dict[str, Tensor]


class Unavailable(RuntimeError):
    """This peer cannot do this work here; the message says why."""


@dataclass(frozen=True)
class Options:
    """What a peer may choose for itself before it is measured."""

    batch_size: int
    channels_last: bool = False
    points: int | None = None  # alphas per pass, for the peers that take several at once; None: all of them
    math_attention: bool = False  # the only attention of PyTorch that vmap can batch on a CPU


@dataclass(frozen=True)
class Peer:
    """One way of doing the work."""

    name: str
    title: str
    maker: Callable[[Problem, Options], Run]
    batched: bool = False  # takes several alphas per pass
    compiled: bool = False  # spends seconds compiling for each batch shape
    layouts: bool = False  # may run channels_last
    follows: str | None = None  # the peer whose tuning narrows this one's (compiling every candidate takes minutes)
    package: str | None = None
    own_alphas: bool = False  # evaluates 1/n, 2/n .. 1 and keeps theta_0's buffers, whatever it is asked

    def prepare(self, problem: Problem, options: Options) -> Run:
        """Copies, converts and compiles; the function returned does one whole sweep -> mean losses [A]."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise Unavailable(f"{self.package} is not installed")
        return self.maker(problem, options)

    def __call__(
        self,
        model_factory: Callable[[], nn.Module],
        theta_0: State,
        theta_T: State,
        X: Tensor,  # [N, ...]
        y: Tensor,  # [N]
        alphas: Any,  # [A]
        batch_size: int,
        **options: Any,
    ) -> np.ndarray:
        """One sweep, mean losses [A] in float64; `options` are those of `Options`."""
        problem = Problem(model_factory, theta_0, theta_T, X, y, np.asarray(alphas, np.float64))
        return self.prepare(problem, Options(batch_size, **options))()

    def question(self, problem: Problem) -> Problem:
        """The problem this peer in fact answers when given `problem`: the one its values are checked against."""
        if not self.own_alphas:
            return problem
        count = len(problem.alphas)
        parameters = {name for name, _ in problem.model_factory().named_parameters()}
        end = {name: (problem.theta_T if name in parameters else problem.theta_0)[name] for name in problem.theta_0}
        return problem._replace(theta_T=end, alphas=np.arange(1, count + 1) / count)


def _lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    return torch.lerp(start, end, alpha) if start.is_floating_point() else end


def _batches(problem: Problem, options: Options) -> list[tuple[Tensor, Tensor]]:
    X = problem.X
    if options.channels_last and X.dim() == 4:
        X = X.contiguous(memory_format=torch.channels_last)
    return list(zip(X.split(options.batch_size), problem.y.split(options.batch_size), strict=True))


def _model(problem: Problem, options: Options) -> nn.Module:
    model = problem.model_factory().eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last) if options.channels_last else model  # type: ignore[call-overload]


def _plain_loop(problem: Problem, options: Options) -> Run:
    """What a user writes."""
    model = _model(problem, options)
    loader = DataLoader(TensorDataset(problem.X, problem.y), batch_size=options.batch_size)

    def run() -> np.ndarray:
        losses = []
        for alpha in problem.alphas.tolist():
            state = {k: _lerp(problem.theta_0[k], problem.theta_T[k], alpha) for k in problem.theta_0}
            model.load_state_dict(state)
            total = 0.0
            with torch.no_grad():
                for x, y in loader:
                    total += F.cross_entropy(model(x), y, reduction="sum").item()
            losses.append(total / len(problem.X))
        return np.array(losses)

    return run


def _loss_landscapes(problem: Problem, options: Options) -> Run:
    """The package's own function; its metric is one fixed batch, or a loop over batches where that is faster."""
    from loss_landscapes import linear_interpolation  # type: ignore[import-untyped]
    from loss_landscapes.metrics import Loss, Metric  # type: ignore[import-untyped]

    batches = _batches(problem, options)
    start, end = _model(problem, options), _model(problem, options)
    start.load_state_dict(problem.theta_0)
    end.load_state_dict(problem.theta_T)

    class BatchedLoss(Metric):
        def __call__(self, model_wrapper: Any) -> float:
            total = sum(F.cross_entropy(model_wrapper.forward(x), y, reduction="sum").double() for x, y in batches)
            return float(total) / len(problem.X)

    whole = len(batches) == 1
    metric = Loss(F.cross_entropy, *batches[0]) if whole else BatchedLoss()

    def run() -> np.ndarray:
        # Without deepcopy_model it would overwrite the start model, and the second run would start at the end.
        values = linear_interpolation(start, end, metric, steps=len(problem.alphas), deepcopy_model=True)
        return np.asarray(values, np.float64)

    return run


def _tuned(problem: Problem, options: Options, compiled: bool) -> Run:
    """Data in memory, values blended in place, no autograd, one read-back per alpha."""
    model, batches = _model(problem, options), _batches(problem, options)
    # Blending into the layout the model has: a permuted copy per alpha would count against the peer.
    starts, ends = copy.deepcopy(model), copy.deepcopy(model)
    starts.load_state_dict(problem.theta_0)
    ends.load_state_dict(problem.theta_T)
    slots = [
        (start, end, out)
        for start, end, out in zip(
            *(list(each.parameters()) + list(each.buffers()) for each in (starts, ends, model)), strict=True
        )
        if out.is_floating_point()
    ]

    def batch_loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum")

    loss = torch.compile(batch_loss, dynamic=False) if compiled else batch_loss

    def run() -> np.ndarray:
        losses = np.empty(len(problem.alphas))
        with torch.inference_mode():
            for index, alpha in enumerate(problem.alphas.tolist()):
                for start, end, out in slots:
                    torch.lerp(start, end, alpha, out=out)
                total = sum(loss(x, y).double() for x, y in batches)
                losses[index] = float(total) / len(problem.X)
        return losses

    return run


def _tuned_loop(problem: Problem, options: Options) -> Run:
    return _tuned(problem, options, compiled=False)


def _compiled_loop(problem: Problem, options: Options) -> Run:
    return _tuned(problem, options, compiled=True)


def _passes(count: int, options: Options) -> Iterator[slice]:
    points = options.points or count
    for first in range(0, count, points):
        yield slice(first, min(first + points, count))


def _vmapped(problem: Problem, options: Options, compiled: bool) -> Run:
    """torch.func: the parameters of all points stacked once, then vmap over them, batch after batch."""
    model, batches = _model(problem, options), _batches(problem, options)
    floating = [name for name, value in problem.theta_0.items() if value.is_floating_point()]

    def batch_losses(stacked: State, x: Tensor, y: Tensor) -> Tensor:  # -> [points]
        def at_point(values: State) -> Tensor:
            return F.cross_entropy(functional_call(model, values, (x,)), y, reduction="sum")

        return vmap(at_point)(stacked)

    losses = torch.compile(batch_losses, dynamic=False) if compiled else batch_losses

    def run() -> np.ndarray:
        totals = torch.zeros(len(problem.alphas), dtype=torch.float64)
        attention = sdpa_kernel(SDPBackend.MATH) if options.math_attention else nullcontext()
        with torch.no_grad(), attention:
            for rows in _passes(len(problem.alphas), options):
                alphas = torch.tensor(problem.alphas[rows])
                stacked = {}
                for name in floating:
                    start, end = problem.theta_0[name], problem.theta_T[name]
                    weight = alphas.to(start.dtype).view(-1, *[1] * start.dim())
                    stacked[name] = torch.lerp(start[None], end[None], weight)
                for x, y in batches:
                    totals[rows] += losses(stacked, x, y)
        return (totals / len(problem.X)).numpy()

    return run


def _vmap(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=False)


def _compiled_vmap(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=True)


def _jax(problem: Problem, options: Options) -> Run:
    """JAX: jit of vmap over the points, in its own layouts; one point at a time is jit without vmap."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    import jax.numpy as jnp

    from benchmarks.jax_models import forward_for

    forward = forward_for(problem.model_factory())
    if forward is None:
        raise Unavailable("this network is not written in JAX here")

    def array(value: Tensor, image: bool) -> Any:
        moved = value.permute(2, 3, 1, 0) if value.dim() == 4 else value  # OIHW -> HWIO
        moved = value.permute(0, 2, 3, 1) if image and value.dim() == 4 else moved  # NCHW -> NHWC
        return jnp.asarray(moved.contiguous().numpy())

    floating = [name for name, value in problem.theta_0.items() if value.is_floating_point()]
    start, end = ({k: array(theta[k], image=False) for k in floating} for theta in (problem.theta_0, problem.theta_T))
    batches = [(array(x, image=True), jnp.asarray(y.numpy())) for x, y in _batches(problem, options)]

    def at_point(alpha: Any, start: Any, end: Any, x: Any, y: Any) -> Any:
        logits = forward({k: (1 - alpha) * start[k] + alpha * end[k] for k in start}, x)
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).sum()

    single = options.points == 1
    losses = jax.jit(at_point if single else jax.vmap(at_point, in_axes=(0, None, None, None, None)))

    def run() -> np.ndarray:
        totals = np.zeros(len(problem.alphas))
        for rows in _passes(len(problem.alphas), options):
            alphas = jnp.asarray(problem.alphas[rows], jnp.float32)
            parts = [losses(alphas[0] if single else alphas, start, end, x, y) for x, y in batches]
            totals[rows] = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        return totals / len(problem.X)

    return run


plain_loop = Peer("plain_loop", "plain loop, DataLoader", _plain_loop)
loss_landscapes = Peer(
    "loss_landscapes",
    "loss-landscapes",
    _loss_landscapes,
    layouts=True,
    follows="tuned_loop",
    package="loss_landscapes",
    own_alphas=True,
)
tuned_loop = Peer("tuned_loop", "tuned loop in memory", _tuned_loop, layouts=True)
compiled_loop = Peer(
    "compiled_loop", "torch.compile loop", _compiled_loop, compiled=True, layouts=True, follows="tuned_loop"
)
vmap_peer = Peer("vmap", "vmap", _vmap, batched=True)
compiled_vmap = Peer("compiled_vmap", "compiled vmap", _compiled_vmap, batched=True, compiled=True, follows="vmap")
jax_peer = Peer("jax", "JAX vmap + jit", _jax, batched=True, compiled=True, package="jax")

PEERS = {
    peer.name: peer
    for peer in (plain_loop, tuned_loop, loss_landscapes, compiled_loop, vmap_peer, compiled_vmap, jax_peer)
}
