"""Where Triton kernels run in tests: on a GPU, or interpreted on the CPU, in the precisions that each can."""

from __future__ import annotations

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
# Triton's interpreter computes bfloat16 wrongly; there the GPU alone can tell.
DTYPES = (torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=needs_gpu))
