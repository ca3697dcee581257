"""Exact derivatives along the path, by forward-mode differentiation at every point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from mli_fast.checkpoints.values import blends
from mli_fast.criteria import Criterion
from mli_fast.engine.guard import first_line
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.ops.norm import fold_batch_norm
from mli_fast.trees import copied, tensors_in

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# What leaves the derivative behind; `.data` is a property
_LOSING = {
    **dict.fromkeys((Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.numpy, Tensor.__array__), "a number"),
    **dict.fromkeys((Tensor.detach, torch.detach, Tensor.data.__get__), "a detached value"),  # type: ignore[attr-defined]
}
_OF_NUMBERS = {torch.tensor: 0, torch.as_tensor: 0, torch.asarray: 0, Tensor.new_tensor: 1}  # where their data is


class _Differentiable(TorchFunctionMode):
    """Forms that have a forward-mode derivative, in place of faster ones that have none.

    Norms with given statistics go by their formula: PyTorch's take statistics for constants, here they move.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in _RECURRENT:
            with torch.backends.mkldnn.flags(enabled=False):
                return func(*args, **(kwargs or {}))
        if func in _LOSING and _has_slope(args[0]):
            raise _lost(f"takes {_LOSING[func]} from an activation or a parameter")
        if func in _OF_NUMBERS:
            data = args[_OF_NUMBERS[func]] if len(args) > _OF_NUMBERS[func] else (kwargs or {}).get("data")
            is_kept = isinstance(data, Tensor) and func in (torch.as_tensor, torch.asarray)
            if not is_kept and any(map(_has_slope, tensors_in(data))):
                raise _lost("takes a number from an activation or a parameter")
        if not torch._C._is_fwd_grad_enabled():
            with torch.inference_mode(False), fwAD._set_fwd_grad_enabled(True):
                if any(map(_has_slope, tensors_in((args, kwargs)))):
                    raise _lost("computes in inference mode")
        if func in _FORMULAS:
            result = _FORMULAS[func](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def _has_slope(tensor: Tensor) -> bool:
    return fwAD.unpack_dual(tensor).tangent is not None


def _lost(how: str) -> ValueError:
    return ValueError(f"slopes along the path: the model {how}, and loses its slope")


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or mean is None or variance is None:
        return NotImplemented
    scale, shift = fold_batch_norm(mean, variance, weight, bias, eps)
    column = (-1, *[1] * (x.ndim - 2))
    return x * scale.view(column) + shift.view(column)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    return _batch_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _moments(x: Tensor, running_mean: None, running_var: None, momentum: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, variance


_FORMULAS: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm_update_stats: _moments,
}

# In PyTorch's own errors: no derivative, or what its tensors cannot be put through (copy.deepcopy, inference mode)
_UNDERIVED = ("forward AD", "forward grad", "functorch transform", "TensorWrapper", "inference tensor")


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
        values, directions = self._points.values(p), self._directions.values(p)
        moving = {name: values[name] for name in self._points.moving if blends(values[name].dtype)}

        def losses_and_outputs(moving: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            # copies made in here are the transform's own: the model may write to them
            own = {name: moving.get(name, value).clone() for name, value in values.items()}
            outputs, targets = self._network.evaluate(own, copied(batch))
            losses = self._criterion.losses(outputs, targets)
            if not isinstance(outputs, Tensor):  # then no functional reads them
                return losses, losses[:, None]
            return losses, outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]

        try:
            # the one attention that has a forward-mode derivative
            with sdpa_kernel(SDPBackend.MATH), _Differentiable():
                along = {name: directions[name] for name in moving}
                slope, tangent = torch.func.jvp(losses_and_outputs, (moving,), (along,))[1]
        except (NotImplementedError, RuntimeError) as error:
            if not any(words in str(error) for words in _UNDERIVED):
                raise
            raise ValueError(
                "slopes along the path need forward-mode derivatives, and PyTorch has none for something in this model "
                f"or criterion: {first_line(error)}"
            ) from error
        return slope.double(), tangent
