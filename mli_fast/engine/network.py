"""A private copy of the model that runs with any values for its parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mli_fast.blended.memo import mapped
from mli_fast.checkpoints.matching import model_entries
from mli_fast.engine.batches import Forward


class Network(nn.Module):
    """The caller's architecture in eval mode, called with values from outside.

    The copy shares no state with the caller's model, so nothing that a forward pass sets or changes reaches it.

    Args:
        model: the caller's model.
        forward: (model, batch) -> (outputs, targets).
        dtype: floating inputs and constants are brought to this dtype; None leaves them as they are.
        device: where the work is done.
    """

    def __init__(self, model: nn.Module, forward: Forward, dtype: torch.dtype | None, device: torch.device) -> None:
        super().__init__()
        self.model = _replica(model).eval()
        # once, where functional_call would look for ties in every pass
        self._aliases = {e.name: [f"model.{alias}" for alias in e.aliases] for e in model_entries(self.model)}
        self._forward = forward
        self._move_constants(dtype, device)
        if dtype is not None:
            self.model.register_forward_pre_hook(lambda _, args, kwargs: _cast((args, kwargs), dtype), with_kwargs=True)

    def forward(self, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) of one batch."""
        return self._forward(self.model, batch)

    def evaluate(self, values: Mapping[str, Tensor], batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) with `values` for the parameters and buffers of these names."""
        every = {alias: value for name, value in values.items() for alias in self._aliases[name]}
        return functional_call(self, every, (batch,), tie_weights=False)

    def _move_constants(self, dtype: torch.dtype | None, device: torch.device) -> None:
        """Buffers that no state dict holds stay the model's own."""
        for module in self.model.modules():
            for name in module._non_persistent_buffers_set:
                buffer = module._buffers[name]
                if buffer is not None:
                    floating = dtype if buffer.is_floating_point() else None
                    module._buffers[name] = buffer.to(device=device, dtype=floating)


def _replica(model: nn.Module) -> nn.Module:
    """A deep copy of everything but the parameters and persistent buffers, whose values come from outside."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                own = name in module._non_persistent_buffers_set
                memo[id(buffer)] = buffer.detach().clone() if own else buffer.detach()
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = (
                    value.detach().clone()
                )  # what a deep copy refuses: results of autograd kept as attributes
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"the model {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); mli_fast works on a "
            "private copy, so that yours is never changed"
        ) from error


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return mapped(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, x)
