"""Fully connected and convolutional networks of any width and depth, made from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

CLASSES = 10


def mlp(
    shape: Sequence[int],
    width: int = 128,
    depth: int = 3,
    *,
    batch_norm: bool = False,
    relu: bool = True,
    bias: str = "all",
    seed: int = 0,
) -> nn.Sequential:
    """Images of `shape` to ten logits through `depth` matrices, ReLU between them; biases start at zero.

    Args:
        shape: of one image.
        width: of every hidden layer.
        depth: the number of matrices, 1 or more.
        batch_norm: after every hidden matrix.
        relu: False makes a deep linear network.
        bias: "all", or "last": of the last layer alone.
        seed: of the initialisation.
    """
    widths = [math.prod(shape), *[width] * (depth - 1), CLASSES]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(depth):
            last = i == depth - 1
            linear = nn.Linear(widths[i], widths[i + 1], bias=last or bias == "all")
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            layers.append(linear)
            if not last:
                layers += [nn.BatchNorm1d(width)] * batch_norm + [nn.ReLU()] * relu
        return nn.Sequential(*layers)


def cnn(
    shape: Sequence[int], channels: Sequence[int] = (16, 32, 32), *, batch_norm: bool = True, seed: int = 0
) -> nn.Sequential:
    """Images of `shape` to ten logits: 3 x 3 convolutions with ReLU, then a matrix.

    All convolutions but the first have stride 2; the first brings large images down to some 8 x 8.

    Args:
        shape: of one image, (1, H, W).
        channels: of each convolution.
        batch_norm: after every convolution, which then has no bias.
        seed: of the initialisation.
    """
    before, *sizes = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for i, after in enumerate(channels):
            stride = max(1, min(sizes) // 8) if i == 0 else 2
            layers.append(nn.Conv2d(before, after, 3, stride, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(after)] * batch_norm + [nn.ReLU()]
            before, sizes = after, [-(-size // stride) for size in sizes]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * math.prod(sizes), CLASSES))
