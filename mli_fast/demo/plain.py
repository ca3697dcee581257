"""The plain way to do the demo's work: one alpha after the other, as most published code does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 10
BATCH = 128


@torch.no_grad()
def plain_loop(
    model: nn.Module,
    theta_0: Mapping[str, Tensor],
    theta_T: Mapping[str, Tensor],
    data: tuple[Tensor, Tensor],
    alphas: Sequence[float],
) -> dict[str, NDArray[np.float64]]:
    """Interpolates the state dicts, loads them, reads all data; then the next alpha.

    Args:
        model: the architecture; its values are overwritten.
        theta_0: state dict at alpha = 0.
        theta_T: state dict at alpha = 1.
        data: inputs [N, ...] and class labels [N].
        alphas: the A points.

    Returns:
        "loss" [A], "accuracy" [A], "class_loss" [A, 10], "class_accuracy" [A, 10], as `mli_fast.sweep` names them.
    """
    loader = DataLoader(TensorDataset(*data), batch_size=BATCH)
    model.eval()
    losses, hits = np.zeros((2, len(alphas), CLASSES))
    count = np.bincount(data[1].numpy(), minlength=CLASSES)
    for index, alpha in enumerate(alphas):
        model.load_state_dict({name: _between(theta_0[name], end, alpha) for name, end in theta_T.items()})
        for inputs, labels in loader:
            logits = model(inputs)
            loss = F.cross_entropy(logits, labels, reduction="none").double()
            hit = (logits.argmax(dim=1) == labels).double()
            losses[index] += torch.bincount(labels, loss, minlength=CLASSES).numpy()
            hits[index] += torch.bincount(labels, hit, minlength=CLASSES).numpy()
    return {
        "loss": losses.sum(axis=1) / count.sum(),
        "accuracy": hits.sum(axis=1) / count.sum(),
        "class_loss": losses / count,
        "class_accuracy": hits / count,
    }


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Blends floating-point entries; a counter (batch norm keeps one) is taken from the end."""
    return (1 - alpha) * start + alpha * end if end.is_floating_point() else end
