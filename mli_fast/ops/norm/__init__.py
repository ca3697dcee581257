"""norm: layer, group, instance and RMS norm with blended affine parameters; eval-mode batch norm as scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor

from mli_fast.ops.norm import reference
from mli_fast.ops.points import as_operator, per_point, stack

KINDS = tuple(reference.NORMS)


def fold_batch_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Eval-mode batch norm as x * scale + shift along the channels.

    scale = weight / sqrt(variance + eps), shift = bias - mean * scale; exact to rounding. What folds it into the
    preceding product is that product's epilogue.
    """
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    return scale, shift


def norm(
    x: Tensor,  # [P, B, ...]
    weight: Tensor | None,  # [P, C] or the normalised shape
    bias: Tensor | None,  # [P, C]
    kind: str,
    sizes: list[int],
    eps: float,
) -> Tensor:  # [P, B, ...]
    """Normalise each point's input by itself, so that a point's values do not depend on its company.

    Args:
        x: one input per point.
        weight: the affine weight per point, or None.
        bias: the affine bias per point, or None.
        kind: one of `KINDS`.
        sizes: the normalised shape ("layer", "rms"), the number of groups ("group"), nothing ("instance").
        eps: added to the variance.
    """
    rows = [
        reference.norm(x[p], None if weight is None else weight[p], None if bias is None else bias[p], kind, sizes, eps)
        for p in range(len(x))
    ]
    return stack(rows)


def norm_at(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, sizes: list[int], eps: float) -> Tensor:
    """`norm` at one point; may be called under vmap and torch.compile."""
    if as_operator():
        return norm_op(x, weight, bias, kind, sizes, eps)
    return reference.norm(x, weight, bias, kind, sizes, eps)


@torch.library.custom_op("mli_fast::norm", mutates_args=())
def norm_op(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, sizes: list[int], eps: float) -> Tensor:
    """`norm` at one point as a PyTorch operator."""
    return reference.norm(x, weight, bias, kind, sizes, eps).contiguous()


@norm_op.register_fake
def _(x, weight, bias, kind, sizes, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@norm_op.register_vmap
def _(info, in_dims, x, weight, bias, kind, sizes, eps):  # type: ignore[no-untyped-def]
    x, weight, bias = (per_point(t, d, info.batch_size) for t, d in zip((x, weight, bias), in_dims[:3], strict=True))
    return norm(x, weight, bias, kind, sizes, eps), 0
