"""The judge: one specimen in every mode, against the plain loop that anyone would write, in fp32 and in fp64."""

from __future__ import annotations

import copy
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from benchmarks.zoo.specimen import Batch, NoSpecimen, Specimen, forward, perturbed
from mli_fast.engine.modes import forced

ALPHAS = np.array([0.0, 0.3, 0.55, 0.7, 1.0])
TOLERANCE = 1e-5  # relative, against fp64, where fp32 itself is that good; else twice its error
State = Mapping[str, Tensor]


def judged(specimen: Specimen) -> dict[str, Any]:
    """The line of the table.

    Raises:
        NoSpecimen: plain PyTorch does not run it, or not to a finite loss.
    """
    model, batches = specimen.model.eval(), specimen.batches
    theta_0, theta_T = perturbed(model, 1), perturbed(model, 2)
    given = model, theta_0, theta_T, batches, specimen.criterion
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "agrees": None,
        "error": None,
        "plain_error": None,
    }
    try:
        _loop(*given, ALPHAS[:1], torch.float32)
        plain = _loop(*given, ALPHAS, torch.float32)
        now = time.perf_counter()
        random = not np.array_equal(plain, _loop(*given, ALPHAS, torch.float32))
        row["plain_seconds"] = time.perf_counter() - now
    except NoSpecimen:
        raise
    except Exception as error:
        raise NoSpecimen(f"the plain loop raises {type(error).__name__}: {error}") from error
    if not np.isfinite(plain).all():
        raise NoSpecimen("the plain loop gives no finite loss")
    row["random"] = random
    before = _world(model, theta_0, theta_T, batches)

    def swept(alphas: Any = ALPHAS, mode: str = "planned", **options: Any) -> Any:
        with forced(mode):
            return mli_fast.sweep(
                model, theta_0, theta_T, batches, alphas,
                criterion=specimen.criterion, metrics=(), forward=forward, progress=False, **options,
            )  # fmt: skip

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        losses = swept().loss
        now = time.perf_counter()
        result = swept()
        row["seconds"] = time.perf_counter() - now
        row["engine"], row["reason"] = (result.provenance[key] for key in ("engine", "engine_reason"))
        row["kernels"] = result.provenance["kernels"]
        row["time_ratio"] = row["seconds"] / row["plain_seconds"]
        same = lambda values, rows=slice(None): bool(np.array_equal(values, losses[rows], equal_nan=True))  # noqa: E731
        slow = swept(mode="plain").loss
        replay = swept(mode="replay").loss
        row |= {
            "again": same(result.loss),
            "replay_bitwise": bool(np.array_equal(replay, slow)),
            "chunks": all(same(swept(chunk=chunk).loss) for chunk in (1, 2)),
            "order": same(swept(ALPHAS[::-1].copy()).loss[::-1]),
            "alone": same(swept(ALPHAS[1:2]).loss, slice(1, 2)),
            "ends": same(swept(ALPHAS[:1]).loss, slice(0, 1)) and same(swept(ALPHAS[-1:]).loss, slice(-1, None)),
        }
    row["warnings"] = sorted({str(w.message) for w in seen if isinstance(w.message, RuntimeWarning)})
    row["unchanged"] = [
        what for what, value in _world(model, theta_0, theta_T, batches).items() if before[what] != value
    ]
    if random:  # no loop is to be compared with: the package's own plain passes
        truth, own = slow, 0.0
    else:
        try:
            truth = _loop(*given, ALPHAS, torch.float64)
            own = _relative(plain, truth)
        except Exception:  # noqa: BLE001 - some models hold fp32 in their code
            truth, own = plain, 0.0
        if not np.isfinite(truth).all():  # masks with the least value of fp32, doubled
            truth, own = plain, 0.0
    row["plain_error"], row["error"] = own, _relative(losses, truth)
    row["agrees"] = row["error"] <= max(TOLERANCE, 2 * own) and _relative(slow, truth) <= max(TOLERANCE, 2 * own)
    bitwise = all(row[key] for key in ("again", "replay_bitwise", "chunks", "order", "alone", "ends"))
    good = row["agrees"] and bitwise and not row["unchanged"] and not row["warnings"]
    return row | {"status": "ok" if good else "wrong"}


def _relative(values: np.ndarray, expected: np.ndarray) -> float:
    if not np.isfinite(values).all():
        return float("inf")
    return float(np.max(np.abs(values - expected) / np.abs(expected).clip(1e-30)))


@torch.no_grad()
def _loop(
    model: nn.Module, theta_0: State, theta_T: State, batches: list[Batch], criterion: str, alphas: Any, dtype: Any
) -> np.ndarray:
    """What a user writes: `load_state_dict` and a pass per alpha."""
    network = copy.deepcopy(model)
    if dtype != torch.float32:
        network = network._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    own, losses = network.state_dict(), []
    for alpha in map(float, alphas):
        values = {key: _blend(a, theta_T[key], alpha, own[key].dtype) for key, a in theta_0.items()}
        network.load_state_dict(values)
        network.eval()
        total, count = 0.0, 0
        for batch in batches:
            outputs, targets = forward(network, _cast(batch, dtype))
            total += float(_criterion(criterion)(outputs, targets))
            count += len(targets)
        losses.append(total / count)
    return np.array(losses)


def _blend(a: Tensor, b: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    if not a.is_floating_point():
        return b
    a, b = a.to(dtype), b.to(dtype)
    return a if alpha == 0 else b if alpha == 1 else (1 - alpha) * a + alpha * b


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A copy, for models that write into their inputs."""
    if isinstance(value, Tensor):
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _criterion(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum over examples."""
    if name == "cross_entropy":
        return lambda outputs, targets: F.cross_entropy(outputs.double(), targets, reduction="sum")
    return lambda outputs, targets: (outputs.double() - targets.double()).square().mean(1).sum()


def _world(model: nn.Module, theta_0: State, theta_T: State, batches: list[Batch]) -> dict[str, Any]:
    """All of the caller's that a sweep could disturb."""
    own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "model's values": [(name, t.data_ptr(), _bits(t)) for name, t in own],
        "model's modes": [module.training for module in model.modules()],
        "model's attributes": [sorted(vars(module)) for module in model.modules()],
        "theta_0": [_bits(t) for t in theta_0.values()],
        "theta_T": [_bits(t) for t in theta_T.values()],
        "batches": [_bits(t) for t in _tensors(batches)],
        "random state": _bits(torch.get_rng_state()),
    }


def _bits(tensor: Tensor) -> str:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0)
    return hashlib.blake2b(raw.numpy().tobytes()).hexdigest()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
