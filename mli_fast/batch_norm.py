"""Batch-norm policies: where the running statistics of a point come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

CALIBRATED = ("recalibrate", "recalibrate-ema", "update-bn")
IN_BATCHES = ("recalibrate-ema", "update-bn")  # what they give depends on the batches
POLICIES = ("interpolate", *CALIBRATED, "batch", "start", "end")


def check(policy: str, calibration: object) -> None:
    """Raise unless there is such a policy and its data.

    Raises:
        ValueError: unknown, calibration data missing, or given to a policy that uses none.
    """
    if policy not in POLICIES:
        raise ValueError(f"batch_norm={policy!r} is not one of {', '.join(map(repr, POLICIES))}")
    if policy in CALIBRATED and calibration is None:
        raise ValueError(
            f"batch_norm={policy!r} needs calibration=: the data that the statistics are taken over, as for loader"
        )
    if policy not in CALIBRATED and calibration is not None:
        uses = " and ".join(map(repr, CALIBRATED))
        raise ValueError(f"calibration is used by batch_norm={uses} alone; batch_norm={policy!r} needs none")


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The modules that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def sees_batches(model: nn.Module) -> bool:
    """Whether a batch norm keeps no running statistics, and so normalises by its batch at all times."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules())


def keepers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of any class that keep a running mean and variance, by name: frozen, instance and own norms too."""
    return {
        name: module
        for name, module in model.named_modules()
        if all(isinstance(module._buffers.get(kept), Tensor) for kept in names_of(""))
    }


def set_to_an_end(model: nn.Module) -> dict[str, nn.Module]:
    """Those that "start" and "end" are about: batch norms of any class, frozen and own ones too; no instance norms."""
    return {name: module for name, module in keepers(model).items() if not isinstance(module, _InstanceNorm)}


def statistics_at_an_end(model: nn.Module) -> list[str]:
    """The names of their running means and variances."""
    return [name for norm in set_to_an_end(model) for name in names_of(norm)]


def names_of(module: str) -> tuple[str, str]:
    """The names of a batch norm's running mean and variance."""
    prefix = f"{module}." if module else ""
    return f"{prefix}running_mean", f"{prefix}running_var"


class Moments(NamedTuple):
    """Of n values per channel: their mean [C] and biased variance [C]."""

    n: int
    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(x: Tensor) -> Moments:
        """Those of a batch norm's input [B, C, ...], by PyTorch's own kernel."""
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return Moments(x.numel() // x.shape[1], mean, variance)

    def merged(self, other: Moments) -> Moments:
        """Those of both together, in float64 (Chan et al. 1979)."""
        n, step = self.n + other.n, other.mean.double() - self.mean.double()
        mean = self.mean.double() + step * (other.n / n)
        squares = self.variance.double() * self.n + other.variance.double() * other.n
        return Moments(n, mean, (squares + step * step * (self.n * other.n / n)) / n)

    def unbiased(self, name: str) -> Tensor:
        """The variance as running statistics hold it, times n / (n - 1).

        Raises:
            ValueError: a single value per channel has none.
        """
        if self.n < 2:
            raise ValueError(f"batch norm {name!r} saw a single value per channel in the calibration data: give more")
        return self.variance * (self.n / (self.n - 1))


Visit = Callable[[str, _BatchNorm, Tensor], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def normalising_by(model: nn.Module, visit: Visit) -> Iterator[None]:
    """Within the block every batch norm of `model` normalises its input by what `visit` says of it.

    Args:
        model: one whose state is private, in eval mode, with values that `functional_call` puts in and takes out.
        visit: (name, module, input [B, C, ...]) -> mean and variance [C].
    """

    def before(name: str, module: _BatchNorm, x: Tensor) -> None:
        module._buffers["running_mean"], module._buffers["running_var"] = visit(name, module, x)

    with _before_each(model, before):
        yield


@contextlib.contextmanager
def updating(policy: str, model: nn.Module) -> Iterator[None]:
    """Within the block batch norms start from reset statistics and update them as PyTorch does in training.

    Args:
        policy: "recalibrate-ema": batch norms alone train, by their own momentum; "update-bn", what
            `torch.optim.swa_utils.update_bn` does: all of the model trains, and statistics are averages over batches.
        model: one in eval mode.
    """
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for norm in momenta:
        norm.reset_running_stats()
        norm.momentum = None if policy == "update-bn" else norm.momentum
    for part in (model,) if policy == "update-bn" else momenta:
        part.train()
    try:
        with _before_each(model, _check_several):
            yield
    finally:
        model.eval()
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _check_several(name: str, module: _BatchNorm, x: Tensor) -> None:
    if module.training and x.numel() == x.shape[1]:
        raise ValueError(f"batch norm {name!r} sees a single value per channel in a batch: use larger batches")


@contextlib.contextmanager
def _before_each(model: nn.Module, act: Callable[[str, _BatchNorm, Tensor], None]) -> Iterator[None]:
    """Within the block `act` is called before every batch norm that keeps running statistics, with its input."""

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        def before(module: nn.Module, args: tuple) -> None:
            assert isinstance(module, _BatchNorm)
            act(name, module, args[0])

        return before

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in batch_norms(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_the_batch(name: str, module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics that batch norm uses in training, of the batch at hand."""
    n, mean, variance = Moments.of(x)
    if n < 2:
        raise ValueError(f"batch norm {name!r} sees a single value per channel in a batch: use larger batches")
    return mean, variance
