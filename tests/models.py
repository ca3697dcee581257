"""The one generator of models and endpoints that every test draws from: tiny sizes, fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.data import (
    CLASSES,
    Batch,
    language,
    multi_label,
    normal,
    pictures,
    regression,
    segmentation,
    sentences,
    token_batches,
    two_inputs,
    two_named_inputs,
)


@dataclass(frozen=True)
class Architecture:
    """A model, the data it eats and how its outputs are scored."""

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], list[Batch]]
    criterion: str = "cross_entropy"
    metrics: tuple[str, ...] = ("accuracy",)

    def model(self, seed: int = 0) -> nn.Module:
        """A fresh model in eval mode, built without touching the global random state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().eval()


ARCHITECTURES: dict[str, Architecture] = {}


def register(
    name: str,
    data: Callable[[], list[Batch]],
    criterion: str = "cross_entropy",
    metrics: tuple[str, ...] = ("accuracy",),
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Puts a factory into the registry under `name`."""

    def decorate(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ARCHITECTURES[name] = Architecture(name, make, data, criterion, metrics)
        return make

    return decorate


def endpoints(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two state dicts of the architecture from different seeds, nothing in them trivially equal."""
    architecture = ARCHITECTURES[name]
    return endpoints_of(architecture.model)


def endpoints_of(make: Callable[[int], nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two state dicts of what `make(seed)` builds."""
    states = []
    for seed in (1, 2):
        model = make(seed)
        randomise(model, seed)
        states.append({key: value.detach().clone() for key, value in model.state_dict().items()})
    return states[0], states[1]


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Draws every parameter and running statistic anew; frozen parameters alike for every seed."""
    moving, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    for name, parameter in model.named_parameters():
        generator = moving if parameter.requires_grad else fixed
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if parameter.dim() >= 2 and not parameter.is_complex():
            parameter.copy_(noise * 1.2 / math.sqrt(parameter.numel() / parameter.shape[0]))
        else:
            parameter.copy_(0.2 * noise + (0.0 if "bias" in name.rsplit(".", 1)[-1] else 1.0))
    for name, buffer in model.named_buffers():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_mean":
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=moving))
        elif leaf == "running_var":  # stays positive under the extrapolation of the tests
            buffer.copy_(0.8 + 0.8 * torch.rand(buffer.shape, generator=moving))
        elif leaf == "num_batches_tracked":
            buffer.fill_(10 * seed)


# ------------------------------------------------------------------------------------------------------- plain networks


class Head(nn.Module):
    """A body, a mean over all but batch and channels, and a linear layer."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


register("mlp", normal(6))(
    lambda: nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, CLASSES))
)
register("mlp-no-bias", normal(6))(
    lambda: nn.Sequential(nn.Linear(6, 11, bias=False), nn.Tanh(), nn.Linear(11, CLASSES, bias=False))
)
register("silu-gelu-tanh", normal(6))(
    lambda: nn.Sequential(
        nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(approximate="tanh"),
        nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.PReLU(8),
        nn.Linear(8, CLASSES),
    )
)  # fmt: skip
register("mlp-batch-norm", normal(6))(
    lambda: nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.BatchNorm1d(8, affine=False),
        nn.Linear(8, CLASSES),
    )
)
register("regression-mse", regression(6, outputs=3), "mse", ())(
    lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
)
register("multi-label-bce", multi_label, "bce_with_logits", ())(
    lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES))
)
register("log-softmax-nll", normal(6), "nll")(
    lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES), nn.LogSoftmax(-1))
)
register("cnn-bn", normal(3, 8, 7))(
    lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(7, CLASSES),
    )
)  # fmt: skip
# Norms of the input itself: nothing to fold them into, and where affine is off nothing but statistics that move.
register("batch-norm-first", normal(6))(lambda: nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, CLASSES)))
register("batch-norm-2d-first", normal(3, 6, 5))(
    lambda: Head(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.ReLU()), 5)
)
register("group-norm-without-affine", normal(4, 7, 6))(
    lambda: Head(nn.Sequential(nn.Conv2d(4, 2, 2, groups=2), nn.GroupNorm(1, 2, affine=False), nn.Conv2d(2, 5, 2)), 5)
)
register("dropout-eval", normal(6))(
    lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, CLASSES))
)
register("depthwise-grouped-transposed", normal(4, 7, 5))(
    lambda: Head(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU6(),
            nn.Conv2d(6, 9, 3, padding=2, dilation=2, groups=3), nn.ReLU(),
            nn.ConvTranspose2d(9, 6, 3, stride=2, padding=1, output_padding=1, groups=3), nn.Hardswish(),
            nn.ConvTranspose2d(6, 5, 2, bias=False),
        ),
        5,
    )
)  # fmt: skip
register("norms", normal(4, 6, 5))(
    lambda: Head(
        nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(),
            nn.Conv2d(6, 6, 1), nn.InstanceNorm2d(6, affine=True), nn.GELU(),
            nn.Conv2d(6, 6, 1), nn.LayerNorm((6, 4, 3)), nn.ReLU(),
            nn.Conv2d(6, 5, 1), nn.RMSNorm(3), nn.InstanceNorm2d(5),
            nn.Conv2d(5, 5, 1), nn.ReLU(), nn.LayerNorm((4, 3), bias=False),
            nn.Conv2d(5, 5, 1), nn.InstanceNorm2d(5, affine=True, track_running_stats=True), nn.ReLU(),
        ),
        5,
    )
)  # fmt: skip
register("conv1d", normal(3, 17))(
    lambda: Head(
        nn.Sequential(
            nn.Conv1d(3, 5, 4, stride=2),
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Conv1d(5, 6, 3, padding="same", padding_mode="circular"),
            nn.ReLU(),
        ),
        6,
    )
)
register("conv3d", normal(2, 5, 4, 6))(
    lambda: Head(
        nn.Sequential(
            nn.Conv3d(2, 4, (3, 1, 2), padding=(1, 0, 1)),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.AvgPool3d(2),
            nn.Conv3d(4, 5, (2, 2, 1)),
        ),
        5,
    )
)
register("segmentation", segmentation)(
    lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, CLASSES, 1))
)
register("weight-norm", normal(6))(
    lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, CLASSES))
)


class BasicBlock(nn.Module):
    """The block of ResNet-18 and of ResNet-20: in-place ReLU, `out += identity`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


@register("resnet", normal(3, 8, 8))
def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return Head(nn.Sequential(*stem, BasicBlock(4, 4, 1), BasicBlock(4, 6, 2), BasicBlock(6, 6, 1)), 6)


class PreActivation(nn.Module):
    """norm, ReLU in place, convolution; what the branch and the shortcut read is the same tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv1, self.conv2 = (
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left = self.conv1(x)
        right = F.relu_(self.norm(x))  # in place on the norm's output, after another branch has read x
        shared = self.conv2(right)
        both = F.relu(shared, inplace=True) + shared  # `shared` has been rectified when it is added
        return x + left.add_(both)


register("pre-activation-resnet", normal(3, 6, 6))(
    lambda: Head(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, 1, 1), PreActivation(5), PreActivation(5), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        ),
        5,
    )
)


class Noisy(nn.Module):
    """Draws noise on every call, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(F.relu(hidden + torch.randn(hidden.shape, dtype=hidden.dtype)))


class Backwards(nn.Module):
    """Registers its layers last first."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(7, 4), nn.Linear(11, 7), nn.Linear(6, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))


class WritesIntoItsInput(nn.Module):
    """Centres its input in place: the batch of the next point, and of the caller, must not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.7).add_(0.1)
        return self.last(F.relu(self.first(x)))


