"""Mode connectivity: a curve of low loss between two networks, found by training its bends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from mli_fast import batch_norm as batch_norms
from mli_fast.checkpoints import Anchors, Source, gather
from mli_fast.checkpoints.values import blends
from mli_fast.criteria import Criterion
from mli_fast.engine.batches import checked_pair, default_forward, is_pair
from mli_fast.engine.feeding import fed
from mli_fast.engine.guard import noting, on, random_state_kept
from mli_fast.engine.network import Network
from mli_fast.evaluation import Data
from mli_fast.interrupts import deferred
from mli_fast.losses import loss as loss_of
from mli_fast.options import Options
from mli_fast.paths import Bezier, Line
from mli_fast.result import SweepResult
from mli_fast.sweep import evaluate
from mli_fast.trees import copied

BATCH = 128  # examples a step, at most, where the data is one (X, y) pair
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class BezierFit:
    """A trained curve and what it looks like.

    Attributes:
        path: the curve; its anchors between the ends are the trained bends, as state dicts.
        result: the data along it.
        line: the data along the straight line between the same ends, at the same points.
        losses: the mean loss of the batch of each training step [steps], float64.
        anchors: the values of all anchors under the model's own names.
    """

    path: Bezier
    result: SweepResult
    line: SweepResult
    losses: NDArray[np.float64]
    anchors: Anchors = field(repr=False)

    def theta(self, t: float) -> dict[str, Tensor]:
        """The network at a point of the curve: name -> value, what is tied named once.

        Running statistics of batch norm are the interpolated ones; recalibrate them before the network is used.
        """
        shares = self.path.coefficients([t])[0]
        used = np.flatnonzero(shares)

        def blended(group: tuple[Tensor, ...]) -> Tensor:
            if len(group) == 1 or not blends(group[0].dtype):  # as in a sweep: an end's own, elsewhere the last one's
                return group[used[0] if len(group) > 1 and len(used) == 1 else -1].clone()
            return torch.stack([shares[r] * group[r].double() for r in used]).sum(0).to(group[0])

        return {name: blended(group) for name, group in self.anchors.values.items()}


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
    meanwhile; the rest of the network is in eval mode. Line and curve are evaluated in one pass each.

    Args:
        model: the architecture, as for `sweep`.
        theta_0: one end, t = 0.
        theta_T: the other, t = 1.
        loader: the data to train and evaluate on; one that can be read again and again, or an (X, y) pair, which is
            shuffled and cut into batches of up to 128.
        bends: anchors between the ends; 1 makes the curve quadratic.
        epochs: passes over the data.
        lr: of SGD with momentum 0.9, falling to 0 as a cosine, where no optimizer is given.
        optimizer: makes one, whose `step` needs no closure, from the bends' parameters; its learning rate then stays
            as it is.
        points: where curve and line are evaluated: a count or a 1-D sequence.
        seed: of the draws of t, of the shuffling of a pair, and of a loader that shuffles by PyTorch's global state.
        **options: those of `sweep` but `schedule`, for training and evaluation alike. Unless given, running statistics
            of batch norm are recalibrated, and over this data.

    Returns:
        The curve, and the data along it and along the line. Nothing else is changed: not the model, the checkpoints,
        the data or the global random states.

    Raises:
        ValueError: counts that do not fit, a loader that can be read once only, a schedule; else as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> net = lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> fit = mli_fast.fit_bezier(net(), net(), net(), (torch.randn(7, 3), torch.arange(7) % 2), epochs=3)
        >>> fit.path.kind, fit.result.loss.shape, fit.losses.shape
        ('bezier', (61,), (3,))
        >>> fit.theta(0.5)["0.weight"].shape
        torch.Size([8, 3])
    """
    for name, count in (("bends", bends), ("epochs", epochs)):
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name}={count!r}: expected a count, at least 1")
    if isinstance(loader, Iterator):
        raise ValueError(
            f"loader is read several times here, and a {type(loader).__name__} only once: give a DataLoader, a list of "
            "batches or an (X, y) pair"
        )
    if options.get("schedule") is not None:
        raise ValueError("schedule: the bends of a curve are trained for parameters that all move along it alike")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped, as in a sweep
    if isinstance(model, nn.Module) and batch_norms.batch_norms(model):
        options.setdefault("batch_norm", "recalibrate")
    if options.get("batch_norm") in batch_norms.CALIBRATED:
        options.setdefault("calibration", loader)
    ends, checked = Line(theta_0, theta_T), Options(**options)
    line = evaluate(model, ends, points, loader, **options)  # first, so that what does not fit is known before training
    path, losses = _trained(model, ends, loader, bends, epochs, lr, optimizer, seed, checked)
    result = evaluate(model, path, points, loader, **options)
    return BezierFit(path, result, line, losses, gather(model, path.anchors, path.names))


