"""Every layer of torch.nn in a small network: a stem with parameters, the layer, a head."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.specimen import Entry, Specimen, against_noise

C = 8  # channels
SHAPES = {0: (C,), 1: (C, 12), 2: (C, 8, 8), 3: (C, 4, 6, 6)}  # of an example, by spatial dimensions

ACTIVATIONS = [
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU",
    "LogSigmoid", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink",
    "Softsign", "Tanh", "Tanhshrink", "Dropout", "AlphaDropout", "FeatureAlphaDropout",
]  # fmt: skip


def _one(kind: str, *args: Any, dims: int = 0, **options: Any) -> tuple[int, Callable[[], nn.Module]]:
    return dims, lambda: getattr(nn, kind)(*args, **options)


LAYERS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{name: _one(name) for name in ACTIVATIONS},
    "Linear": _one("Linear", C, 5),
    "LazyLinear": _one("LazyLinear", 5),
    "GLU": _one("GLU"),
    "Threshold": _one("Threshold", 0.1, 0.0),
    **{name: _one(name, dim=1) for name in ("Softmax", "Softmin", "LogSoftmax")},
    "Softmax2d": _one("Softmax2d", dims=2),
    "LayerNorm": _one("LayerNorm", C),
    "RMSNorm": _one("RMSNorm", C),
    "GroupNorm": _one("GroupNorm", 2, C, dims=2),
    "SyncBatchNorm": _one("SyncBatchNorm", C, dims=2),
    "LocalResponseNorm": _one("LocalResponseNorm", 3, dims=2),
    "CrossMapLRN2d": _one("CrossMapLRN2d", 3, dims=2),
    "Flatten": _one("Flatten", dims=2),
    "Unflatten": _one("Unflatten", 1, (2, C // 2)),
    "PixelShuffle": _one("PixelShuffle", 2, dims=2),
    "PixelUnshuffle": _one("PixelUnshuffle", 2, dims=2),
    "ChannelShuffle": _one("ChannelShuffle", 2, dims=2),
    "Upsample": _one("Upsample", scale_factor=2, mode="bicubic", dims=2),
    "UpsamplingNearest2d": _one("UpsamplingNearest2d", scale_factor=2, dims=2),
    "UpsamplingBilinear2d": _one("UpsamplingBilinear2d", scale_factor=2, dims=2),
    "Unfold": _one("Unfold", 3, dims=2),
    "FractionalMaxPool2d": _one("FractionalMaxPool2d", 2, output_size=4, dims=2),
    "FractionalMaxPool3d": _one("FractionalMaxPool3d", 2, output_size=2, dims=3),
    **{f"Dropout{n}d": _one(f"Dropout{n}d", dims=n) for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": _one(f"BatchNorm{n}d", C, dims=n) for n in (1, 2, 3)},
    **{f"LazyBatchNorm{n}d": _one(f"LazyBatchNorm{n}d", dims=n) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": _one(f"InstanceNorm{n}d", C, affine=True, dims=n) for n in (1, 2, 3)},
    **{f"Conv{n}d": _one(f"Conv{n}d", C, 4, 3, stride=2, groups=2, dims=n) for n in (1, 2, 3)},
    **{f"LazyConv{n}d": _one(f"LazyConv{n}d", 4, 3, dims=n) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": _one(f"ConvTranspose{n}d", C, 4, 3, stride=2, dims=n) for n in (1, 2, 3)},
    **{f"LazyConvTranspose{n}d": _one(f"LazyConvTranspose{n}d", 4, 3, dims=n) for n in (1, 2, 3)},
    **{f"MaxPool{n}d": _one(f"MaxPool{n}d", 2, dims=n) for n in (1, 2, 3)},
    **{f"AvgPool{n}d": _one(f"AvgPool{n}d", 2, dims=n) for n in (1, 2, 3)},
    **{f"LPPool{n}d": _one(f"LPPool{n}d", 2, 2, dims=n) for n in (1, 2, 3)},
    **{f"AdaptiveAvgPool{n}d": _one(f"AdaptiveAvgPool{n}d", 3, dims=n) for n in (1, 2, 3)},
    **{f"AdaptiveMaxPool{n}d": _one(f"AdaptiveMaxPool{n}d", 3, dims=n) for n in (1, 2, 3)},
    **{f"{k}Pad{n}d": _one(f"{k}Pad{n}d", 1, dims=n) for k in ("Reflection", "Replication", "Zero", "Circular")
       for n in (1, 2, 3)},
    **{f"ConstantPad{n}d": _one(f"ConstantPad{n}d", 1, 0.5, dims=n) for n in (1, 2, 3)},
}  # fmt: skip


class Net(nn.Module):
    """Stem, the layer, head."""

    def __init__(self, dims: int, layer: nn.Module) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        self.stem = kinds[dims](C, C, 3, padding=1) if dims else nn.Linear(C, C)
        self.layer, self.head = layer, nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).flatten(1))


class Called(nn.Module):
    """A stem, then `call(module, hidden)` for layers that take something else than one tensor."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], width: int = C) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(C, width), layer, nn.LazyLinear(4)
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._call(self.layer, self.stem(x)).flatten(1))


