"""cross_entropy: the loss of every example and its predicted class in one pass; log-probabilities are never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import current
from mli_fast.ops.cross_entropy import fused, reference
from mli_fast.ops.dispatch import PLAIN, choose, shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import linear
from mli_fast.ops.memory import packed, placed

IGNORED = -100  # PyTorch's ignore_index: such a target has loss 0 and counts for nothing


@dataclass(frozen=True)
class Unmultiplied:
    """Unmaterialised logits x W(p)^T + shift, for the fused linear cross entropy."""

    x: Tensor  # [P, M, K]
    weights: Sequence[Tensor]  # R x [V, K]
    coefficients: Tensor  # [P, R] float64
    shift: Tensor | None  # [P, V]
    shape: torch.Size  # of the logits, [P, *rows, V] with M rows in all

    def multiplied(self) -> Tensor:
        """The logits."""
        return linear(self.x, self.weights, self.coefficients, Epilogue(shift=self.shift)).reshape(self.shape)

    def blank(self) -> Tensor:
        """A tensor of the logits' shape, dtype and device without their values, and without memory."""
        return self.x.new_zeros(()).expand(self.shape)


def cross_entropy(
    logits: Tensor | Unmultiplied,  # [P, M, C]
    targets: Tensor,  # [M] int64
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """-log softmax(logits)[target] and the arg max of every row.

    Args:
        logits: any floating dtype.
        targets: class indices in 0..C-1, or -100 for rows to ignore; the caller has checked them.

    Returns:
        losses in float64, 0 where the target is -100, NaN where the row holds NaN; predicted classes, the first of
        equal ones.
    """
    if isinstance(logits, Unmultiplied):
        return linear_cross_entropy(logits.x, logits.weights, logits.coefficients, logits.shift, targets)
    kernel = choose("cross_entropy", (logits,))
    if kernel == "native":
        return native.cross_entropy(logits.contiguous(), targets.contiguous().resolve_neg())
    if kernel == "triton":
        from mli_fast.ops.cross_entropy import triton as kernels

        return kernels.cross_entropy(logits.contiguous(), targets)
    return reference.cross_entropy(logits, targets)


def linear_cross_entropy(
    x: Tensor,  # [P, M, K]
    weights: Sequence[Tensor],  # R x [V, K]
    coefficients: Tensor,  # [P, R] float64
    shift: Tensor | None,  # [P, V]
    targets: Tensor,  # [M] int64
) -> tuple[Tensor, Tensor]:  # [P, M] float64, [P, M] int64
    """`cross_entropy` of x W(p)^T + shift, whose logits [P, M, V] are never stored."""
    if _fused_by(x, weights, shift) == PLAIN:
        return fused.linear_cross_entropy(x, weights, coefficients, shift, targets)
    from mli_fast.ops.cross_entropy import fused_triton

    where = placed(coefficients, x.device)
    return fused_triton.linear_cross_entropy(
        x.contiguous(), weights, where, packed(shift), targets, tf32=current().tf32
    )


def fuses(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether a kernel takes the last product and its cross entropy together, for inputs of x's dtype and device."""
    return _fused_by(x, weights, None, noted=False) != PLAIN


def _fused_by(x: Tensor, weights: Sequence[Tensor], shift: Tensor | None, noted: bool = True) -> str:
    fits = all(w.is_contiguous() for w in weights)
    cls = shape_class("linear_cross_entropy", len(weights[0]))
    return choose("linear_cross_entropy", (x, *weights, shift), cls, lambda _: fits, noted)
