"""The judge of the science: every path, policy and functional as the loop over points that anyone would write, in fp64.

A point is a state dict. Each function takes one after the other, loads it into a copy of the model and reads the data,
all in float64; nothing here knows of the package, and nothing is clever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from tests.reference import Criterion, State, call, cast, score, to_dtype

Batches = Sequence[Any]


# ------------------------------------------------------------------------------------------------------------- points


def combine(anchors: Sequence[State], coefficients: Sequence[float]) -> State:
    """`sum_r c_r anchor_r` in fp64, but anchors of coefficient 0; of integers one anchor's, or the last one's."""
    point = {}
    for name, last in anchors[-1].items():
        if last.is_floating_point():
            used = [(c, a[name].double()) for c, a in zip(coefficients, anchors, strict=True) if c != 0]
            point[name] = sum((c * value for c, value in used), torch.zeros_like(last, dtype=torch.float64))
        elif last.is_complex():  # in its own precision, as `cast` leaves it
            used = [(c, a[name].cdouble()) for c, a in zip(coefficients, anchors, strict=True) if c != 0]
            point[name] = sum((c * value for c, value in used), torch.zeros_like(last).cdouble()).to(last.dtype)
        else:
            alone = [a[name] for c, a in zip(coefficients, anchors, strict=True) if c == 1]
            point[name] = (alone[0] if len(alone) == 1 and sum(c != 0 for c in coefficients) == 1 else last).clone()
    return point


def line(theta_0: State, theta_T: State, alphas: Iterable[float]) -> list[State]:
    """The points `(1 - alpha) theta_0 + alpha theta_T`."""
    return [combine((theta_0, theta_T), (1 - alpha, alpha)) for alpha in alphas]


def difference(theta_0: State, theta_T: State) -> State:
    """`theta_T - theta_0`, the derivative of a line, of entries that blend."""
    real = {k: theta_T[k].double() - theta_0[k].double() for k in theta_0 if theta_0[k].is_floating_point()}
    return real | {k: theta_T[k] - theta_0[k] for k in theta_0 if theta_0[k].is_complex()}


def _flat(state: State) -> Tensor:
    """The entries that distances count, in one vector: floating-point ones that are no running statistic."""
    kept = [k for k, v in state.items() if v.is_floating_point() and not k.endswith(("running_mean", "running_var"))]
    return torch.cat([state[k].double().reshape(-1) for k in kept])


def frame(theta_0: State, theta_1: State, theta_2: State) -> tuple[Tensor, Tensor, Tensor]:
    """Origin theta_0 and two orthonormal vectors [D], the first towards theta_1, the second on theta_2's side."""
    origin = _flat(theta_0)
    first = _flat(theta_1) - origin
    u = first / first.norm()
    second = _flat(theta_2) - origin
    second = second - (second @ u) * u
    return origin, u, second / second.norm()


def plane_coefficients(theta_0: State, theta_1: State, theta_2: State, x: float, y: float) -> tuple[float, ...]:
    """What of each anchor makes up the point at (x, y) of their plane, found by solving for it."""
    origin, u, v = frame(theta_0, theta_1, theta_2)
    directions = torch.stack((_flat(theta_1) - origin, _flat(theta_2) - origin), 1)  # [D, 2]
    first, second = torch.linalg.lstsq(directions, x * u + y * v, driver="gelsd").solution.tolist()
    return 1 - first - second, first, second


# ------------------------------------------------------------------------------------------------------------- losses


def replica(model: nn.Module) -> nn.Module:
    """A copy in fp64 and eval mode."""
    return cast(copy.deepcopy(model).eval(), torch.float64)


@torch.no_grad()
def mean_loss(network: nn.Module, batches: Batches, criterion: Criterion = "cross_entropy") -> float:
    """Mean over all terms of all examples, of a network that holds its values already."""
    total = weights = 0.0
    for batch in batches:
        outputs, targets = call(network, to_dtype(batch, torch.float64))
        losses, counts, _, _ = score(criterion, outputs, targets)
        total += float((losses * counts).sum())
        weights += float(counts.sum())
    return total / weights


