"""The norms in plain PyTorch: the contract as code."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.points import aligned

NORMS = {
    "layer": lambda x, w, b, sizes, eps: F.layer_norm(x, sizes, w, b, eps),
    "group": lambda x, w, b, sizes, eps: F.group_norm(x, sizes[0], w, b, eps),
    "instance": lambda x, w, b, sizes, eps: F.instance_norm(x, None, None, w, b, True, 0.0, eps),
    # a negative eps stands for PyTorch's default, the machine epsilon of the input's dtype
    "rms": lambda x, w, b, sizes, eps: F.rms_norm(x, sizes, w, None if eps < 0 else eps),
}


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, sizes: list[int], eps: float) -> Tensor:
    """One point's norm; see `mli_fast.ops.norm.norm`."""
    return NORMS[kind](aligned(x), weight, bias, sizes, eps)