def _trained(
    model: nn.Module,
    ends: Line,
    loader: Data,
    bends: int,
    epochs: int,
    lr: float,
    optimizer: Optimizer | None,
    seed: int,
    options: Options,
) -> tuple[Bezier, NDArray[np.float64]]:
    """The curve, and the loss of each step."""
    place = options.place(model)
    generator = torch.Generator().manual_seed(seed)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    with (
        deferred(),
        on(place, options.precision == "tf32"),
        random_state_kept(),
        torch.inference_mode(False),
        torch.enable_grad(),
        tqdm(total=epochs, unit=" epochs", desc="mli_fast") if shown else contextlib.nullcontext() as bar,
    ):
        torch.default_generator.manual_seed(seed)  # a DataLoader shuffles by it; put back at the end
        training = _Training(model, ends, bends, options, place)
        chosen = (optimizer or _sgd(lr))(training.parameters())
        rate = None if optimizer else torch.optim.lr_scheduler.CosineAnnealingLR(chosen, epochs)
        losses: list[Tensor] = []
        for _ in range(epochs):
            for batch in fed(_batches(loader, generator), place):
                t = torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item()
                with noting(f"in training step {len(losses)}, at t = {t:.4f}"):
                    loss = training.loss(t, batch)
                    chosen.zero_grad()
                    loss.backward()
                    chosen.step()
                losses.append(loss.detach())
            if rate is not None:
                rate.step()
            if bar is not None:
                bar.set_postfix_str(f"loss {losses[-1].item():.4f}", refresh=False)
                bar.update()
        return training.path(), torch.stack(losses).cpu().numpy()


class _Training:
    """The bends of a curve as parameters, and the loss at its points.

    Args:
        model: the architecture.
        ends: the line between the curve's ends.
        bends: anchors between them.
        options: the criterion, how a batch is read, the precision.
        device: where the work is done.
    """

    def __init__(self, model: nn.Module, ends: Line, bends: int, options: Options, device: torch.device) -> None:
        self._ends, self._dtype = ends, options.dtype
        self._criterion = loss_of(options.criterion)
        self._network = Network(model, options.forward or default_forward, options.dtype, device)
        for module in batch_norms.batch_norms(self._network.model).values():
            module.train()
        self._given = gather(model, ends.anchors, ends.names).values
        parameters = {name for name, _ in model.named_parameters()}
        # equal at both ends, a parameter may bend all the same
        moving = [n for n, g in self._given.items() if blends(g[0].dtype) and (len(g) > 1 or n in parameters)]
        # copies, for batch norm counts its batches in training mode
        self._constants = {
            n: self._constant(g[-1]).to(device, copy=True) for n, g in self._given.items() if n not in moving
        }
        least = torch.float64 if options.dtype == torch.float64 else torch.float32

        def placed(end: int) -> dict[str, Tensor]:
            every = {n: self._given[n][end] for n in moving}
            return {n: value.to(device, torch.promote_types(value.dtype, least)) for n, value in every.items()}

        start, end = placed(0), placed(-1)
        self._bends = [
            {n: torch.lerp(start[n], end[n], k / (bends + 1)).requires_grad_(n in parameters) for n in moving}
            for k in range(1, bends + 1)
        ]
        self._anchors = [start, *self._bends, end]
        self._curve = Bezier(*self._anchors)

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [value for bend in self._bends for value in bend.values() if value.requires_grad]

    def loss(self, t: float, batch: Any) -> Tensor:
        """The mean loss of a batch at the curve's point t."""
        shares = self._curve.coefficients([t])[0].tolist()
        values = dict(self._constants)
        for name in self._bends[0]:
            terms = [share * anchor[name] for share, anchor in zip(shares, self._anchors, strict=True)]
            values[name] = sum(terms[1:], terms[0]).to(self._dtype or self._given[name][0].dtype)
        batch = copied(batch)
        return _mean(self._criterion, *self._network.evaluate(values, batch))

    def path(self) -> Bezier:
        """The curve as it is now."""
        bends = [
            {n: bend[n].detach().to(g[0]) if n in bend else g[-1].clone() for n, g in self._given.items()}
            for bend in self._bends
        ]
        return Bezier(self._ends.anchors[0], *bends, self._ends.anchors[1])

    def _constant(self, value: Tensor) -> Tensor:
        return value.to(self._dtype or value.dtype) if value.is_floating_point() else value


def _mean(criterion: Criterion, outputs: Any, targets: Any) -> Tensor:
    """The mean of a batch's losses, over the terms that count as in a sweep."""
    losses, counts = criterion.losses(outputs, targets), criterion.counts(targets)
    if counts is None:
        return losses.mean()
    return losses.sum() / counts.double().sum().clamp(min=torch.finfo(torch.float64).tiny)


def _sgd(lr: float) -> Optimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _batches(loader: Data, generator: torch.Generator) -> Iterable[Any]:
    """The loader's batches, or those of a pair in a new order, alike in size."""
    if not is_pair(loader):
        return loader
    x, y = checked_pair(loader)
    order = torch.randperm(len(x), generator=generator)
    return [(x[rows], y[rows]) for rows in order.tensor_split(-(-len(x) // BATCH))]
