"""The three networks of the demo, for 8 x 8 images of digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn, zeros


class MLP(nn.Sequential):
    """Fully connected, 64-256-256-10, ReLU.

    Takes images [B, 1, 8, 8], gives logits [B, 10].
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )


class CNN(nn.Sequential):
    """Three 3 x 3 convolutions (32, 64 by stride 2, 64), each with batch norm and ReLU, then the mean over pixels.

    Takes images [B, 1, 8, 8], gives logits [B, 10].
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for channels_in, channels, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [
                nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Block(nn.Module):
    """A transformer block, layer norm first: attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        batch, tokens, width = x.shape
        qkv = self.query_key_value(self.norm_attention(x))  # [B, T, 3 D]
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # [B, heads, T, D / heads]
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.contract(F.gelu(self.expand(self.norm_mlp(x))))


class ViT(nn.Module):
    """Vision Transformer: 16 patches of 2 x 2 pixels, width 48, 3 blocks of 4 heads, the mean over tokens read out.

    Takes images [B, 1, 8, 8], gives logits [B, 10].
    """

    def __init__(self, width: int = 48, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.position = nn.Parameter(zeros(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:  # [B, 1, 8, 8] -> [B, 10]
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position  # [B, 16, D]
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "cnn": CNN, "vit": ViT}
TITLES: dict[str, str] = {"mlp": "MLP 64-256-256-10", "cnn": "CNN with batch norm", "vit": "Vision Transformer"}
