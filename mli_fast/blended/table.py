"""The table: which PyTorch functions are taken over on deferred tensors, and what happens to all others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.blended import memo as memos
from mli_fast.blended.products import Affine, ConvProduct, EmbeddingProduct, LinearProduct
from mli_fast.blended.tensors import (
    BatchNorm,
    BlendedTensor,
    CannotDefer,
    Following,
    Pending,
    PointTensor,
    Shared,
    resolved,
)
from mli_fast.ops.conv import Geometry
from mli_fast.ops.norm import norm_at
from mli_fast.ops.points import as_operator

Handler = Callable[..., Any]
TABLE: dict[Any, Handler] = {}


def dispatch(func: Callable, args: tuple, kwargs: dict) -> Any:
    """Do `func`, some argument of which is deferred."""
    handler = TABLE.get(func)
    if handler is not None:
        result = handler(*args, **kwargs)
        if result is not NotImplemented:
            return result
    if func in METADATA:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if func in VIEWS and isinstance(args[0], BlendedTensor) and args[0].value is None:
        view = args[0].viewed(lambda a: func(a, *args[1:], **kwargs))
        if view is not None:
            return view
    return _evaluate(func, args, kwargs)


def evaluated(x: Any) -> Any:
    """Nested tuples, lists and dicts with every deferred tensor computed."""
    return memos.mapped(resolved, x)


def _evaluate(func: Callable, args: tuple, kwargs: dict) -> Any:
    """Call `func` on values; once per batch where all of its arguments are shared."""
    args, kwargs = memos.mapped(_settled, args), memos.mapped(_settled, kwargs)
    changed = _changed_in_place(func, args, kwargs)
    if changed is not None:
        return _change(changed, func, args, kwargs)
    memo = memos.current()
    if memo is not None and not _random(func):
        key = memos.key_of(func, args, kwargs)
        if key is not None:
            return memo.call(func, args, kwargs, key)
    return func(*evaluated(args), **evaluated(kwargs))


def _settled(leaf: Any) -> Any:
    """A pending product as the shared value it is where nothing of it depends on the point, else as its value."""
    if not isinstance(leaf, Pending):
        return leaf
    if leaf.settled is None:
        leaf.settled = _settle(leaf)
    return leaf.settled


def _settle(leaf: Pending) -> Tensor:
    memo, product, following = memos.current(), leaf.product, leaf.following
    if memo is None or leaf.value is not None or not product.constant:
        return leaf.resolve()
    x, residual = product.x, following.residual
    bare, rest = replace(product, x=None), replace(following, residual=None)

    def compute(x: Tensor, residual: Tensor | None) -> Tensor:
        return replace(bare, x=x).compute(replace(rest, residual=residual).epilogue())

    key = memos.key_of(compute, (x, product.key(), *following.parts()), {"eps": following.norm and following.norm.eps})
    if key is None:
        return leaf.resolve()
    return memo.call(compute, (x, residual), {}, ("pending", following.activation, *key[1:]))


# ---- changes in place and randomness ----

_IN_PLACE_DUNDERS = {
    f"__{name}__"
    for name in [
        "setitem",
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "ifloordiv",
        "imod",
        "ipow",
        "iand",
        "ior",
        "ixor",
        "ilshift",
        "irshift",
        "set",
    ]
}
_RANDOM = ("dropout", "rand", "bernoulli", "normal", "multinomial", "rrelu", "gumbel", "poisson", "uniform")


@functools.cache
def _random(func: Callable) -> bool:
    name = getattr(func, "__name__", "")
    return any(part in name for part in _RANDOM)


@functools.cache
def _position_of_inplace(func: Callable) -> int | None:
    if not inspect.isfunction(func):
        return None
    names = list(inspect.signature(func).parameters)
    return names.index("inplace") if "inplace" in names else None


def _changed_in_place(func: Callable, args: tuple, kwargs: dict) -> Any:
    """The argument that `func` writes to, None for a function that does not."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    name = getattr(func, "__name__", "")
    position = _position_of_inplace(func)
    asked = kwargs.get("inplace", position is not None and position < len(args) and args[position])
    if asked or name in _IN_PLACE_DUNDERS or (name.endswith("_") and not name.endswith("__")):
        return args[0] if args else next(iter(kwargs.values()))
    return None


