"""The networks of the benchmarks, in plain PyTorch."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Sequential):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers[:-1])


class Cnn(nn.Module):
    """Three 3x3 convolutions with batch norm, the second of stride 2, the third with a residual."""

    def __init__(self, channels: int = 1, width: int = 32, wide: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(width)
        self.c2 = nn.Conv2d(width, wide, 3, stride=2, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(wide)
        self.c3 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.b3 = nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, channels, H, W] -> [N, classes]
        x = F.relu(self.b1(self.c1(x)))
        x = F.relu(self.b2(self.c2(x)))
        x = F.relu(self.b3(self.c3(x)) + x)
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A: subsample, pad the channels with zeros)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.stride, self.missing = stride, fan_out - fan_in

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.missing:
            half = self.missing // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return F.relu(out + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2015: three stages of `blocks` basic blocks; 3 blocks make ResNet-20."""

    def __init__(self, blocks: int = 3, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, fan_in = [], width
        for stage in range(3):
            for block in range(blocks):
                stages.append(BasicBlock(fan_in, width << stage, 2 if stage and not block else 1))
                fan_in = width << stage
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(fan_in, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer: attention and a GELU MLP, each with a residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [N, tokens, dim]
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """A small Vision Transformer: patches, learned positions, pre-norm layers; reads a class token or the mean."""

    def __init__(
        self,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        patch: int = 4,
        size: int = 32,
        class_token: bool = False,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim)) if class_token else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + int(class_token), dim))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, size, size] -> [N, classes]
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1)
        x = self.norm(self.layers(x + self.positions))
        return self.head(x[:, 0] if self.token is not None else x.mean(1))