class Scaled(nn.Module):
    """One parameter, a 0-d one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class IntegerBuffer(nn.Module):
    """Reads an integer buffer (a permutation) and a persistent and a non-persistent float buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.register_buffer("order", torch.randperm(8))
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("shift", torch.full((8,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x) * self.scale + self.shift)
        return self.last(hidden.index_select(1, self.order))


class ComplexFilter(nn.Module):
    """A Fourier filter with complex weights between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.filter = nn.Parameter(torch.ones(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter, n=8))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose; one `Linear` shares its weight by assignment too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.again, self.bias = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.zeros(6))
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.again(torch.tanh(self.encoder(x))), self.encoder.weight.t(), self.bias)


class TwoInputs(nn.Module):
    """A model of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(torch.tanh(self.left(left)) * self.right(right))


class Output(NamedTuple):
    """What `transformers` models give back, as far as scoring is concerned."""

    logits: Tensor


class TwoNamedInputs(TwoInputs):
    """The same, with its logits wrapped."""

    def forward(self, left: Tensor, right: Tensor) -> Output:  # type: ignore[override]
        return Output(super().forward(left, right))


class ReadsItsActivations(nn.Module):
    """Scales by a Python number taken from an activation: `.item()`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden / (0.5 + hidden.abs().mean().item()))


class Branches(nn.Module):
    """Takes one of two ways, depending on an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.positive, self.negative = nn.Linear(6, 9), nn.Linear(9, CLASSES), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.positive(hidden) if hidden.mean() > 0 else self.negative(hidden)


class Recurrent(nn.Module):
    """A two-layer fused RNN, read at its last step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(3, 6, num_layers=2, batch_first=True)  # type: ignore[call-arg, misc, arg-type]
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x)[0][:, -1])


class BagOfWords(nn.Module):
    """Mean of embeddings with a padding index, then a linear layer."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.words: nn.Module = nn.EmbeddingBag(17, 8, mode="mean") if bag else nn.Embedding(17, 8, padding_idx=0)
        self.bag, self.last = bag, nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        return self.last(torch.tanh(words if self.bag else words.mean(1)))


@register("frozen-part", normal(6))
def frozen_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, CLASSES))
    model[:3].requires_grad_(False)
    return model


