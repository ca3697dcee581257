"""What suits a kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limits:
    """Sizes that passes are cut to."""

    # Below this many multiply-adds of one point and one batch, what surrounds them costs more than they do, and many
    # points in one call pay; above, one point at a time keeps its activations in cache, or fills the GPU.
    small_work: int
    activation_bytes: int  # the widest activation of one pass
    most_rows: int  # of one pass over an (X, y) pair
    group_bytes: int  # of batches, and of what their points share, that are kept together


LIMITS = {
    # a part of the last-level cache, yet enough rows that Python between kernels does not show: measured
    "cpu": Limits(2**22, 2**24, 4096, 2**26),
    # estimated, no GPU has been asked: some multiples of what fills 132 multiprocessors, and of the L2 cache
    "cuda": Limits(2**32, 2**29, 8192, 2**31),
}


def limits(device: torch.device) -> Limits:
    """Those of the device; one that is neither a CPU nor a GPU of NVIDIA's is treated as a CPU."""
    return LIMITS.get(device.type, LIMITS["cpu"])
