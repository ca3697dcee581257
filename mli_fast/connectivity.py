"""Mode connectivity: a curve of low loss between two networks, found by training its bends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mli_fast import batch_norm as batch_norms
from mli_fast.checkpoints import Source, gather
from mli_fast.criteria import criterion as criterion_of
from mli_fast.engine.batches import checked_loader, checked_pair, default_forward, is_pair
from mli_fast.engine.feeding import fed
from mli_fast.engine.guard import random_state_kept
from mli_fast.engine.network import Network
from mli_fast.evaluation import Data
from mli_fast.options import Options
from mli_fast.paths import Bezier, Line
from mli_fast.result import SweepResult
from mli_fast.sweep import evaluate

BATCH = 128  # examples a step, where the data is one (X, y) pair
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class BezierFit:
    """A trained curve and what it looks like.

    Attributes:
        path: the curve; its anchors between the ends are the trained bends, as state dicts.
        result: the data along it.
        line: the data along the straight line between the same ends.
        losses: of the batch of each training step [steps].
    """

    path: Bezier
    result: SweepResult
    line: SweepResult
    losses: NDArray[np.float64]


def fit_bezier(
    model: nn.Module,
    theta_0: Source,
    theta_T: Source,
    loader: Data,
    *,
    bends: int = 1,
    epochs: int = 20,
    lr: float = 0.05,
    optimizer: Optimizer | None = None,
    points: int | Any = 61,
    seed: int = 0,
    **options: Any,
) -> BezierFit:
    """Train the bends of a Bezier curve between two networks, then evaluate it (Garipov et al. 2018, arXiv:1802.10026).

    Each step draws t uniformly from [0, 1] and descends the loss of a batch at theta(t) = sum_i b_i(t) theta_i with the
    ends fixed, b_i the Bernstein polynomials; the bends begin on the straight line. Batch norm normalises by its batch
    meanwhile; the rest of the network is in eval mode. Afterwards curve and line are evaluated, each in one pass.

    Args:
        model: the architecture, as for `sweep`.
        theta_0: one end, t = 0.
        theta_T: the other, t = 1.
        loader: the data to train and evaluate on; one that can be read again and again, or an (X, y) pair, which is
            shuffled and cut into batches of 128.
        bends: anchors between the ends; 1 makes the curve quadratic.
        epochs: passes over the data.
        lr: of SGD with momentum 0.9, decaying to 0 as a cosine, where no optimizer is given.
        optimizer: makes one from the bends' parameters; its learning rate then stays as it is.
        points: where curve and line are evaluated: a count or a 1-D sequence.
        seed: of the draws of t and of the shuffling.
        **options: those of `sweep`, for criterion, forward, device and for the evaluation. Unless given, running
            statistics of batch norm are recalibrated over the training data.

    Returns:
        The curve, and the data along it and along the line. Nothing else is changed: not the model, the checkpoints,
        the loader or the global random states.

    Raises:
        ValueError: counts that do not fit, a loader that cannot be read again; else as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> fit = mli_fast.fit_bezier(net(), net(), net(), (torch.randn(7, 3), torch.arange(7) % 2), epochs=3)
        >>> fit.path.kind, fit.result.loss.shape, fit.losses.shape
        ('bezier', (61,), (3,))
    """
    if bends < 1 or epochs < 1:
        raise ValueError(f"bends={bends}, epochs={epochs}: at least one of each is needed")
    if not is_pair(loader) and isinstance(checked_loader(loader), Iterator):
        raise ValueError(
            f"loader is read several times here, a {type(loader).__name__} only once: give a DataLoader, a list of "
            "batches or one (X, y) pair"
        )
    if batch_norms.batch_norms(model) and "batch_norm" not in options:
        options |= {"batch_norm": "recalibrate", "calibration": loader}
    line, generator = Line(theta_0, theta_T), torch.Generator().manual_seed(seed)
    training = _Training(model, line, bends, Options(**options))
    with random_state_kept(), torch.inference_mode(False), torch.enable_grad():
        chosen = (optimizer or _sgd(lr))(training.parameters())
        rate = None if optimizer else torch.optim.lr_scheduler.CosineAnnealingLR(chosen, epochs)
        losses: list[float] = []
        for _ in range(epochs):
            for batch in fed(_batches(loader, generator), training.device):
                t = torch.rand((), generator=generator, dtype=torch.float64).item()
                loss = training.loss(t, batch, len(losses))
                chosen.zero_grad()
                loss.backward()
                chosen.step()
                losses.append(loss.item())
            if rate is not None:
                rate.step()
    path = training.path()
    result, straight = (evaluate(model, p, points, loader, **options) for p in (path, line))
    return BezierFit(path, result, straight, np.array(losses))


class _Training:
    """The bends of a curve as parameters, and the loss at its points.

    Args:
        model: the architecture.
        line: the curve's ends.
        bends: anchors between them.
        options: where and by which criterion.
    """

    def __init__(self, model: nn.Module, line: Line, bends: int, options: Options) -> None:
        self.device, self._dtype, self._line = options.place(model), options.dtype, line
        self._criterion = criterion_of(options.criterion)
        self._network = Network(model, options.forward or default_forward, self._dtype, self.device)
        for module in batch_norms.batch_norms(self._network.model).values():
            module.train()
        anchors = gather(model, line.anchors, line.names).values
        # copies: batch norm in training mode writes to its running statistics
        self._constants = {n: group[-1].to(self.device, copy=True) for n, group in anchors.items()}
        self._ends = {n: tuple(t.to(self.device) for t in group) for n, group in anchors.items() if len(group) > 1}
        statistics = batch_norms.running_statistics(model)
        shares = [i / (bends + 1) for i in range(1, bends + 1)]
        starts = {
            n: torch.stack([torch.lerp(ends[0], ends[-1], share) for share in shares]) for n, ends in self._ends.items()
        }
        self._bends = {n: bend.requires_grad_(n not in statistics) for n, bend in starts.items()}  # [bends, *shape]
        self._curve = Bezier(line.anchors[0], *[line.anchors[0]] * bends, line.anchors[1])

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [bend for bend in self._bends.values() if bend.requires_grad]

    def loss(self, t: float, batch: Any, index: int) -> Tensor:
        """The mean loss of a batch at the curve's point t.

        Raises:
            ValueError: the batch cannot be scored.
        """
        first, *inner, last = self._curve.coefficients([t])[0].tolist()
        values = dict(self._constants)
        for name, bend in self._bends.items():
            if bend.requires_grad:
                start, end = self._ends[name]
                inside = torch.tensordot(bend.new_tensor(inner), bend, 1)
                values[name] = (first * start + last * end + inside).to(self._dtype or start.dtype)
        outputs, targets = self._network.evaluate(values, batch)
        self._criterion.check(outputs.detach(), targets, index)
        return self._criterion.losses(outputs, targets).mean()

    def path(self) -> Bezier:
        """The curve as it is now."""
        count = self._curve.coefficients([0.0]).shape[1] - 2
        whole = [
            {n: self._bends[n][i].detach().clone() if n in self._bends else v for n, v in self._constants.items()}
            for i in range(count)
        ]
        return Bezier(self._line.anchors[0], *whole, self._line.anchors[1])


def _sgd(lr: float) -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _batches(loader: Data, generator: torch.Generator) -> Iterable[Any]:
    """The loader's batches, or those of a pair in a new order."""
    if not is_pair(loader):
        return loader
    pair = checked_pair(loader)
    order = torch.randperm(len(pair[0]), generator=generator)
    return [(pair[0][rows], pair[1][rows]) for rows in order.split(BATCH)]
