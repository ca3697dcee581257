"""The precisions that are measured, and PyTorch's switches for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mli_fast.engine.guard import arithmetic

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def fastest(precision: str) -> Iterator[None]:
    """PyTorch as a user sets it for speed in that precision: cuDNN chooses by measuring. All is put back afterwards."""
    with arithmetic(precision == "tf32"):
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        yield
