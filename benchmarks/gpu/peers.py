"""What a user would do today on a GPU: loops over the points, eager and compiled, vmap, JAX."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gpu.workloads import Problem, State, Workload
from benchmarks.peers import Unavailable

Run = Callable[[], np.ndarray]
SCALED_ALPHAS = 2  # at which the plain loop is timed


@dataclass(frozen=True)
class Options:
    """What a peer may choose before it is measured."""

    batch: int
    points: int | None = None  # alphas per pass of vmap; None: all
    mode: str | None = None  # of torch.compile


@dataclass(frozen=True)
class Peer:
    """One way of doing the work; `candidates` are its options for a workload, none where it does not take part."""

    name: str
    title: str
    prepare: Callable[[Problem, Options], Run]
    candidates: Callable[[Workload], list[Options]]
    compiled: bool = False


def _model(problem: Problem) -> nn.Module:
    model = problem.factory().eval().requires_grad_(False).to(problem.X.device)
    floating = next(v.dtype for v in problem.start.values() if v.is_floating_point())
    model = model.to(floating)
    return model.to(memory_format=torch.channels_last) if problem.X.ndim == 4 else model  # type: ignore[call-overload]


def _batches(problem: Problem, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(problem.X.split(size), problem.y.split(size), strict=True))


def _loop(problem: Problem, options: Options, compiled: bool) -> Run:
    """Data on the GPU, values blended in place, nothing read back before the end."""
    model, batches = _model(problem), _batches(problem, options.batch)
    starts, ends = copy.deepcopy(model), copy.deepcopy(model)
    starts.load_state_dict(problem.start)
    ends.load_state_dict(problem.end)
    models = (starts, ends, model)
    slots = zip(*(list(m.parameters()) + list(m.buffers()) for m in models), strict=True)
    first, last, out = ([s[i] for s in slots if s[2].is_floating_point()] for slots in [list(slots)] for i in range(3))

    def batch_loss(x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(model, x, y)

    loss = torch.compile(batch_loss, dynamic=False, mode=options.mode) if compiled else batch_loss

    def run() -> np.ndarray:
        totals = []
        with torch.no_grad():
            for alpha in problem.alphas.tolist():
                torch._foreach_copy_(out, first)
                torch._foreach_lerp_(out, last, alpha)
                totals.append(sum(loss(x, y).double() for x, y in batches))
        return torch.stack(totals).cpu().numpy() / problem.counted()  # type: ignore[arg-type]

    return run


def _eager_loop(problem: Problem, options: Options) -> Run:
    return _loop(problem, options, compiled=False)


def _compiled_loop(problem: Problem, options: Options) -> Run:
    return _loop(problem, options, compiled=True)


def _passes(count: int, points: int | None) -> Iterator[slice]:
    step = points or count
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _vmapped(problem: Problem, options: Options, compiled: bool) -> Run:
    """torch.func: blended in the function that is mapped over the points, so that a compiler may fuse it."""
    model, batches = _model(problem), _batches(problem, options.batch)

    def losses(alphas: Tensor, x: Tensor, y: Tensor) -> Tensor:  # -> [points]
        def at_point(alpha: Tensor) -> Tensor:
            values: State = {
                name: torch.lerp(start, problem.end[name], alpha) if start.is_floating_point() else start
                for name, start in problem.start.items()
            }
            return problem.loss(lambda z: functional_call(model, values, (z,)), x, y)

        return vmap(at_point)(alphas)

    mapped = torch.compile(losses, dynamic=False) if compiled else losses
    dtype = next(v.dtype for v in problem.start.values() if v.is_floating_point())
    weights = torch.tensor(problem.alphas, dtype=dtype, device=problem.X.device)

    def run() -> np.ndarray:
        with torch.no_grad():
            parts = [
                sum(mapped(weights[rows], x, y).double() for x, y in batches)
                for rows in _passes(len(problem.alphas), options.points)
            ]
        return torch.cat(parts).cpu().numpy() / problem.counted()  # type: ignore[arg-type]

    return run


def _vmap(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=False)


def _compiled_vmap(problem: Problem, options: Options) -> Run:
    return _vmapped(problem, options, compiled=True)


def _jax(problem: Problem, options: Options) -> Run:
    """JAX: jit of vmap, on the same kind of device."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise Unavailable(f"jax is not installed: {error}") from None

    from benchmarks.jax_models import forward_for

    wanted = "gpu" if problem.X.is_cuda else "cpu"
    if jax.default_backend() != wanted:
        raise Unavailable(f"this JAX runs on {jax.default_backend()}")
    forward = forward_for(problem.factory())
    if forward is None or problem.X.ndim != 2:
        raise Unavailable("this network is not written in JAX here")
    jax.config.update(
        "jax_default_matmul_precision", {"float32": "highest", "tf32": "tensorfloat32"}.get(problem.precision)
    )
    dtype = jnp.bfloat16 if problem.precision == "bfloat16" else jnp.float32

    def array(tensor: Tensor) -> jax.Array:
        kind = dtype if tensor.is_floating_point() else jnp.int32
        return jnp.asarray((tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy(), kind)

    floating = [name for name, value in problem.start.items() if value.is_floating_point()]
    start, end = ({name: array(theta[name]) for name in floating} for theta in (problem.start, problem.end))
    batches = [(array(x), array(y)) for x, y in _batches(problem, options.batch)]

    def at_point(alpha: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = forward({k: (1 - alpha) * start[k] + alpha * end[k] for k in start}, x).astype(jnp.float32)
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).sum()

    losses = jax.jit(jax.vmap(at_point, in_axes=(0, None, None)))
    weights = jnp.asarray(problem.alphas, dtype)

    def run() -> np.ndarray:
        parts = [losses(weights, x, y) for x, y in batches]
        return np.sum([np.asarray(part, np.float64) for part in parts], axis=0) / problem.counted()

    return run


def _plain_loop(problem: Problem, options: Options) -> Run:
    """What a user writes: data on the host, a DataLoader, the loss read back batch by batch."""
    model, device = _model(problem), problem.X.device
    X = problem.X.contiguous().cpu()
    loader = DataLoader(TensorDataset(X, problem.y.cpu()), batch_size=options.batch)

    def run() -> np.ndarray:
        losses = []
        for alpha in problem.alphas.tolist():
            blended = {
                name: torch.lerp(start, problem.end[name], alpha) if start.is_floating_point() else start
                for name, start in problem.start.items()
            }
            model.load_state_dict(blended)
            total = 0.0
            with torch.no_grad():
                for x, y in loader:
                    total += problem.loss(model, x.to(device), y.to(device)).item()
            losses.append(total / problem.counted())
        return np.array(losses)

    return run


def _of_loop(workload: Workload) -> list[Options]:
    return [Options(batch) for batch in workload.loop_batches]


def _of_compiled_loop(workload: Workload) -> list[Options]:
    return _of_loop(workload)[:1] if workload.name == "gpt2" else _of_loop(workload)


def _of_vmap(workload: Workload) -> list[Options]:
    if workload.language:
        return [Options(8, 8)]
    return [Options(batch) for batch in workload.vmap_batches]


def _of_compiled_vmap(workload: Workload) -> list[Options]:
    # of the others plain vmap batches the convolutions as grouped ones, which is slower than any loop
    return _of_vmap(workload) if workload.name == "mlp" else []


def _of_jax(workload: Workload) -> list[Options]:
    return [Options(batch) for batch in workload.vmap_batches] if workload.name == "mlp" else []


def _of_plain_loop(workload: Workload) -> list[Options]:
    return [Options(10_000 if workload.name == "mlp" else workload.loop_batches[0])]


# Those that are known to be near the front come first: a deadline cuts off the others.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("loop", "tuned loop, data on the GPU", _eager_loop, _of_loop),
        Peer("compiled_loop", "the same, torch.compile", _compiled_loop, _of_compiled_loop, compiled=True),
        Peer("compiled_vmap", "vmap, torch.compile", _compiled_vmap, _of_compiled_vmap, compiled=True),
        Peer("jax", "JAX vmap + jit", _jax, _of_jax, compiled=True),
        Peer("vmap", "vmap", _vmap, _of_vmap),
    )
}
PLAIN = Peer("plain_loop", "loop over alphas with DataLoader", _plain_loop, _of_plain_loop)
