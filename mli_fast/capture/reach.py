"""Functions that must not read a model: what scores outputs has no model but the caller's, with the caller's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mli_fast.trees import copied, tensors_in


def of_outputs_alone(function: Callable[..., Any], what: str, parameters: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The function, which in its first call may read none of these parameters.

    Args:
        function: a criterion or a metric.
        what: what the message calls it.
        parameters: name -> the caller's own.

    Returns:
        a function that raises ValueError in its first call where that reads one, and names it.
    """
    names = {t.untyped_storage()._cdata: name for name, t in parameters.items() if t.layout is torch.strided}
    looked: list[bool] = []

    def looking(*args: Any, **kwargs: Any) -> Any:
        if not looked:
            looked.append(True)
            with _Watch(names) as watch:  # whose result is not taken: under a mode last bits may be others
                function(*copied(args), **copied(kwargs))
            if watch.seen is not None:
                raise ValueError(
                    f"{what} reads the parameter {watch.seen!r} of the model that it was written for, which does not "
                    "have the values of the point; let forward= give what it needs (a penalty, say): its model has them"
                )
        return function(*args, **kwargs)

    looking.__name__ = getattr(function, "__name__", type(function).__name__)
    return looking


class _Watch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors_in((args, kwargs)):
            if tensor.layout is torch.strided:
                self.seen = self.seen or self._names.get(tensor.untyped_storage()._cdata)
        return func(*args, **(kwargs or {}))
