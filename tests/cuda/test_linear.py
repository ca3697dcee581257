"""The compiled blended linear layer on a Hopper GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.native import cuda
from mli_fast.ops.epilogue import ACTIVATIONS
from tests.triton.helpers import GPU, needs_gpu

HOPPER = GPU and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, needs_gpu, pytest.mark.skipif(GPU and not HOPPER, reason="needs compute capability 9.0")]
KINDS = {"bf16": (torch.bfloat16, False), "fp16": (torch.float16, False), "tf32": (torch.float32, True)}
KINDS["fp32"] = torch.float32, False
# P, M, N, K: prime, ragged, one, several tiles, every tile width
SHAPES = [
    (1, 1, 1, 8),
    (3, 5, 10, 24),
    (17, 16, 72, 136),
    (5, 37, 131, 72),
    (2, 64, 128, 64),
    (3, 100, 260, 200),
    (2, 257, 136, 328),
    (2, 250, 129, 72),
    (1, 500, 129, 1024),
]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to("cuda", dtype)


def operands(kind: str, anchors: int, p: int, m: int, n: int, k: int) -> tuple[Tensor, list[Tensor], Tensor]:
    dtype = KINDS[kind][0]
    c = normal(p, anchors, dtype=torch.float64, seed=3)
    return normal(p, m, k, dtype=dtype, seed=1), [normal(n, k, dtype=dtype, seed=10 + r) for r in range(anchors)], c


def linear(kind: str, x: Tensor, weights: list[Tensor], c: Tensor, **options: Any) -> Tensor:
    assert cuda.takes_linear(x, weights, tf32=KINDS[kind][1])
    return cuda.linear(x, weights, c, tf32=KINDS[kind][1], **options)


def products(kind: str, x: Tensor, blended: Tensor) -> Tensor:
    """PyTorch's own product [P, M, N] in this precision."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        return torch.bmm(x, blended.to(x.dtype).mT)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def assert_as_exact_as_torch(ours: Tensor, exact: Tensor, theirs: Tensor) -> None:
    assert not ours.isnan().any()
    allowed = 2 * (theirs.double() - exact).abs().max() + 4 * torch.finfo(theirs.dtype).eps * exact.abs().max()
    assert (ours.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchors", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "P{}-M{}-N{}-K{}".format(*s))
def test_product(kind: str, anchors: int, shape: tuple[int, int, int, int]) -> None:
    x, weights, c = operands(kind, anchors, *shape)
    blended = torch.tensordot(c, torch.stack(weights).double(), 1)
    out = torch.full((shape[0], shape[1], shape[2]), torch.nan, dtype=x.dtype, device="cuda")
    assert linear(kind, x, weights, c, out=out) is out
    assert_as_exact_as_torch(out, x.double() @ blended.mT, products(kind, x, blended))
    for cluster in (1, 2):
        assert torch.equal(linear(kind, x, weights, c, cluster=cluster), out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("columns", [40, 131])
def test_epilogue(kind: str, activation: str, columns: int) -> None:
    x, weights, c = operands(kind, 2, 5, 37, columns, 72)
    scale, shift = normal(5, columns, dtype=x.dtype, seed=4), normal(5, columns, seed=5)
    residual = normal(5, 37, columns, dtype=x.dtype, seed=6)
    blended = torch.tensordot(c, torch.stack(weights).double(), 1)

    def finished(product: Tensor, dtype: torch.dtype) -> Tensor:
        terms = (t.to(dtype) for t in (scale[:, None], shift[:, None], residual))
        s, t, r = terms
        return ACTIVATIONS[activation](product.to(dtype) * s + t + r)

    exact = finished(x.double() @ blended.mT, torch.float64)
    theirs = finished(products(kind, x, blended), torch.float32).to(x.dtype)
    out = linear(kind, x, weights, c, scale=scale, shift=shift, residual=residual, activation=activation)
    assert out.dtype == x.dtype
    assert_as_exact_as_torch(out, exact, theirs)
    wide = torch.full(out.shape, torch.nan, device="cuda")
    linear(
        kind,
        x,
        weights,
        c,
        scale=scale.float(),
        shift=shift,
        residual=residual.float(),
        activation=activation,
        out=wide,
    )
    assert torch.equal(wide.to(x.dtype), out)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("rows", [8, 40, 104, 232])
def test_one_hot_rows_give_the_blended_weight(kind: str, rows: int) -> None:
    _, weights, c = operands(kind, 2, 3, 1, 136, rows)
    blended = cuda.blend(weights, c, weights[0].dtype)
    assert torch.equal(linear(kind, torch.eye(rows, dtype=weights[0].dtype, device="cuda"), weights, c), blended.mT)


@pytest.mark.parametrize("kind", ["tf32", "fp32"])
def test_one_hot_rows_in_float32(kind: str) -> None:
    _, weights, c = operands(kind, 2, 3, 1, 136, 40)
    blended = cuda.blend(weights, c, torch.float32).mT
    got = linear(kind, torch.eye(40, device="cuda"), weights, c)
    bits = blended.contiguous().view(torch.int32)
    nearest = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    if kind == "tf32":
        assert torch.equal(got, nearest)
    else:
        assert ((got - blended).abs() <= 2.0**-21 * blended.abs()).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [9, 50, 120, 250])
def test_endpoints(kind: str, rows: int) -> None:
    x, (good, bad), _ = operands(kind, 2, 3, rows, 40, 72)
    bad[3, 5], bad[7, 0] = torch.nan, torch.inf
    c = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64, device="cuda")
    out, one = linear(kind, x, [good, bad], c), torch.ones(3, 1, dtype=torch.float64, device="cuda")
    assert torch.equal(out[0], linear(kind, x, [good], one)[0])
    assert torch.equal(out[2].nan_to_num(), linear(kind, x, [bad], one)[2].nan_to_num())
    assert out[1:, :, 3].isnan().all()
    assert not out[1:, :, 7].isfinite().any()
    assert out[:, :, [n for n in range(40) if n not in (3, 7)]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [9, 50, 120, 250])