def curve_losses(
    model: nn.Module,
    states: Iterable[State],
    batches: Batches,
    criterion: Criterion = "cross_entropy",
    prepare: Callable[[nn.Module], object] = nn.Module.eval,
) -> np.ndarray:
    """Mean loss at each state dict, [P], of a network that `prepare` has seen with it."""
    network, losses = replica(model), []
    for state in states:
        network.load_state_dict(state)
        prepare(network)
        losses.append(mean_loss(network, batches, criterion))
    return np.array(losses)


def plane_losses(
    model: nn.Module,
    anchors: Sequence[State],  # three
    x: Sequence[float],
    y: Sequence[float],
    batches: Batches,
    criterion: Criterion = "cross_entropy",
) -> np.ndarray:
    """Mean loss on the grid of the plane through three anchors, in parameter distance from the first, [X, Y]."""
    points = [[combine(anchors, plane_coefficients(*anchors, a, b)) for b in y] for a in x]
    return np.stack([curve_losses(model, row, batches, criterion) for row in points])


def layerwise_losses(
    model: nn.Module,
    theta_0: State,
    theta_T: State,
    groups: Mapping[str, Sequence[str]],  # in depth order: name -> the state dict's keys
    alphas: Sequence[float],
    batches: Batches,
    criterion: Criterion = "cross_entropy",
    *,
    others: str = "end",
    cumulative: str | None = None,
) -> np.ndarray:
    """Mean loss with one group at alpha and the others at one end, [G, A].

    Cumulative: with the group all before it move ("bottom"), or all after it ("top").
    """
    names, rows = list(groups), []
    for index in range(len(names)):
        moving = {None: names[index : index + 1], "bottom": names[: index + 1], "top": names[index:]}[cumulative]
        keys = {key for name in moving for key in groups[name]}
        states = []
        for state in line(theta_0, theta_T, alphas):
            rest = {"start": theta_0, "end": theta_T}[others]
            states.append({key: state[key] if key in keys else value for key, value in rest.items()})
        rows.append(curve_losses(model, states, batches, criterion))
    return np.stack(rows)


# --------------------------------------------------------------------------------------------------------- batch norm


def batch_norms(network: nn.Module, batch: Any) -> list[_BatchNorm]:
    """The batch norms with running statistics, in the order in which one forward pass first reaches them."""
    reached: list[_BatchNorm] = []

    def note(module: nn.Module, _: Any) -> None:
        if module not in reached:
            reached.append(module)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    with torch.no_grad():
        call(network, to_dtype(batch, torch.float64))
    for hook in hooks:
        hook.remove()
    return reached


@torch.no_grad()
def recalibrate(network: nn.Module, calibration: Batches) -> None:
    """Exact statistics, layer by layer: a layer's are those of its inputs over all data, the layers before it done.

    The variance is the unbiased one, n / (n - 1), as training stores it. The network stays in eval mode.
    """
    inputs: list[Tensor] = []
    for norm in batch_norms(network, calibration[0]):
        inputs.clear()
        hook = norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for batch in calibration:
            call(network, to_dtype(batch, torch.float64))
        hook.remove()
        pooled = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], 1)  # [C, everything else]
        norm.running_mean.copy_(pooled.mean(1))
        norm.running_var.copy_(pooled.var(1, correction=1))


def recalibrated_losses(
    model: nn.Module,
    states: Iterable[State],
    calibration: Batches,
    batches: Batches,
    criterion: Criterion = "cross_entropy",
) -> np.ndarray:
    """Mean loss at each state with its batch norms' statistics measured anew, [P]; see `recalibrate`."""
    network, losses = replica(model), []
    for state in states:
        network.load_state_dict(state)
        recalibrate(network, calibration)
        losses.append(mean_loss(network, batches, criterion))
    return np.array(losses)


