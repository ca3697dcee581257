"""The same networks as pure JAX functions of a dict of arrays that carries PyTorch's names.

Convolutions run in NHWC with HWIO weights, the layout XLA's CPU backend is fastest in. The batch norms read
running statistics, as in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from torch import nn

from benchmarks import models

Arrays = dict[str, Any]
Forward = Callable[[Arrays, Any], Any]


def forward_for(model: nn.Module) -> Forward | None:
    """The JAX forward `(values, x NHWC or [N, features]) -> logits` of a benchmark network, None for any other."""
    if isinstance(model, nn.Sequential):
        return _sequential(model)
    if isinstance(model, models.Cnn):
        return _cnn
    if isinstance(model, models.ResNet):
        return _resnet(
            [(block.stride, block.missing) for block in model.blocks.children() if isinstance(block, models.BasicBlock)]
        )
    if isinstance(model, models.Vit):
        return _vit(len(model.layers), model.heads, model.token is not None)
    return None


def _linear(p: Arrays, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _conv(p: Arrays, name: str, x: Any, stride: int = 1, padding: int = 1) -> Any:
    return jax.lax.conv_general_dilated(
        x, p[f"{name}.weight"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _batch_norm(p: Arrays, name: str, x: Any) -> Any:
    scale = p[f"{name}.weight"] * jax.lax.rsqrt(p[f"{name}.running_var"] + 1e-5)
    return x * scale + (p[f"{name}.bias"] - p[f"{name}.running_mean"] * scale)


def _layer_norm(p: Arrays, name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    return normal * p[f"{name}.weight"] + p[f"{name}.bias"]


def _sequential(model: nn.Sequential) -> Forward | None:
    known = {
        nn.Linear: lambda name, layer: lambda p, x: _linear(p, name, x),
        nn.Conv2d: lambda name, layer: lambda p, x: _conv(p, name, x, layer.stride[0], layer.padding[0]),
        nn.BatchNorm2d: lambda name, layer: lambda p, x: _batch_norm(p, name, x),
        nn.ReLU: lambda name, layer: lambda p, x: jax.nn.relu(x),
        nn.AdaptiveAvgPool2d: lambda name, layer: lambda p, x: x.mean((1, 2), keepdims=True),  # to 1 x 1
        nn.Flatten: lambda name, layer: lambda p, x: x.reshape(len(x), -1),
    }
    if not all(type(layer) in known for layer in model):
        return None
    layers = [known[type(layer)](name, layer) for name, layer in model.named_children()]

    def forward(p: Arrays, x: Any) -> Any:
        for layer in layers:
            x = layer(p, x)
        return x

    return forward


def _cnn(p: Arrays, x: Any) -> Any:
    x = jax.nn.relu(_batch_norm(p, "b1", _conv(p, "c1", x)))
    x = jax.nn.relu(_batch_norm(p, "b2", _conv(p, "c2", x, stride=2)))
    x = jax.nn.relu(_batch_norm(p, "b3", _conv(p, "c3", x)) + x)
    return _linear(p, "fc", x.mean((1, 2)))


def _resnet(blocks: list[tuple[int, int]]) -> Forward:
    def forward(p: Arrays, x: Any) -> Any:
        x = jax.nn.relu(_batch_norm(p, "bn1", _conv(p, "conv1", x)))
        for index, (stride, missing) in enumerate(blocks):
            name = f"blocks.{index}"
            out = jax.nn.relu(_batch_norm(p, f"{name}.bn1", _conv(p, f"{name}.conv1", x, stride)))
            out = _batch_norm(p, f"{name}.bn2", _conv(p, f"{name}.conv2", out))
            if stride != 1 or missing:
                half = missing // 2
                x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (half, missing - half)))
            x = jax.nn.relu(out + x)
        return _linear(p, "fc", x.mean((1, 2)))

    return forward


def _vit(layers: int, heads: int, class_token: bool) -> Forward:
    def layer(p: Arrays, name: str, x: Any) -> Any:
        n, tokens, dim = x.shape
        qkv = _linear(p, f"{name}.qkv", _layer_norm(p, f"{name}.norm1", x)).reshape(n, tokens, 3, heads, dim // heads)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(n, tokens, dim)
        x = x + _linear(p, f"{name}.proj", attended)
        up = _linear(p, f"{name}.up", _layer_norm(p, f"{name}.norm2", x))
        return x + _linear(p, f"{name}.down", jax.nn.gelu(up, approximate=False))

    def forward(p: Arrays, x: Any) -> Any:
        patch = p["patches.weight"].shape[0]
        x = _conv(p, "patches", x, stride=patch, padding=0) + p["patches.bias"]
        x = x.reshape(len(x), -1, x.shape[-1])
        if class_token:
            x = jnp.concatenate((jnp.broadcast_to(p["token"], (len(x), 1, x.shape[-1])), x), axis=1)
        x = x + p["positions"]
        for index in range(layers):
            x = layer(p, f"layers.{index}", x)
        x = _layer_norm(p, "norm", x)
        return _linear(p, "head", x[:, 0] if class_token else x.mean(1))

    return forward