def test_a_point_stands_alone(kind: str, rows: int) -> None:
    x, weights, c = operands(kind, 2, 19, rows, 40, 200)
    whole = linear(kind, x, weights, c)
    order = [18, 4, 11]
    assert torch.equal(linear(kind, x[order].contiguous(), weights, c[order].contiguous()), whole[order])
    assert torch.equal(linear(kind, x[4:5], weights, c[4:5]), whole[4:5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [9, 250])
def test_shared_input_and_what_split_made_of_it(kind: str, rows: int) -> None:
    x, weights, c = operands(kind, 2, 5, rows, 40, 200)
    expected = linear(kind, x[:1].expand_as(x).contiguous(), weights, c)
    assert torch.equal(linear(kind, x[0].contiguous(), weights, c), expected)
    if kind == "fp32":
        parts = cuda.split(x[0].contiguous())
        assert torch.equal(parts[0] + parts[1], parts.double().sum(0).float())
        assert ((parts.double().sum(0) - x[0].double()).abs() <= 2.0**-22 * x[0].abs()).all()
        assert torch.equal(linear(kind, x[0].contiguous(), weights, c, parts=parts), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_empty(kind: str) -> None:
    for shape in ((0, 3, 8, 16), (2, 0, 8, 16), (2, 3, 0, 16)):
        x, weights, c = operands(kind, 2, *shape)
        assert cuda.linear(x, weights, c, tf32=KINDS[kind][1]).shape == shape[:3]


def test_fp32_is_no_less_exact_than_the_vendor() -> None:
    x, weights, c = operands("fp32", 2, 2, 300, 256, 2048)
    blended = torch.tensordot(c, torch.stack(weights).double(), 1)
    exact = x.double() @ blended.mT
    ours = (linear("fp32", x, weights, c).double() - exact).norm()
    assert ours <= (products("fp32", x, blended).double() - exact).norm()


def test_graph_capture() -> None:
    x, weights, c = operands("fp32", 2, 3, 40, 64, 64)
    linear("fp32", x, weights, c)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear("fp32", x, weights, c)
    x.copy_(normal(3, 40, 64, seed=8))
    graph.replay()
    assert torch.equal(out, linear("fp32", x, weights, c))


def test_what_it_does_not_take() -> None:
    x, weights, c = operands("bf16", 2, 2, 3, 16, 24)
    assert cuda.takes_linear(x, weights)
    assert not cuda.takes_linear(x, weights * 3)
    assert not cuda.takes_linear(x.double(), [w.double() for w in weights])
    assert not cuda.takes_linear(x, [w.float() for w in weights])
    assert not cuda.takes_linear(x[..., :20], [w[:, :20].contiguous() for w in weights])
    assert not cuda.takes_linear(x[..., :0], [w[:, :0] for w in weights])
    assert not cuda.takes_linear(x.cpu(), weights)
    for bad_x, bad_weights, bad_c, options, match in [
        (x.mT, weights, c, {}, "x"),
        (x, [w.float() for w in weights], c, {}, "weights"),
        (x, weights, c.float(), {}, "coefficients"),
        (x, weights, c.cpu(), {}, "coefficients"),
        (x, weights, c, {"shift": normal(2, 15)}, "shift"),
        (x, weights, c, {"residual": normal(3, 16)}, "residual"),
        (x, weights, c, {"out": torch.empty(2, 3, 17, device="cuda")}, "out"),
        (x, weights, c, {"activation": "sine"}, "activation"),
        (x, weights * 3, c, {}, "1 to 4 weights"),
        (x[..., :20].contiguous(), [w[:, :20].contiguous() for w in weights], c, {}, "16 bytes"),
    ]:
        with pytest.raises(ValueError, match=match):
            cuda.linear(bad_x, bad_weights, bad_c, **options)


def test_agrees_with_pytorch_on_a_layer() -> None:
    x, weights, _ = operands("bf16", 2, 1, 64, 96, 128)
    c = torch.tensor([[0.0, 1.0]], dtype=torch.float64, device="cuda")
    torch.testing.assert_close(linear("bf16", x, weights, c)[0], F.linear(x[0], weights[1]))
