"""The compiled CPU kernels: loads ``mli_fast._native`` and calls it on torch tensors.

Shapes, dtypes and memory layouts are checked here; the kernels get addresses and sizes. Nothing is copied: a tensor
that is not laid out as a kernel needs it is a ``ValueError``. ``MLI_FAST_NATIVE=0`` in the environment switches the
kernels off, ``MLI_FAST_ISA=portable|avx2|avx512`` restricts the instruction set.
"""

from mli_fast.native.blend import BlendPlan, blend
from mli_fast.native.chain import CHAIN_WEIGHT_BYTES, Blended, chain
from mli_fast.native.checks import ACTIVATIONS
from mli_fast.native.combine import combine
from mli_fast.native.conv import conv
from mli_fast.native.cross_entropy import cross_entropy
from mli_fast.native.linear import linear
from mli_fast.native.loading import isa, module, why_missing

__all__ = [
    "ACTIVATIONS",
    "CHAIN_WEIGHT_BYTES",
    "BlendPlan",
    "Blended",
    "blend",
    "chain",
    "combine",
    "conv",
    "cross_entropy",
    "isa",
    "linear",
    "module",
    "why_missing",
]
