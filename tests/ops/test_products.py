"""linear and conv against float64, on every route and backend, in ragged shapes; their bitwise gates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mli_fast.ops import conv as conv_ops
from mli_fast.ops.backend import requested
from mli_fast.ops.blend import blend
from mli_fast.ops.combine import combine
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import linear, products

from .cases import (
    BACKENDS,
    ROUTES,
    assert_as_exact_as_torch,
    blended,
    coefficients,
    evaluated,
    generator,
    inputs_of,
    normal,
)


def _after(points: int, *tensors: torch.Tensor | None) -> Epilogue:
    """Scale, shift and residual, the same at all points, and ReLU."""
    scale, shift, residual = (None if t is None else t.expand(points, *t.shape) for t in tensors)
    return Epilogue(scale, shift, residual, "relu")


LINEAR_SHAPES = [(3, 7, 5, 11), (1, 1, 1, 1), (2, 37, 45, 70), (5, 0, 3, 4), (4, 13, 10, 257), (2, 101, 17, 600)]


@pytest.mark.parametrize("anchors", [1, 2, 3, 5])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=lambda s: "P{}-M{}-N{}-K{}".format(*s))
def test_linear_is_as_exact_as_torch(shape: tuple[int, ...], backend: str, route: str, anchors: int) -> None:
    p, m, n, k = shape
    g = generator(p, m, n, k, anchors)
    x, weights, c = normal(g, p, m, k), [normal(g, n, k) for _ in range(anchors)], coefficients(g, p, anchors)
    scale, shift, residual = normal(g, n), normal(g, n), normal(g, m, n)
    after = _after(p if route != "alone" else 1, scale, shift, residual)
    with requested(backend):
        ours = evaluated(
            route,
            lambda x, c: linear(x, weights, c, after),
            lambda x, c: combine(products(x, weights), c, after, -1, x.dtype),
            x,
            c,
        )

    def plain(dtype: torch.dtype) -> torch.Tensor:
        rows = [
            F.linear(xp.to(dtype), blended(weights, row, dtype)) * scale.to(dtype)
            + shift.to(dtype)
            + residual.to(dtype)
            for xp, row in zip(inputs_of(route, x), c, strict=True)
        ]
        return torch.stack(rows).relu()

    assert_as_exact_as_torch(ours, plain(torch.float64), plain(torch.float32))


CONVOLUTIONS = {
    "1d": ((2, 3, 5, 17), (4, 5, 3), (2,), (1,), (1,), 1),
    "1d-dilated": ((2, 1, 4, 19), (6, 2, 3), (1,), (2,), (2,), 2),
    "2d": ((3, 2, 16, 9, 7), (19, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "2d-wide": ((2, 3, 24, 13, 11), (33, 24, 3, 3), (1, 1), (0, 1), (1, 1), 1),
    "2d-strided": ((2, 2, 11, 9, 8), (16, 11, 3, 2), (2, 3), (1, 0), (1, 2), 1),
    "2d-pointwise": ((2, 1, 13, 1, 1), (7, 13, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "2d-depthwise": ((2, 2, 6, 7, 5), (12, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6),
    "2d-no-examples": ((2, 0, 3, 7, 5), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "3d": ((2, 2, 3, 5, 4, 6), (5, 3, 3, 2, 3), (2, 1, 1), (1, 0, 1), (1, 1, 1), 1),
}


@pytest.mark.parametrize("anchors", [1, 2, 3])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv_is_as_exact_as_torch(case: str, backend: str, route: str, anchors: int) -> None:
    shape, kernel, stride, padding, dilation, groups = CONVOLUTIONS[case]
    g = generator(len(case), anchors, *shape)
    x, weights = normal(g, *shape), [normal(g, *kernel) for _ in range(anchors)]
    c, scale, shift = coefficients(g, shape[0], anchors), normal(g, kernel[0]), normal(g, kernel[0])
    move = (list(stride), list(padding), list(dilation), groups)
    geometry = conv_ops.Geometry(stride, padding, dilation, groups)
    after = _after(shape[0] if route != "alone" else 1, scale, shift, None)
    with requested(backend):
        ours = evaluated(
            route,
            lambda x, c: conv_ops.conv(x, weights, c, geometry, after),
            lambda x, c: combine(conv_ops.products(x, weights, geometry), c, after, 1, x.dtype),
            x,
            c,
        )
    convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(kernel)]
    along = (-1, *[1] * (len(kernel) - 2))

    def plain(dtype: torch.dtype) -> torch.Tensor:
        rows = [
            convolve(xp.to(dtype), blended(weights, row, dtype), None, *move) * scale.to(dtype).view(along)
            + shift.to(dtype).view(along)
            for xp, row in zip(inputs_of(route, x), c, strict=True)
        ]
        return torch.stack(rows).relu()

    assert_as_exact_as_torch(ours, plain(torch.float64), plain(torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "k"), [(5, 11), (17, 70), (10, 257)])
def test_a_one_hot_input_gives_the_blended_weight_itself(n: int, k: int, backend: str) -> None:
    g = generator(n, k)
    weights, c = [normal(g, n, k) for _ in range(3)], coefficients(g, 4, 3)
    with requested(backend):
        ours = linear(torch.eye(k).expand(4, k, k).contiguous(), weights, c, Epilogue())
        assert torch.equal(ours.transpose(1, 2), blend(weights, c, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_coefficient_of_zero_leaves_its_anchor_out(bad: float, backend: str) -> None:
    g = generator(1)
    good, x = normal(g, 9, 23), normal(g, 1, 6, 23)
    one, both = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    with requested(backend):
        alone = linear(x, [good], one, Epilogue())
        assert torch.equal(alone, linear(x, [torch.full_like(good, bad), good], both, Epilogue()))
        terms = products(x[0], [torch.full_like(good, bad), good])
        assert torch.equal(alone[0], combine(terms, both, Epilogue(), -1, torch.float32)[0])
        assert torch.equal(good, blend([torch.full_like(good, bad), good], both, torch.float32)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_shared_route_equals_the_own_one_at_an_anchor_bit_for_bit(backend: str) -> None:
    g = generator(2)
    weights, x = [normal(g, 19, 301) for _ in range(2)], normal(g, 1, 53, 301)
    shift, hot = normal(g, 19), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with requested(backend):
        own = linear(x, weights, hot, _after(1, None, shift, None))
        shared = combine(products(x[0], weights), hot, _after(1, None, shift, None), -1, torch.float32)
    assert torch.equal(own, shared)
