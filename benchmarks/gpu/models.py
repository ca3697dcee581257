"""Networks that only the GPU benchmarks use, in plain PyTorch; the others are in `benchmarks.models`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A basic block; where the shape changes, a 1x1 convolution and batch norm on the shortcut."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        changes = stride != 1 or fan_in != fan_out
        shortcut = [nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out)]
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 with the stem for CIFAR: a 3x3 convolution of stride 1, no pooling."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        fan_in = width
        for stage in range(4):
            for block in range(2):
                layers.append(Block(fan_in, width << stage, 2 if stage and not block else 1))
                fan_in = width << stage
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))


def gpt2(layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 8192, tokens: int = 256) -> Any:
    """GPT-2 of `transformers`, without a cache of keys and values."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: Any = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": vocabulary, "n_positions": tokens}
    return GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False))
