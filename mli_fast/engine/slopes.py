"""Exact derivatives along the path, by forward-mode differentiation at every point."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mli_fast.blended.memo import mapped
from mli_fast.criteria import Criterion
from mli_fast.engine.guard import first_line
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.ops.norm import fold_batch_norm


class _SlopeOfStatistics(TorchFunctionMode):
    """Batch norm in eval mode as its formula: PyTorch's takes running statistics for constants, here they move."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.batch_norm:
            return self._normalised(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _normalised(
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training or mean is None or variance is None:
            return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
        scale, shift = fold_batch_norm(mean, variance, weight, bias, eps)
        column = (-1, *[1] * (x.ndim - 2))
        return x * scale.view(column) + shift.view(column)


class Slopes:
    """d loss / d alpha and d outputs / d alpha of each example.

    Args:
        network: the private copy of the model.
        points: the values of its parameters.
        directions: the derivatives of those values along the path, at the same points.
        criterion: what scores the outputs.
    """

    def __init__(self, network: Network, points: Points, directions: Points, criterion: Criterion) -> None:
        self._network, self._points, self._directions, self._criterion = network, points, directions, criterion

    def at(self, batch: Any, p: int) -> tuple[Tensor, Tensor]:
        """The derivatives at point p: of the losses, an example's terms summed, [B] float64, and of the outputs [B, D].

        Raises:
            ValueError: the model or the criterion does something that PyTorch has no forward-mode derivative for.
        """
        values, directions = self._points.computed(p), self._directions.computed(p)
        moving = {name: values[name] for name in self._points.moving}
        batch = mapped(lambda x: x.clone() if isinstance(x, Tensor) else x, batch)

        def losses_and_outputs(moving: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            outputs, targets = self._network.evaluate({**values, **moving}, batch)
            losses = self._criterion.losses(outputs, targets)
            return losses, outputs.reshape(len(losses), -1)

        try:
            # the one attention that has a forward-mode derivative
            with sdpa_kernel(SDPBackend.MATH), _SlopeOfStatistics():
                along = {name: directions[name] for name in moving}
                slope, tangent = torch.func.jvp(losses_and_outputs, (moving,), (along,))[1]
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error).lower():
                raise
            raise ValueError(
                "slopes along the path need forward-mode derivatives, and PyTorch has none for something in this model "
                f"or criterion: {first_line(error)}"
            ) from error
        return slope.double(), tangent
