"""Networks whose parts have names: plain, with norms, with attention, with tied weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Three linear layers, registered in another order than they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class OwnNorm(nn.Module):
    """A norm that is not PyTorch's, as large language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x / x.square().mean(-1, keepdim=True).sqrt()


class Convolutional(nn.Module):
    """Convolutions with batch norms, one of them without weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, affine=False), nn.ReLU())
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class Transformer(nn.Module):
    """Embedding, attention, two norms, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.place = nn.Parameter(torch.zeros(5, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(4), OwnNorm(4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.place
        h = self.norm1(h + self.attention(h, h, h)[0])
        return self.head(self.norm2(h))


class Shared(nn.Module):
    """One layer called twice, and a weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.again = self.first
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(torch.relu(self.first(x))))