register("writes-into-its-input", normal(6))(WritesIntoItsInput)
register("one-parameter", regression(3, outputs=3), "mse", ())(Scaled)
register("integer-buffer", normal(6))(IntegerBuffer)
register("complex-parameter", normal(6))(ComplexFilter)
register("tied-autoencoder", regression(6, outputs=6), "mse", ())(TiedAutoencoder)
register("two-inputs", two_inputs)(TwoInputs)
register("two-named-inputs", two_named_inputs)(TwoNamedInputs)
register("bag-of-words", lambda: token_batches(7))(lambda: BagOfWords(bag=False))
register("embedding-bag", lambda: token_batches(7))(lambda: BagOfWords(bag=True))
register("item", normal(6))(ReadsItsActivations)
register("control-flow", normal(6))(Branches)
register("lstm", normal(5, 3))(lambda: Recurrent(nn.LSTM))
register("gru", normal(5, 3))(lambda: Recurrent(nn.GRU))


# --------------------------------------------------------------------------------------------------------- transformers


class Attention(nn.Module):
    """`nn.MultiheadAttention` with its weights asked for, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        mixed, weights = self.attention(x, x, x, need_weights=True)
        return self.last((x + mixed).mean(1)) + weights.sum((1, 2))[:, None]


class Encoder(nn.Module):
    """`nn.TransformerEncoder` on a sequence with a causal mask and a learnt position."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((5, 5), float("-inf"), dtype=x.dtype).triu(1)
        return self.last(self.encoder(x + self.position, mask=mask)[:, -1])


class PlainViT(nn.Module):
    """Patches by a strided convolution, a class token, pre-norm blocks on scaled_dot_product_attention."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.blocks = nn.ModuleList(PlainBlock(width) for _ in range(blocks))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        for block in self.blocks:
            h = block(h)
        return self.last(self.norm(h)[:, 0])


class PlainBlock(nn.Module):
    """One pre-norm block with a fused projection of queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norm2(x))


register("multihead-attention", normal(5, 8))(Attention)
register("transformer-encoder", normal(5, 8))(Encoder)
register("vit-plain", normal(3, 8, 8))(PlainViT)


@register("gpt2", language, "causal_lm", ())
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=17, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


@register("llama", language, "causal_lm", ())
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 17}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=0, eos_token_id=0, pad_token_id=0))


@register("bert", sentences)
def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=17, max_position_embeddings=16, num_labels=CLASSES)
    return BertForSequenceClassification(config)


@register("vit", pictures)
def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=CLASSES))
