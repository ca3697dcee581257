"""The Triton blend against float64, alone and for many tensors in one launch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mli_fast.ops.blend.triton import BlendPlan, blend
from tests.ops.cases import assert_as_exact_as_torch, coefficients, generator, normal
from tests.triton.helpers import DEVICE, DTYPES, needs_gpu

pytestmark = pytest.mark.gpu

SHAPES = ((1,), (5,), (37, 59), (4, 3, 3, 3), (64, 96))
ids = {"ids": lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else str(v).removeprefix("torch.")}


def tensors(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = generator(*shape, count)
    return [normal(g, *shape).to(DEVICE, dtype) for _ in range(count)]


def points(count: int, anchors: int) -> Tensor:
    return coefficients(generator(count, anchors), max(count, 1), anchors)[:count].to(DEVICE)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def exact(anchors: list[Tensor], c: Tensor, scale: Tensor | None = None) -> Tensor:
    total = torch.tensordot(c, torch.stack(anchors).double(), 1)
    return total if scale is None else total * scale.double().reshape(*scale.shape, *[1] * (total.ndim - 2))


def theirs(anchors: list[Tensor], c: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.float64 if torch.float64 in (dtype, anchors[0].dtype) else torch.float32
    return torch.tensordot(c.to(wide), torch.stack(anchors).to(wide), 1).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], **ids)
@pytest.mark.parametrize("shape", SHAPES, **ids)
def test_blends_are_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for count, anchors in ((3, 2), (1, 1), (2, 5)):
        a, c = tensors(shape, anchors, dtype), points(count, anchors)
        out = poisoned(count, *shape, dtype=dtype)
        assert blend(a, c, dtype, out=out) is out
        assert_as_exact_as_torch(out, exact(a, c), theirs(a, c, dtype))


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_a_factor_along_the_first_dimension_comes_before_rounding(dtype: torch.dtype) -> None:
    a, c = tensors((37, 3, 5), 2), points(3, 2)
    scale = normal(generator(1), 3, 37).to(DEVICE)
    product = theirs(a, c, torch.float32) * scale[..., None, None]
    assert_as_exact_as_torch(blend(a, c, dtype, scale), exact(a, c, scale), product.to(dtype))


def test_several_blocks_and_a_ragged_end() -> None:
    a, c = tensors((3, 1999), 2), points(2, 2)
    assert_as_exact_as_torch(blend(a, c, torch.float32), exact(a, c), theirs(a, c, torch.float32))


@pytest.mark.parametrize("hole", [torch.nan, torch.inf])
def test_an_endpoint_is_that_anchor_alone(hole: float) -> None:
    a, b = tensors((37, 59), 2)
    b = torch.full_like(b, hole)
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, device=DEVICE)
    out = blend([a, b], ends, torch.float32)
    assert torch.equal(out[0], a)
    torch.testing.assert_close(out[1], b, rtol=0, atol=0, equal_nan=True)


def test_nan_stays() -> None:
    a, b = tensors((8, 8), 2)
    b[3, 4] = torch.nan
    out = blend([a, b], points(3, 2)[1:], torch.float32)
    assert torch.equal(out.isnan(), b.isnan().expand(2, -1, -1))


def test_a_point_stands_alone() -> None:
    a, c = tensors((37, 59), 3), points(5, 3)
    together = blend(a, c, torch.float32)
    assert torch.equal(blend(a, c.flip(0), torch.float32), together.flip(0))
    for p in range(5):
        assert torch.equal(blend(a, c[p : p + 1], torch.float32)[0], together[p])


@pytest.mark.parametrize(("count", "shape"), [(0, (3, 4)), (2, (0, 4)), (2, (3, 0))], **ids)
def test_empty_sizes_give_empty_results(count: int, shape: tuple[int, ...]) -> None:
    assert blend(tensors(shape, 2), points(count, 2), torch.float16).shape == (count, *shape)


def test_what_does_not_fit_is_refused() -> None:
    a, c = tensors((6, 4), 2), points(3, 2)
    with pytest.raises(ValueError, match="coefficients has shape"):
        blend(a, c[:, :1], torch.float32)
    with pytest.raises(ValueError, match=r"coefficients is torch\.float32"):
        blend(a, c.float(), torch.float32)
    with pytest.raises(ValueError, match=r"anchors\[1\].*not contiguous"):
        blend([a[0], tensors((4, 6), 1)[0].T], c, torch.float32)
    with pytest.raises(ValueError, match=r"anchors\[1\] is torch.float16"):
        blend([a[0], a[1].half()], c, torch.float32)
    with pytest.raises(ValueError, match="scale has shape"):
        blend(a, c, torch.float32, normal(generator(1), 3, 4).to(DEVICE))


PLAN = (  # shape, anchors' dtype, result's dtype
    ((37, 59), torch.float32, torch.float32),
    ((5,), torch.float32, torch.float32),
    ((64, 96), torch.float32, torch.float32),
    ((2, 0), torch.float32, torch.float32),
    ((3, 7), torch.float32, torch.float16),
    ((64, 64), torch.float32, torch.float32),
    ((33,), torch.float64, torch.float64),
)


@pytest.mark.parametrize("own", [False, True], ids=["shared-coefficients", "own-coefficients"])
@pytest.mark.parametrize("anchors", [2, 3])
def test_a_plan_blends_each_tensor_as_it_is_blended_alone(anchors: int, own: bool) -> None:
    count = 3
    a = [tensors(shape, anchors, dtype) for shape, dtype, _ in PLAN]
    outs = [poisoned(count, *shape, dtype=dtype) for shape, _, dtype in PLAN]
    c = torch.stack([points(count + t, anchors)[t:] for t in range(len(PLAN))]) if own else points(count, anchors)
    plan = BlendPlan(outs, a)
    plan(c)
    for t, (out, group) in enumerate(zip(outs, a, strict=True)):
        assert torch.equal(out, blend(group, c[t] if own else c, out.dtype))
    last = [o[-1].clone() for o in outs]
    c = (c if own else c.expand(len(PLAN), -1, -1))[:, 1:].contiguous()
    plan(c)  # fewer points than there is room for
    for t, (out, group) in enumerate(zip(outs, a, strict=True)):
        assert torch.equal(out[:-1], blend(group, c[t], out.dtype))
        assert torch.equal(out[-1], last[t])


def test_a_plan_takes_tensors_wherever_they_lie() -> None:
    flat = normal(generator(3), 2, 5000).to(DEVICE)
    a = [[row[1:2049] for row in flat], [row[2052:4100] for row in flat]]  # the second lot is aligned
    room = poisoned(2, 4200, dtype=torch.float32)
    outs = [room[:, 3:2051], room[:, 2100:4148]]
    c = points(2, 2)
    BlendPlan(outs, a)(c)
    for out, group in zip(outs, a, strict=True):
        assert torch.equal(out, blend(group, c, torch.float32))
    assert room[:, :3].isnan().all()
    assert room[:, 4148:].isnan().all()


def test_a_plan_refuses_what_does_not_fit() -> None:
    a, out = tensors((6, 4), 2), poisoned(3, 6, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="out has shape"):
        BlendPlan([out[:, :5]], [a])
    with pytest.raises(ValueError, match=r"anchors\[1\] holds 1 tensors"):
        BlendPlan([out, out.clone()], [a, a[:1]])
    with pytest.raises(ValueError, match="coefficients hold 4 points"):
        BlendPlan([out], [a])(points(4, 2))


@needs_gpu
def test_a_plan_can_be_captured_and_replayed() -> None:
    a, out, c = tensors((64, 96), 2), poisoned(3, 64, 96, dtype=torch.float32), points(3, 2)
    plan = BlendPlan([out], [a])
    plan(c)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(c)
    c.copy_(c.flip(0))
    graph.replay()
    assert torch.equal(out, blend(a, c, torch.float32))