def _change(target: Any, func: Callable, args: tuple, kwargs: dict) -> Any:
    """Let `func` write to this point's own copy of a shared value."""
    if isinstance(target, Shared):
        if target.entry is not None:
            memo = memos.current()
            assert memo is not None
            memo.private(target)
    elif isinstance(target, PointTensor):
        raise CannotDefer("the model changes one of its own parameters or buffers in place")
    result = func(*evaluated(args), **evaluated(kwargs))
    return target if isinstance(target, Shared) and result is target.value else result


# ---- products ----


def _handles(*functions: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for function in functions:
            TABLE[function] = handler
        return handler

    return register


def _operand(x: Any) -> Tensor:
    """An input of a product: Shared where it is the same at every point, else a plain value."""
    x = _settled(x)
    if isinstance(x, BlendedTensor) or (isinstance(x, Shared) and x.entry is None):
        return x.resolve()
    return x


@_handles(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, BlendedTensor) or weight.ndim != 2 or not isinstance(input, Tensor):
        return NotImplemented
    if weight.value is not None or input.ndim == 0 or input.shape[-1] != weight.shape[1]:
        return NotImplemented
    x = input if _may_chain(input) else _operand(input)
    return Pending.make(LinearProduct(x, weight), Following(bias=bias))


def _may_chain(x: Any) -> bool:
    """Whether a linear layer of x may wait until x and itself are computed in one go."""
    if not isinstance(x, Pending) or x.value is not None or not isinstance(x.product, LinearProduct):
        return False
    if torch.compiler.is_compiling() or x.following.residual is not None:
        return False
    return memos.current() is None or not x.product.constant


@_handles(torch.addmm)
def _addmm(bias: Any, x: Any, weight: Any, **scales: Any) -> Any:
    if scales or not isinstance(weight, BlendedTensor) or bias.ndim != 1 or bias.shape[0] != weight.shape[1]:
        return NotImplemented
    return _linear(x, weight.t(), bias)


@_handles(torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
def _matmul(x: Any, weight: Any, **other: Any) -> Any:
    if other or not isinstance(weight, BlendedTensor) or weight.ndim != 2 or weight.value is not None:
        return NotImplemented
    return _linear(x, weight.t())


def _convolution(dims: int) -> Handler:
    def handler(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if not isinstance(weight, BlendedTensor) or not isinstance(input, Tensor) or input.ndim != dims + 2:
            return NotImplemented
        if weight.value is not None or input.shape[1] != weight.shape[1] * groups:
            return NotImplemented
        stride, dilation = _tuple(stride, dims), _tuple(dilation, dims)
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(t % 2 for t in total):
                return NotImplemented
            padding = [t // 2 for t in total]
        geometry = Geometry(stride, _tuple(padding, dims), dilation, groups)
        return Pending.make(ConvProduct(_operand(input), weight, geometry), Following(bias=bias))

    return handler


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


for _dims, _conv in enumerate((F.conv1d, F.conv2d, F.conv3d), 1):
    TABLE[_conv] = _convolution(_dims)


@_handles(F.embedding)
def _embedding(input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any) -> Any:
    if not isinstance(weight, BlendedTensor) or max_norm is not None or weight.value is not None:
        return NotImplemented
    return Pending.make(EmbeddingProduct(_operand(input), weight), Following())


# ---- norms ----


@_handles(F.batch_norm)
def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None or input.ndim < 2:
        return NotImplemented
    norm = BatchNorm(running_mean, running_var, weight, bias, eps)
    if isinstance(input, Pending) and input.open and input.following.norm is None and _channels_match(input):
        return input.extended(False, norm=norm)
    return Pending.make(Affine(_operand(input)), Following(norm=norm))


def _channels_match(x: Pending) -> bool:
    """Whether batch norm's channels, dimension 1, are the product's."""
    return isinstance(x.product, ConvProduct) or (isinstance(x.product, LinearProduct) and x.ndim == 2)


def _plain_norm(kind: str, x: Any, weight: Any, bias: Any, sizes: list[int], eps: float) -> Any:
    moving = any(isinstance(t, BlendedTensor) and not t.constant for t in (weight, bias))
    if not moving and not as_operator():
        return NotImplemented
    return norm_at(resolved(x), resolved(weight), resolved(bias), kind, sizes, eps)


@_handles(F.layer_norm)
def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return _plain_norm("layer", input, weight, bias, list(normalized_shape), eps)


@_handles(F.rms_norm)
def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return _plain_norm("rms", input, weight, None, list(normalized_shape), -1.0 if eps is None else eps)


@_handles(F.group_norm)
def _group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return _plain_norm("group", input, weight, bias, [num_groups], eps)


@_handles(F.instance_norm)
def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is not None or not use_input_stats:
        return NotImplemented
    return _plain_norm("instance", input, weight, bias, [], eps)


# ---- what follows a product ----


def _adding(in_place: bool) -> Handler:
    def handler(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return NotImplemented
        if not in_place and not (isinstance(a, Pending) and a.open):
            a, b = b, a
        if not (isinstance(a, Pending) and a.open) or not isinstance(b, Tensor):
            return NotImplemented
        if a.shape != b.shape or a.dtype != b.dtype:
            return NotImplemented
        b = _settled(b)
        return a.extended(in_place, residual=resolved(b) if not isinstance(b, Shared) else b)

    return handler


_handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)(_adding(in_place=False))
_handles(Tensor.add_, Tensor.__iadd__)(_adding(in_place=True))


def _activation(name: str, in_place: bool = False) -> Handler:
    def handler(input: Any, inplace: bool = False, **options: Any) -> Any:
        if options or not isinstance(input, Pending) or input.value is not None:
            return NotImplemented
        if input.following.activation != "none":
            return NotImplemented
        return input.extended(in_place or inplace, activation=name)

    return handler


_handles(F.relu, torch.relu, Tensor.relu)(_activation("relu"))
_handles(torch.relu_, Tensor.relu_)(_activation("relu", in_place=True))
_handles(F.silu)(_activation("silu"))
_handles(torch.tanh, F.tanh, Tensor.tanh)(_activation("tanh"))
_handles(torch.tanh_, Tensor.tanh_)(_activation("tanh", in_place=True))


@_handles(F.gelu)
def _gelu(input: Any, approximate: str = "none") -> Any:
    name = {"none": "gelu", "tanh": "gelu_tanh"}.get(approximate)
    return NotImplemented if name is None else _activation(name)(input)


@_handles(F.dropout)
def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training else input


# ---- shapes, dtypes, views ----


@_handles(Tensor.__iter__)
def _iter(x: Any) -> Any:
    """`q, k, v = x`: an iterator cannot be remembered, a tuple can."""
    return iter(torch.unbind(x, 0))


METADATA: set[Any] = {
    getattr(Tensor, name).__get__
    for name in [
        "shape",
        "ndim",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_leaf",
        "itemsize",
        "is_cuda",
        "is_cpu",
        "is_sparse",
        "is_quantized",
        "is_meta",
        "is_nested",
        "is_mkldnn",
        "grad_fn",
        "grad",
    ]
} | {
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}

# linear in their argument: the view of a blend is the blend of the views
VIEWS: set[Any] = {
    Tensor.t,
    Tensor.transpose,
    Tensor.permute,
    Tensor.view,
    Tensor.reshape,
    Tensor.unsqueeze,
    Tensor.squeeze,
    Tensor.flatten,
    Tensor.detach,
    Tensor.__getitem__,
    torch.t,
    torch.transpose,
    torch.permute,
    torch.reshape,
    torch.unsqueeze,
    torch.squeeze,
    torch.flatten,
    *(getattr(Tensor, name).__get__ for name in ("T", "mT", "data")),
}
