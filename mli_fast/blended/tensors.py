"""Three kinds of tensors whose value is computed when somebody looks: blended, shared, pending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mli_fast.ops.blend import blend_at
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.norm import fold_batch_norm
from mli_fast.ops.points import as_operator

if TYPE_CHECKING:
    from mli_fast.blended.memo import Entry


class CannotDefer(RuntimeError):
    """The model does something that deferred values do not survive; it has to run on computed ones."""


def _poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    value = float("nan") if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full((), value, dtype=dtype, device=device).expand(shape)


_remembered_poison = lru_cache(maxsize=4096)(_poison)


class PointTensor(torch.Tensor):
    """A tensor whose value is behind `resolve()`; every PyTorch function on it goes through the table.

    Its own storage is a single NaN, so code that reads past the table is noticed.
    """

    _meta: tuple[torch.Size, torch.dtype, torch.device]

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        from mli_fast.blended.table import dispatch

        return dispatch(func, args, kwargs or {})

    @staticmethod
    def shell(cls: type, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
        """An instance with the metadata of a tensor and no value."""
        make = _poison if as_operator() else _remembered_poison
        self: Any = torch.Tensor._make_subclass(cls, make(tuple(shape), dtype, device))
        self._meta = torch.Size(shape), dtype, device
        return self

    # read so often that going through the table would show
    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The value's shape."""
        return self._meta[0]

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The value's number of dimensions."""
        return len(self._meta[0])

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The value's dtype."""
        return self._meta[1]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The value's device."""
        return self._meta[2]

    def resolve(self) -> Tensor:
        """The value as a plain tensor."""
        raise TypeError(f"{type(self).__name__} has no value of its own")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"


class BlendedTensor(PointTensor):
    """A parameter at one point: sum_r coefficients[r] * anchors[r], not computed until it has to be.

    A parameter that is the same in all anchors has one anchor, with coefficient 1; then `constant` is true.
    """

    anchors: tuple[Tensor, ...]  # R x [*shape]
    coefficients: Tensor  # [R] float64; batched under vmap
    constant: bool
    value: Tensor | None
    folds: dict[Any, tuple[Tensor, Tensor]]

    @staticmethod
    def make(
        anchors: tuple[Tensor, ...],
        coefficients: Tensor,
        dtype: torch.dtype | None = None,
        constant: bool = False,
        value: Tensor | None = None,
    ) -> BlendedTensor:
        """Wrap `anchors` [*shape] and `coefficients` [R]; `value` is given where it is already known."""
        first = anchors[0]
        self = PointTensor.shell(BlendedTensor, first.shape, dtype or first.dtype, first.device)
        self.anchors, self.coefficients, self.constant, self.value = anchors, coefficients, constant, value
        self.folds = {}
        return self

    def resolve(self) -> Tensor:
        """Blend, once."""
        if self.value is None:
            first = self.anchors[0]
            self.value = (
                first.to(self.dtype) if self.constant else blend_at(self.anchors, self.coefficients, self.dtype)
            )
        return self.value

    def viewed(self, view: Callable[[Tensor], Any]) -> BlendedTensor | None:
        """The same view of every anchor, still blended; None where the view is not a tensor."""
        views = tuple(view(a) for a in self.anchors)
        if not all(type(v) is Tensor for v in views):
            return None
        return BlendedTensor.make(views, self.coefficients, self.dtype, self.constant)


class Shared(PointTensor):
    """A value that is the same at every point of this batch, remembered in the batch's memo."""

    entry: Entry | None  # None once a point has changed its own copy in place
    value: Tensor | None

    @staticmethod
    def make(entry: Entry) -> Shared:
        """A fresh handle on a remembered value."""
        self = PointTensor.shell(Shared, entry.shape, entry.dtype, entry.device)
        self.entry, self.value = entry, entry.alive()
        return self

    def resolve(self) -> Tensor:
        """The value; from now on the memo keeps it for the points to come."""
        if self.entry is None:
            assert self.value is not None
            return self.value
        return self.entry.keep()

    def make_private(self) -> Tensor:
        """Give this point a copy of its own to change in place."""
        self.value, self.entry = self.resolve().clone(), None
        return self.value


@dataclass(frozen=True)
class BatchNorm:
    """Eval-mode batch norm that waits to be folded."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def folded(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), remembered with the point's running mean."""
        key = (id(self.variance), id(self.weight), id(self.bias), self.eps)
        cache = self.mean.folds if isinstance(self.mean, BlendedTensor) and self.mean.value is not None else {}
        if key not in cache:
            parts = resolved(self.mean), resolved(self.variance), resolved(self.weight), resolved(self.bias)
            cache[key] = fold_batch_norm(*parts, self.eps)
        return cache[key]


@dataclass(frozen=True)
class Following:
    """What follows a pending product, before anything of it is computed."""

    bias: Tensor | None = None
    norm: BatchNorm | None = None
    residual: Tensor | None = None
    activation: str = "none"

    def parts(self) -> tuple[Tensor | None, ...]:
        """Every tensor it is made of."""
        norm = (self.norm.mean, self.norm.variance, self.norm.weight, self.norm.bias) if self.norm else ()
        return (self.bias, *norm, self.residual)

    def epilogue(self) -> Epilogue:
        """The numbers."""
        scale, shift = None, resolved(self.bias)
        if self.norm is not None:
            scale, offset = self.norm.folded()
            shift = offset if shift is None else torch.addcmul(offset, shift, scale)
        return Epilogue(scale, shift, resolved(self.residual), self.activation)


def resolved(tensor: Tensor | None) -> Any:
    """The plain value of any tensor."""
    return tensor.resolve() if isinstance(tensor, PointTensor) else tensor


class Pending(PointTensor):
    """A product whose bias, batch norm, residual and activation are still being collected."""

    product: Any  # mli_fast.blended.products.Product
    following: Following
    versions: tuple[tuple[Tensor, int], ...]
    value: Tensor | None
    settled: Tensor | None  # the value or, where it is the same at every point, a handle on the remembered one

    @staticmethod
    def make(product: Any, following: Following) -> Pending:
        """The product of known shape, followed by `following`."""
        self = PointTensor.shell(Pending, product.shape, product.dtype, product.device)
        self.product, self.value = product, None
        self.follow(following)
        return self

    def follow(self, following: Following) -> None:
        """Take on what follows, noting the state of the operands that someone else could change meanwhile."""
        self.following, self.settled = following, None
        watched = [t for t in (self.product.x, following.residual) if type(t) is Tensor and not t.is_inference()]
        self.versions = tuple((t, t._version) for t in watched)

    def extended(self, in_place: bool, **changes: Any) -> Pending:
        """This product with more following it: itself where the model works in place, else a new one."""
        following = replace(self.following, **changes)
        if not in_place:
            return Pending.make(self.product, following)
        self.follow(following)
        return self

    @property
    def open(self) -> bool:
        """Whether a batch norm or residual may still join."""
        f = self.following
        return self.value is None and f.residual is None and f.activation == "none"

    def resolve(self) -> Tensor:
        """Compute the product and what follows, once."""
        if self.value is None:
            self.value = self.product.compute(self.checked_epilogue())
        return self.value

    def checked_epilogue(self) -> Epilogue:
        """What follows, if the operands are as they were.

        Raises:
            CannotDefer: they are not.
        """
        if any(t._version != version for t, version in self.versions):
            raise CannotDefer("the model changes an activation in place while a product of it is pending")
        return self.following.epilogue()
