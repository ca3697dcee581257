"""Networks that nobody wrote: random stacks of layers in small, prime and degenerate shapes, against the plain loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mli_fast
from mli_fast.engine import forced
from tests.models import endpoints_of
from tests.reference import assert_as_exact_as_torch, plain_loop

CLASSES = 3
WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 11])
ACTIVATIONS = st.sampled_from(
    [
        nn.ReLU, lambda: nn.ReLU(inplace=True), nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Hardtanh,
        nn.PReLU, nn.Mish, lambda: nn.LeakyReLU(0.2, inplace=True), nn.Identity, lambda: nn.Dropout(0.5),
    ]
)  # fmt: skip
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Residual(nn.Module):
    """`x + branch(x)`, or the in-place way of writing it."""

    def __init__(self, branch: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.branch, self.in_place = branch, in_place

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_place:
            return x + self.branch(x)
        out = self.branch(x.clone())
        out += x
        return out


@dataclass(frozen=True)
class Graph:
    """A network drawn by hypothesis and the shape of one example; `repr` is what a failure shows."""

    network: nn.Module
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    chunk: int | str

    def build(self, seed: int) -> nn.Module:
        """The one network, whatever the seed: its values are drawn anew by `endpoints_of`."""
        return self.network

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and labels in batches of `sizes`."""
        g = torch.Generator().manual_seed(sum(self.sizes))
        return [
            (torch.randn(n, *self.shape, generator=g), torch.randint(0, CLASSES, (n,), generator=g)) for n in self.sizes
        ]


def groups_for(draw: st.DrawFn, inputs: int, outputs: int) -> int:
    """A number of groups that divides both."""
    common = math.gcd(inputs, outputs)
    return draw(st.sampled_from([g for g in range(1, common + 1) if common % g == 0]))


@st.composite
def convolution(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """A convolution whose output is not empty."""
    rank, inputs, outputs = len(shape) - 1, shape[0], draw(WIDTHS)
    kernel, dilation, padding, stride = [], [], [], []
    for size in shape[1:]:
        p = draw(st.integers(0, 2))
        k = draw(st.integers(1, min(4, size + 2 * p)))
        d = draw(st.integers(1, 2)) if 2 * (k - 1) + 1 <= size + 2 * p else 1
        kernel.append(k), padding.append(p), dilation.append(d), stride.append(draw(st.integers(1, 3)))
    groups, bias = groups_for(draw, inputs, outputs), draw(st.booleans())
    arguments = (inputs, outputs, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, bias)
    return CONV[rank](*arguments)


@st.composite
def transposed(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """A transposed convolution that does not grow the image by much."""
    rank, inputs, outputs = len(shape) - 1, shape[0], draw(WIDTHS)
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    extra = draw(st.integers(0, stride - 1))
    groups, bias = groups_for(draw, inputs, outputs), draw(st.booleans())
    return TRANSPOSED[rank](inputs, outputs, kernel, stride, output_padding=extra, groups=groups, bias=bias)


@st.composite
def norm(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """A norm that is well conditioned on `shape`: none takes the variance of one or two values."""
    rank, channels, positions = len(shape) - 1, shape[0], math.prod(shape[1:])
    affine = draw(st.booleans())
    kinds = ["batch"]
    kinds += ["layer", "rms"] if shape[-1] > 2 else []
    kinds += ["group"] if rank and channels * positions > 2 else []
    kinds += ["instance"] if rank and positions > 2 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "batch":
        return BATCH_NORM[rank](channels, affine=affine)
    if kind == "layer":
        return nn.LayerNorm(shape[-1], elementwise_affine=affine, bias=draw(st.booleans()))
    if kind == "rms":
        return nn.RMSNorm(shape[-1], elementwise_affine=affine)
    if kind == "instance":
        return INSTANCE_NORM[rank](channels, affine=affine, track_running_stats=draw(st.booleans()))
    groups = [g for g in range(1, channels + 1) if channels % g == 0 and channels // g * positions > 2]
    return nn.GroupNorm(draw(st.sampled_from(groups)), channels, affine=affine)


@st.composite
def layer(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> nn.Module:
    """Any one layer that takes `shape`."""
    rank = len(shape) - 1
    kinds = ["activation", "norm", "linear", "residual"] if depth else ["activation", "norm", "linear"]
    kinds += ["convolution", "convolution", "transposed", "pool", "flatten"] if rank else []
    kind = draw(st.sampled_from(kinds))
    if kind == "activation":
        return draw(ACTIVATIONS)()
    if kind == "norm":
        return draw(norm(shape))
    if kind == "linear":
        return nn.Linear(shape[-1], draw(WIDTHS), bias=draw(st.booleans()))
    if kind == "convolution":
        return draw(convolution(shape))
    if kind == "transposed":
        return draw(transposed(shape))
    if kind == "pool":
        window = draw(st.integers(1, min(shape[1:])))
        return draw(st.sampled_from([MAX_POOL, AVERAGE_POOL]))[rank](window)
    if kind == "flatten":
        return nn.Flatten()
    width = shape[0] if rank else shape[-1]
    first = CONV[rank](width, width, 1) if rank else nn.Linear(width, width)
    return Residual(nn.Sequential(first, draw(ACTIVATIONS)(), draw(layer_keeping(shape))), draw(st.booleans()))


@st.composite
def layer_keeping(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """A layer whose output has its input's shape."""
    kind = draw(st.sampled_from(["norm", "linear", "activation"]))
    if kind == "norm":
        return draw(norm(shape))
    return nn.Linear(shape[-1], shape[-1], bias=draw(st.booleans())) if kind == "linear" else draw(ACTIVATIONS)()


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A stack of one to six layers and a linear head, with two batches of data."""
    rank = draw(st.sampled_from([0, 0, 1, 2, 2, 2, 3]))
    start = (draw(WIDTHS), *(draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(rank)))
    shape, layers = start, []
    for depth in range(draw(st.integers(1, 6))):
        layers.append(draw(layer(shape, depth)).eval())
        with torch.no_grad():
            shape = tuple(layers[-1](torch.zeros(2, *shape)).shape[1:])
    layers += [nn.Flatten(), nn.Linear(math.prod(shape), CLASSES, bias=draw(st.booleans()))]
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=2)))
    network = nn.Sequential(*layers).eval().requires_grad_(True)
    return Graph(network, start, sizes, draw(st.sampled_from([1, 2, 3, "auto"])))


ALPHAS = (0.0, 0.3, 0.5, 0.9, 1.0, 1.1)


@given(graphs())
def test_a_random_network_equals_the_plain_loop_under_both_engines(graph: Graph) -> None:
    theta_0, theta_T = endpoints_of(graph.build)
    arguments = (graph.network, theta_0, theta_T, graph.batches(), ALPHAS)
    in_64, in_32 = plain_loop(*arguments), plain_loop(*arguments, dtype=torch.float32)
    # few examples: the largest error on one of them, not that of their mean, says what fp32 costs here
    peer = float(np.abs(in_32.losses - in_64.losses).max())
    for engine in ("loop", "vmap"):
        with forced(engine):
            double = mli_fast.sweep(*arguments, precision="fp64", chunk=graph.chunk, progress=False)
            single = mli_fast.sweep(*arguments, precision="fp32", chunk=graph.chunk, progress=False)
        np.testing.assert_allclose(double.loss, in_64.loss, rtol=1e-9, atol=1e-12, err_msg=engine)
        np.testing.assert_allclose(double.accuracy, in_64.accuracy, rtol=1e-14, err_msg=engine)
        assert_as_exact_as_torch(single.loss, in_64.loss, in_32.loss, peer=peer)
