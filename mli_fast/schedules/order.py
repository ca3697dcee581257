"""The order in which a network calls its layers, found from one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mli_fast.engine.guard import random_state_kept

from .parts import Parts


def depth_order(run: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    """The names of the modules that hold parameters or running statistics, in the order of their first call.

    A module that is never called (its parent uses its weights itself, as nn.MultiheadAttention does) follows the one
    registered before it. The pass runs in eval mode and without gradients; the modes, the model's hooks and the global
    random states are afterwards as they were.

    Args:
        run: calls the model once, on one batch.
        model: the architecture; it has to be able to run.

    Raises:
        Exception: what the forward pass raises.

    Example:
        >>> class Backwards(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.last, self.first = nn.Linear(3, 2), nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         return self.last(self.first(x))
        >>> depth_order(lambda model: model(torch.zeros(1, 4)), Backwards())
        ['first', 'last']
    """
    layers = Parts(model).registered_layers()
    modes = {module: module.training for module in model.modules()}
    calls: dict[str, int] = {}

    def called(name: str, *_: Any) -> None:
        calls.setdefault(name, len(calls))

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(called, name)) for name in layers]
    try:
        with random_state_kept(), torch.no_grad():
            run(model.eval())
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    times, last = [], -1
    for name in layers:
        last = calls.get(name, last)
        times.append(last)
    return [name for _, name in sorted(zip(times, layers, strict=True), key=lambda pair: pair[0])]
