"""How a sweep would be computed, for a reader."""

from __future__ import annotations

from typing import Any

from torch import nn

from mli_fast.checkpoints import Source
from mli_fast.evaluation import Evaluation, Job
from mli_fast.options import Options
from mli_fast.paths import Line


def explain(model: nn.Module, theta_0: Source, theta_T: Source, batch: Any, **options: Any) -> str:
    """Print how a sweep from theta_0 to theta_T computes such a batch.

    The model is run on it, at three points.

    Args:
        model: the architecture, as for `sweep`.
        theta_0: as for `sweep`.
        theta_T: likewise.
        batch: one batch as the loader gives it, for instance (inputs, targets).
        **options: those of `sweep` that say how the work is done.

    Returns:
        What is printed: which operators run once a batch, and which at each point; which of them are products with
        blended weights, by which kernel and with what fused into them; what is left to PyTorch, and why.

    Raises:
        ValueError: as `sweep`.
        TypeError: as `sweep`.

    Example:
        >>> import torch, mli_fast
        >>> a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> text = mli_fast.explain(a, a, b, (torch.randn(7, 3), torch.arange(7) % 2), backend="reference")
        2 operators were recorded; 0 steps once a batch, 2 at each point
        points per pass: 1
        once a batch:
        at each point:
          addmm of bias [7, 2]: PyTorch (no kernel was measured to win on it)
    """
    line = Line(theta_0, theta_T)
    with Evaluation(model, [batch], Options(**options)) as evaluation:
        lines = evaluation.described(Job(line, line.points(3)))
    text = "\n".join(lines)
    print(text)
    return text
