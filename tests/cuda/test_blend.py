"""The compiled blend on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mli_fast.native import cuda
from tests.triton.helpers import needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]
SHAPES = [(), (1,), (10,), (0, 3), (16, 64), (7, 13), (64, 3, 3, 3), (100, 257)]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to("cuda", dtype)


def summed(anchors: list[Tensor], row: Tensor, wide: torch.dtype) -> Tensor:
    """The kernel's own order of operations: in float32 a fused multiply-add is exact in float64, then rounded."""
    total = torch.zeros_like(anchors[0], dtype=wide)
    for anchor, c in zip(anchors, row.to(wide), strict=True):
        if c != 0:
            total = (total.double() + c.double() * anchor.double()).to(wide)
    return total


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_many_tensors_in_one_launch(source: torch.dtype, target: torch.dtype, count: int) -> None:
    points, wide = 3, torch.float64 if source == torch.float64 else torch.float32
    anchors = [[normal(*s, dtype=source, seed=10 * t + r) for r in range(count)] for t, s in enumerate(SHAPES)]
    scales = [normal(points, s[0], seed=t) if len(s) > 1 else None for t, s in enumerate(SHAPES)]
    outs = [torch.full((points, *s), torch.nan, dtype=target, device="cuda") for s in SHAPES]
    coefficients = normal(points, count, dtype=torch.float64, seed=99)
    coefficients[0] = 0.0
    coefficients[0, -1] = 1.0
    cuda.BlendPlan(outs, anchors, scales)(coefficients)
    for out, group, scale in zip(outs, anchors, scales, strict=True):
        for p in range(points):
            expected = summed(group, coefficients[p], wide)
            if scale is not None:
                expected = expected * scale[p].to(wide).view(-1, *[1] * (expected.dim() - 1))
            if wide == torch.float64:
                torch.testing.assert_close(
                    out[p], expected.to(target), rtol=1e-15 if target == wide else 2e-7, atol=1e-15
                )
            else:
                assert torch.equal(out[p], expected.to(target))


def test_coefficients_of_each_tensor() -> None:
    shapes = [(5, 8), (3,), (40, 40)]
    anchors = [[normal(*s, seed=2 * t + r) for r in range(2)] for t, s in enumerate(shapes)]
    outs = [torch.full((4, *s), torch.nan, device="cuda") for s in shapes]
    coefficients = normal(3, 4, 2, dtype=torch.float64, seed=7)
    cuda.BlendPlan(outs, anchors)(coefficients)
    for t, group in enumerate(anchors):
        assert torch.equal(outs[t], cuda.blend(group, coefficients[t].contiguous(), torch.float32))


def test_a_point_stands_alone_and_fewer_points_write_the_first() -> None:
    anchors = [normal(33, 40, dtype=torch.bfloat16, seed=r) for r in range(6)]
    c = normal(7, 6, dtype=torch.float64, seed=3)
    whole = cuda.blend(anchors, c, torch.bfloat16)
    order = [5, 0, 3]
    assert torch.equal(cuda.blend(anchors, c[order].contiguous(), torch.bfloat16), whole[order])
    assert torch.equal(cuda.blend(anchors, c[5:6].contiguous(), torch.bfloat16), whole[5:6])
    out = torch.full_like(whole, torch.nan)
    cuda.BlendPlan([out], [anchors])(c[:2].contiguous())
    assert torch.equal(out[:2], whole[:2])
    assert out[2:].isnan().all()


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=str)
def test_endpoints(source: torch.dtype, target: torch.dtype) -> None:
    good, bad = normal(9, 24, dtype=source, seed=1), normal(9, 24, dtype=source, seed=2)
    bad[0, 0], bad[1, 1] = torch.nan, torch.inf
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64, device="cuda")
    out = cuda.blend([good, bad], c, target)
    assert torch.equal(out[0], good.to(target))
    torch.testing.assert_close(out[1], bad.to(target), rtol=0, atol=0, equal_nan=True)
    assert out[2, 0, 0].isnan()
    assert out[2, 1, 1].isinf()


def test_misaligned_memory() -> None:
    block = normal(2 * 1000 + 1, seed=4)
    anchors = [block[1:1001], block[1001:2001]]
    c = normal(2, 2, dtype=torch.float64, seed=5)
    assert torch.equal(
        cuda.blend(anchors, c, torch.float32), cuda.blend([a.clone() for a in anchors], c, torch.float32)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_larger_than_a_block_of_threads(streaming: bool) -> None:
    anchors = [normal(300, 1000, seed=r) for r in range(2)]
    c = normal(5, 2, dtype=torch.float64, seed=5)
    out = torch.full((5, 300, 1000), torch.nan, device="cuda")
    cuda.BlendPlan([out], [anchors])(c, streaming=streaming)
    assert torch.equal(out, torch.stack([summed(anchors, row, torch.float32) for row in c]))


def test_graph_capture() -> None:
    anchors = [normal(64, 64, seed=r) for r in range(2)]
    outs = [torch.empty(3, 64, 64, device="cuda"), torch.empty(3, 64, 64, device="cuda")]
    plan, c = cuda.BlendPlan(outs, [anchors, anchors]), normal(3, 2, dtype=torch.float64, seed=5)
    plan(c)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(c)
        alone = cuda.blend(anchors, c, torch.float32)
    c.copy_(normal(3, 2, dtype=torch.float64, seed=6))
    graph.replay()
    expected = torch.stack([summed(anchors, row, torch.float32) for row in c])
    assert all(torch.equal(t, expected) for t in (*outs, alone))


def test_errors() -> None:
    a, c = normal(4, 6), normal(2, 1, dtype=torch.float64)
    out = torch.empty(2, 4, 6, device="cuda")
    for outs, anchors, scales, match in [
        ([out], [], None, "1 outs"),
        ([out], [[a.bfloat16()]], None, "no kernel from"),
        ([out], [[a.mT]], None, "outs"),
        ([out[:, :, ::2]], [[a[:, ::2]]], None, "contiguous"),
        ([out], [[a]], [normal(2, 5)], "scales"),
        ([out, out], [[a], [a, a]], None, "2 anchors for tensor 1"),
        ([out.cpu()], [[a.cpu()]], None, "GPU"),
    ]:
        with pytest.raises(ValueError, match=match):
            cuda.BlendPlan(outs, anchors, scales)
    plan = cuda.BlendPlan([out], [[a]])
    for wrong in (c.float(), c.repeat(2, 1), c.repeat(1, 2), c.cpu(), c[0]):
        with pytest.raises(ValueError, match="coefficients"):
            plan(wrong)
    plan(c[:0])
    cuda.BlendPlan([], [])(c)