def only_batch_norms_train(network: nn.Module) -> None:
    """Batch norms in training mode, everything else in eval mode: no dropout."""
    network.eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()


@torch.no_grad()
def recalibrated_ema_losses(
    model: nn.Module,
    states: Iterable[State],
    calibration: Batches,
    batches: Batches,
    criterion: Criterion = "cross_entropy",
) -> np.ndarray:
    """Mean loss at each state after one pass that updates its statistics as training does, [P].

    Each module's own momentum, from reset statistics.
    """

    def pass_over(network: nn.Module) -> None:
        only_batch_norms_train(network)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
        for batch in calibration:
            call(network, to_dtype(batch, torch.float64))
        network.eval()

    return curve_losses(model, states, batches, criterion, pass_over)


class OfBatches(nn.Module):
    """A network that takes whole batches, as `update_bn` calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Any) -> None:
        call(self.network, batch)


def updated_losses(
    model: nn.Module,
    states: Iterable[State],
    calibration: Batches,
    batches: Batches,
    criterion: Criterion = "cross_entropy",
) -> np.ndarray:
    """Mean loss at each state after torch's `update_bn`, which begins each at the random state as it is, [P]."""

    def pass_over(network: nn.Module) -> None:
        with torch.random.fork_rng(), torch.no_grad():
            update_bn(([to_dtype(batch, torch.float64)] for batch in calibration), OfBatches(network))
        network.eval()

    return curve_losses(model, states, batches, criterion, pass_over)


def batch_statistics_losses(
    model: nn.Module, states: Iterable[State], batches: Batches, criterion: Criterion = "cross_entropy"
) -> np.ndarray:
    """Mean loss at each state with every batch normalised by its own (biased) statistics, [P]."""
    return curve_losses(model, states, batches, criterion, only_batch_norms_train)


# -------------------------------------------------------------------------------------------------------- functionals


def loss_slopes(
    model: nn.Module,
    states: Iterable[State],
    velocities: Iterable[State],  # d state / d alpha at each point; entries that are not there do not move
    batches: Batches,
    criterion: Criterion = "cross_entropy",
) -> np.ndarray:
    """The exact dL/dalpha at each point by forward-mode differentiation, [P].

    Along a line every velocity is `difference(theta_0, theta_T)`.
    """
    network, slopes = replica(model), []
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.forward = partial(_normalised, module)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())  # a tied weight under one of its names

    def mean(values: State) -> Tensor:
        total, weights = torch.zeros((), dtype=torch.float64), 0.0
        for batch in batches:
            outputs, targets = call(partial(_called, network, values), to_dtype(batch, torch.float64))
            losses, counts, _, _ = score(criterion, outputs, targets)
            total = total + (losses * counts).sum()
            weights += float(counts.sum())
        return total / weights

    for state, velocity in zip(states, velocities, strict=True):
        network.load_state_dict(state)
        moving = {name: velocity[name].to(tensors[name].dtype) for name in tensors if name in velocity}
        values = {name: tensors[name].detach() for name in moving}
        with sdpa_kernel(SDPBackend.MATH):  # the other attentions have no forward-mode derivative
            slopes.append(float(jvp(mean, (values,), (moving,))[1]))
    return np.array(slopes)


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm in eval mode, spelt out: PyTorch's own has no derivative by its running statistics."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return x * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else x


def _called(network: nn.Module, values: State, *args: Any, **kwargs: Any) -> Any:
    return functional_call(network, dict(values), args, kwargs)


@torch.no_grad()
def logit_path(model: nn.Module, states: Iterable[State], X: Any) -> np.ndarray:
    """What the network gives at each state for the inputs X [N, ...] (a tuple: several inputs), [P, N, C]."""
    network, path = replica(model), []
    for state in states:
        network.load_state_dict(state)
        outputs, _ = call(network, (to_dtype(X, torch.float64), None))
        path.append(outputs.numpy())
    return np.stack(path)
