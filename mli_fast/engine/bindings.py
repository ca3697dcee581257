"""PyTorch's own Python bindings of operators: the same calls as `torch.ops`, at half the cost each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
# Those whose binding takes the operator's own arguments, and calls that operator and no other
_FUNCTIONS = (
    "add.Tensor sub.Tensor mul.Tensor div.Tensor maximum minimum where.self lerp.Scalar pow.Tensor_Scalar "
    "abs cos exp log neg reciprocal rsqrt sigmoid sin sqrt tanh relu relu_ cumsum "
    "addmm mm bmm baddbmm cat stack clone gather index_select sum.dim_IntList mean.dim _softmax _log_softmax "
    "native_layer_norm native_group_norm native_batch_norm convolution embedding constant_pad_nd "
    "permute select.int split_with_sizes squeeze.dim t transpose.int unbind.int unsqueeze "
    "eq.Tensor ge.Tensor gt.Tensor le.Tensor lt.Tensor"
)
_METHODS = "add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor copy_ expand masked_fill_.Scalar sigmoid_ tanh_ view zero_"
_LAYERS = "gelu hardswish silu silu_ softplus"


def _bindings() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = {}
    for names, namespace in ((_FUNCTIONS, torch), (_METHODS, Tensor), (_LAYERS, torch._C._nn)):
        for name in names.split():
            base, _, overload = name.partition(".")
            found[getattr(getattr(aten, base), overload or "default")] = getattr(namespace, base)
    return found


DIRECT = _bindings()
