"""Whether a plan gives what plain PyTorch gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Of the largest output; products in another order and folded norms differ by far less, a wrong program by far more
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def difference(ours: Sequence[Tensor], plain: Sequence[Tensor], exact: bool, in_double: bool = True) -> str | None:
    """What differs between the tensors of two results at one point; None if they agree.

    Args:
        ours: a plan's.
        plain: plain PyTorch's, of the same sizes.
        exact: whether every bit has to be the same; otherwise floating numbers may differ as their precision allows.
        in_double: whether fp64 was computed in; otherwise results in fp64 are of fp32's precision.
    """
    for i, (mine, theirs) in enumerate(zip(ours, plain, strict=True)):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return f"output {i} is {mine.dtype} {tuple(mine.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
        if mine.numel() == 0 or torch.equal(mine, theirs):
            continue
        if not theirs.dtype.is_floating_point and not theirs.dtype.is_complex:
            if exact or theirs.dtype == torch.bool:
                return f"output {i} has other values"
            continue  # numbers of classes and the like, which a last bit may turn
        if exact:
            if not bool(((mine == theirs) | (mine.isnan() & theirs.isnan())).all()):
                return f"output {i} differs"
            continue
        found = _relative(mine, theirs)
        dtype = torch.float32 if theirs.dtype is torch.float64 and not in_double else theirs.dtype
        if found > ALLOWED.get(dtype, 1e-3):
            return f"output {i} differs by {found:.1e} of its largest value"
    return None


def _relative(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value; infinite where one alone is finite."""
    off = scale = math.nan
    if theirs.dtype.itemsize > 1:  # eight bits have no arithmetic
        off, scale = _largest(mine - theirs), _largest(theirs)
    if not math.isfinite(off + scale):  # what is infinite or no number in both does not count
        finite = theirs.isfinite()
        if not torch.equal(finite, mine.isfinite()):
            return float("inf")
        wide = torch.complex128 if theirs.dtype.is_complex else torch.float64
        a, b = mine[finite].to(wide), theirs[finite].to(wide)
        off, scale = (_largest(a - b), _largest(b)) if b.numel() else (0.0, 0.0)
    return off / scale if scale else off


def _largest(x: Tensor) -> float:
    return float(x.abs().max())