class Words(nn.Module):
    """Tokens through an embedding."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.LazyLinear(4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(tokens).flatten(1))


def _unpool(n: int) -> Callable[[], nn.Module]:
    class Unpooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = getattr(nn, f"MaxPool{n}d")(2, return_indices=True)
            self.layer = getattr(nn, f"MaxUnpool{n}d")(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(*self.pool(x))

    return Unpooled


class Parameters(nn.Module):
    """Weights in a list and in a dict of parameters."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        weights = [nn.Parameter(torch.randn(C, C) / 3) for _ in range(2)]
        self.weights = nn.ParameterList(weights) if listed else nn.ParameterDict(dict(zip("ab", weights, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights if isinstance(self.weights, nn.ParameterList) else self.weights.values():
            x = torch.tanh(x @ weight)
        return x


class Chosen(nn.Module):
    """Layers in a list, or in a dict."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        layers = [nn.Linear(C, C) for _ in range(2)]
        self.layers = nn.ModuleList(layers) if listed else nn.ModuleDict(dict(zip("ab", layers, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers if isinstance(self.layers, nn.ModuleList) else self.layers.values():
            x = x + torch.relu(layer(x))
        return x


def _steps(cell: nn.Module, h: Tensor) -> Tensor:
    state = None
    for t in range(h.shape[1]):
        state = cell(h[:, t], state)
    return state[0] if isinstance(state, tuple) else state


ON_SEQUENCES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    **{k: (functools.partial(getattr(nn, k), C, 6, 2, batch_first=True), lambda m, h: m(h)[0])
       for k in ("RNN", "LSTM", "GRU")},
    **{k: (functools.partial(getattr(nn, k), C, 6), _steps) for k in ("RNNCell", "LSTMCell", "GRUCell")},
    "LSTM-bidirectional": (lambda: nn.LSTM(C, 6, bidirectional=True, batch_first=True, proj_size=3),
                           lambda m, h: m(h)[0]),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(C, 2, batch_first=True), lambda m, h: m(h, h, h)[0]),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(C, 2, 16, batch_first=True), lambda m, h: m(h)),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(C, 2, 16, batch_first=True), lambda m, h: m(h, h)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(C, 2, 16, batch_first=True), 2), lambda m, h: m(h)),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(C, 2, 16, norm_first=True, batch_first=True), 2),
        lambda m, h: m(h, h)),
    "Transformer": (lambda: nn.Transformer(C, 2, 1, 1, 16, batch_first=True), lambda m, h: m(h, h)),
    "Bilinear": (lambda: nn.Bilinear(C, C, 5), lambda m, h: m(h, torch.tanh(h))),
    "CosineSimilarity": (lambda: nn.CosineSimilarity(dim=-1), lambda m, h: m(h, h.roll(1, 1))),
    "PairwiseDistance": (lambda: nn.PairwiseDistance(), lambda m, h: m(h, h.roll(1, 1))),
    "Fold": (lambda: nn.Fold((4, 4), (2, 2)), lambda m, h: m(h.movedim(1, 2)[..., :9])),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(C, 20, [4, 10]), lambda m, h: m.log_prob(h[:, 0])),
}  # fmt: skip
ON_TOKENS = {
    "Embedding": lambda: nn.Embedding(20, C, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(20, C, mode="mean"),
    "Embedding-max-norm": lambda: nn.Embedding(20, C, max_norm=1.0),
}
OTHERS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    **{f"MaxUnpool{n}d": (n, _unpool(n)) for n in (1, 2, 3)},
    "ParameterList": (0, lambda: Parameters(True)),
    "ParameterDict": (0, lambda: Parameters(False)),
    "ModuleList": (0, lambda: Chosen(True)),
    "ModuleDict": (0, lambda: Chosen(False)),
    "Sequential": (0, lambda: nn.Sequential(nn.Linear(C, C), nn.ReLU(inplace=True), nn.Linear(C, C))),
}
NO_LAYERS = {
    "Module",
    "Container",
    "Buffer",
    "Parameter",
    "UninitializedBuffer",
    "UninitializedParameter",
    "DataParallel",
    "NLLLoss2d",
    "RNNBase",
    "RNNCellBase",
}


def unlisted() -> list[str]:
    """Layers of torch.nn that are not in the zoo: a new one is noticed here."""
    layers = {
        name for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and not name.endswith("Loss")
    }  # fmt: skip
    lazy = {f"LazyInstanceNorm{n}d" for n in (1, 2, 3)}
    return sorted(layers - {e.name for e in entries()} - NO_LAYERS - lazy)


def entries() -> Iterator[Entry]:
    """One per layer."""
    for name, (dims, make) in {**LAYERS, **OTHERS}.items():
        yield Entry("torch.nn", name, functools.partial(_in_a_net, dims, make))
    for name, (make, call) in ON_SEQUENCES.items():
        yield Entry("torch.nn", name, functools.partial(_on_sequences, make, call))
    for name, make in ON_TOKENS.items():
        yield Entry("torch.nn", name, functools.partial(_on_tokens, make))


def _in_a_net(dims: int, make: Callable[[], nn.Module]) -> Specimen:
    torch.manual_seed(0)
    return against_noise(Net(dims, make()), [torch.randn(n, *SHAPES[dims]) for n in (5, 3)], [5, 3])


def _on_sequences(make: Callable[[], nn.Module], call: Callable[[nn.Module, Tensor], Tensor]) -> Specimen:
    torch.manual_seed(0)
    width = 4 if make().__class__.__name__ == "Fold" else C
    return against_noise(Called(make(), call, width), [torch.randn(n, 9, C) for n in (5, 3)], [5, 3])


def _on_tokens(make: Callable[[], nn.Module]) -> Specimen:
    torch.manual_seed(0)
    return against_noise(Words(make()), [torch.randint(0, 20, (n, 7)) for n in (5, 3)], [5, 3])
