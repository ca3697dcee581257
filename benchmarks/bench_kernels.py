"""The compiled kernels beside PyTorch's own operations for the same work, shape by shape.

``pytest benchmarks/bench_kernels.py`` prints one group per shape: "native" does blend, product, bias and ReLU in one
call, "torch" the same in several, "vendor" is torch's product with bias alone, on weights that are blended already.
With ``--benchmark-json=FILE``, ``python -m benchmarks.adopt FILE`` writes the figures that the dispatch table reads.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import requested
from mli_fast.ops.conv import Geometry, conv
from mli_fast.ops.dispatch import shape_class
from mli_fast.ops.epilogue import Epilogue

pytestmark = pytest.mark.skipif(native.module() is None, reason=f"no compiled kernels: {native.why_missing()}")

ALPHA = 0.7
COEFFICIENTS = torch.tensor([[1 - ALPHA, ALPHA]], dtype=torch.float64)
LINEAR = [
    (1024, 512, 512),
    (1797, 256, 256),
    (512, 512, 10),
    (256, 1024, 1024),
    (300, 300, 700),
    (64, 4096, 4096),
    (16, 512, 512),
    (16384, 64, 64),
    (2048, 128, 512),
    (2048, 784, 512),
    (1797, 256, 10),
]
CONV = [(64, 64, 14), (64, 16, 32), (64, 32, 16), (64, 64, 8), (16, 128, 14)]
Work = Callable[[], object]


def measure(benchmark: BenchmarkFixture, group: str, work: Work, expected: Work, **kept_for: str) -> None:
    """Times ``work`` after its value was found equal to ``expected``'s, so that no wrong kernel gets a time.

    ``kept_for`` says what the figure is: op and shape_class, as in the dispatch table.
    """
    torch.testing.assert_close(work(), expected(), rtol=1e-3, atol=1e-3)
    benchmark.group = group
    benchmark.extra_info.update(isa=native.isa(), threads=torch.get_num_threads(), torch=torch.__version__, **kept_for)
    benchmark(work)


@pytest.mark.parametrize("way", ["native", "torch", "vendor"])
@pytest.mark.parametrize("shape", LINEAR, ids=lambda s: "M{}-K{}-N{}".format(*s))
def test_linear(benchmark: BenchmarkFixture, shape: tuple[int, int, int], way: str) -> None:
    rows, depth, columns = shape
    x, bias = torch.randn(rows, depth), torch.randn(columns)
    anchors = [torch.randn(columns, depth) / depth**0.5 for _ in range(2)]
    blended, product, out = torch.lerp(*anchors, ALPHA), torch.empty(rows, columns), torch.empty(1, rows, columns)

    def fused() -> Tensor:
        return native.linear(x[None], anchors, COEFFICIENTS, shift=bias, activation="relu", out=out)[0]

    def separate() -> Tensor:
        weight = torch.lerp(*anchors, ALPHA)
        return torch.addmm(bias, x, weight.T, out=product).relu_()

    def vendor() -> Tensor:
        return torch.addmm(bias, x, blended.T, out=product)

    work = {"native": fused, "torch": separate, "vendor": vendor}[way]
    cls = shape_class("linear", rows, columns, depth)
    group, judge = f"linear M{rows} K{depth} N{columns}", vendor if way == "vendor" else separate
    measure(benchmark, group, work, judge, op="linear", shape_class=cls)


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("sizes", [(2048, 512, 512, 10), (1797, 256, 256, 10), (4096, 128, 512, 128)], ids=str)
def test_chain(benchmark: BenchmarkFixture, sizes: tuple[int, int, int, int], way: str) -> None:
    rows, depth, hidden, columns = sizes
    x, biases = torch.randn(rows, depth), [torch.randn(hidden), torch.randn(columns)]
    weights = [[torch.randn(n, k) / k**0.5 for _ in range(2)] for n, k in ((hidden, depth), (columns, hidden))]
    layers = [
        native.Blended(w, COEFFICIENTS, None, b[None], a)
        for w, b, a in zip(weights, biases, ("relu", "none"), strict=True)
    ]

    def fused() -> Tensor:
        return native.chain(x[None], layers)[0]

    def separate() -> Tensor:
        first, second = (torch.lerp(*w, ALPHA) for w in weights)
        return F.linear(F.linear(x, first, biases[0]).relu_(), second, biases[1])

    work = {"native": fused, "torch": separate}[way]
    measure(benchmark, f"chain {sizes}", work, separate, op="chain", shape_class="any")


@pytest.mark.parametrize("way", ["native", "torch", "vendor"])
@pytest.mark.parametrize("stride", [1, 2], ids=["stride1", "stride2"])
@pytest.mark.parametrize("shape", CONV, ids=lambda s: "B{}-C{}-H{}".format(*s))
def test_conv(benchmark: BenchmarkFixture, shape: tuple[int, int, int], stride: int, way: str) -> None:
    batch, channels, size = shape
    x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    anchors = [torch.randn(channels, channels, 3, 3) / (3 * channels**0.5) for _ in range(2)]
    anchors = [a.contiguous(memory_format=torch.channels_last) for a in anchors]
    bias, blended = torch.randn(channels), torch.lerp(*anchors, ALPHA)

    epilogue = Epilogue(None, bias[None], None, "relu")

    def fused() -> Tensor:
        with requested("native"):
            return conv(x[None], anchors, COEFFICIENTS, Geometry((stride,) * 2, (1, 1), (1, 1), 1), epilogue)[0]

    def separate() -> Tensor:
        return F.conv2d(x, torch.lerp(*anchors, ALPHA), bias, stride, 1).relu_()

    def vendor() -> Tensor:
        return F.conv2d(x, blended, bias, stride, 1)

    work = {"native": fused, "torch": separate, "vendor": vendor}[way]
    cls = shape_class("conv", 2, channels, channels)
    group, judge = f"conv B{batch} C{channels} H{size} stride {stride}", vendor if way == "vendor" else separate
    measure(benchmark, group, work, judge, op="conv", shape_class=cls)


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu", "tanh"])
def test_combine(benchmark: BenchmarkFixture, activation: str, way: str) -> None:
    points, rows, columns = 8, 1024, 512
    products, shift = [torch.randn(rows, columns) for _ in range(2)], torch.randn(points, columns)
    alphas, out = torch.linspace(0.1, 0.9, points), torch.empty(points, rows, columns)
    coefficients = torch.stack([1 - alphas, alphas], 1).double()
    function = {"none": lambda t: t, "relu": torch.relu_, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh_}[
        activation
    ]

    def fused() -> Tensor:
        return native.combine(products, coefficients, shift=shift, activation=activation, out=out)

    def separate() -> Tensor:
        return function(torch.lerp(products[0], products[1], alphas[:, None, None]).add_(shift[:, None]))

    work = {"native": fused, "torch": separate}[way]
    measure(benchmark, f"combine {activation}", work, separate, op="combine", shape_class="any")


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize(
    "shape", [(1, 8192, 10), (2, 2048, 100), (1, 64, 50_000)], ids=lambda s: "P{}-M{}-C{}".format(*s)
)
def test_cross_entropy(benchmark: BenchmarkFixture, shape: tuple[int, int, int], way: str) -> None:
    points, rows, classes = shape
    logits, targets = torch.randn(shape) * 3, torch.randint(classes, (rows,))
    flat, repeated = logits.view(-1, classes), targets.repeat(points)

    def fused() -> tuple[Tensor, Tensor]:
        losses, predictions = native.cross_entropy(logits, targets)
        return losses.view(-1).float(), predictions.view(-1)

    def separate() -> tuple[Tensor, Tensor]:
        return F.cross_entropy(flat, repeated, reduction="none"), flat.argmax(-1)

    work = {"native": fused, "torch": separate}[way]
    measure(benchmark, f"cross entropy {shape}", work, separate, op="cross_entropy", shape_class="any")


@pytest.mark.parametrize("way", ["native", "torch"])
@pytest.mark.parametrize(
    "sizes", [[401_408, 512, 262_144, 512, 5120, 10], [64] * 200, [16_777_216]], ids=["mlp", "small", "one"]
)
def test_blend(benchmark: BenchmarkFixture, sizes: list[int], way: str) -> None:
    first, second = [torch.randn(n) for n in sizes], [torch.randn(n) for n in sizes]
    outs, others = [torch.empty(n) for n in sizes], [torch.empty(n) for n in sizes]
    plan = native.BlendPlan(outs, [list(pair) for pair in zip(first, second, strict=True)])

    def fused() -> list[Tensor]:
        plan(COEFFICIENTS[0])
        return outs

    def separate() -> list[Tensor]:
        torch._foreach_copy_(others, first)
        torch._foreach_lerp_(others, second, ALPHA)
        return others

    work = {"native": fused, "torch": separate}[way]
    measure(benchmark, f"blend {len(sizes)} tensors", work, separate, op="blend", shape_class="any")
