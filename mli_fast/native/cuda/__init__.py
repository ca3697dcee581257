"""The compiled CUDA kernels: launches on torch tensors, on torch's current stream, never waiting for the device.

Shapes, dtypes and memory layouts are checked here; the kernels get addresses and sizes. Nothing is copied: a tensor
that is not laid out as a kernel needs it is a ``ValueError``.
"""

from mli_fast.native.cuda.blend import BlendPlan, blend
from mli_fast.native.cuda.blend import takes as takes_blend
from mli_fast.native.cuda.linear import linear, split
from mli_fast.native.cuda.linear import takes as takes_linear
from mli_fast.native.cuda.loading import architectures, why_missing

__all__ = ["BlendPlan", "architectures", "blend", "linear", "split", "takes_blend", "takes_linear", "why_missing"]
