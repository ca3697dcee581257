"""The Triton combination of shared products against float64 and PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mli_fast.ops.combine import reference
from mli_fast.ops.combine.triton import combine
from mli_fast.ops.epilogue import ACTIVATIONS, Epilogue
from tests.ops.cases import assert_as_exact_as_torch, coefficients, generator, normal
from tests.triton.helpers import DEVICE, DTYPES

pytestmark = pytest.mark.gpu

SIZES = ((3, 37, 45), (1, 1, 1), (2, 5, 300), (4, 9, 10))


def products(rows: int, columns: int, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = generator(rows, columns, count)
    return [normal(g, rows, columns).to(DEVICE, dtype) for _ in range(count)]


def points(count: int, anchors: int) -> Tensor:
    return coefficients(generator(count, anchors), max(count, 1), anchors)[:count].to(DEVICE)


def epilogue(count: int, rows: int, columns: int, activation: str, dtype: torch.dtype) -> Epilogue:
    g = generator(count, rows, columns)
    scale, shift = normal(g, count, columns).to(DEVICE), normal(g, count, columns).to(DEVICE)
    return Epilogue(scale, shift, normal(g, count, rows, columns).to(DEVICE, dtype), activation)


def run(p: list[Tensor], c: Tensor, after: Epilogue, dtype: torch.dtype) -> Tensor:
    out = torch.full((len(c), *p[0].shape), torch.nan, dtype=dtype, device=DEVICE)
    names = ("scale", "shift", "residual", "activation")
    assert combine(p, c, dtype=dtype, out=out, **dict(zip(names, after, strict=True))) is out
    return out


def check(p: list[Tensor], c: Tensor, after: Epilogue, dtype: torch.dtype) -> None:
    wide = [None if t is None else t.double() for t in after[:3]]
    exact = reference.combine([t.double() for t in p], c, Epilogue(*wide, after.activation), -1, torch.float64)
    assert_as_exact_as_torch(run(p, c, after, dtype), exact, reference.combine(p, c, after, -1, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "rows", "columns"), SIZES, ids=lambda n: str(n))
def test_combinations_are_exact(count: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    for anchors in (1, 2, 5):
        p, c = products(rows, columns, anchors), points(count, anchors)
        check(p, c, epilogue(count, rows, columns, "relu", dtype), dtype)
        check(p, c, Epilogue(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    check(products(7, 45, 2, dtype), points(2, 2), epilogue(2, 7, 45, activation, dtype), dtype)


@pytest.mark.parametrize("given", ["scale", "shift", "residual"])
def test_any_part_of_the_epilogue_alone(given: str) -> None:
    whole = epilogue(3, 7, 19, "none", torch.float32)
    check(products(7, 19, 2), points(3, 2), Epilogue(**{given: getattr(whole, given)}), torch.float32)


def test_vectors_that_are_the_same_at_every_point_need_no_copies() -> None:
    after = epilogue(3, 7, 19, "none", torch.float32)
    shared = Epilogue(after.scale[:1].expand(3, -1), None, after.residual[:1].expand(3, -1, -1))  # type: ignore[index]
    packed = Epilogue(*(None if t is None else t.contiguous() for t in shared[:3]))
    p, c = products(7, 19, 2), points(3, 2)
    assert torch.equal(run(p, c, shared, torch.float32), run(p, c, packed, torch.float32))


def test_endpoints_are_one_product_alone_and_nan_stays() -> None:
    a, b = products(7, 19, 2)
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64, device=DEVICE)
    out = run([a, torch.full_like(b, torch.nan)], ends, Epilogue(activation="relu"), torch.float32)
    assert torch.equal(out[0], a.relu())
    assert out[1:].isnan().all()


def test_a_point_stands_alone() -> None:
    p, c = products(37, 45, 3), points(5, 3)
    together = combine(p, c, activation="gelu", dtype=torch.float16)
    assert torch.equal(combine(p, c.flip(0), activation="gelu", dtype=torch.float16), together.flip(0))
    for i in range(5):
        assert torch.equal(combine(p, c[i : i + 1], activation="gelu", dtype=torch.float16)[0], together[i])


@pytest.mark.parametrize(("count", "rows", "columns"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_sizes_give_empty_results(count: int, rows: int, columns: int) -> None:
    out = combine(products(rows, columns, 2), points(count, 2), dtype=torch.float32)
    assert out.shape == (count, rows, columns)


def test_what_does_not_fit_is_refused() -> None:
    p, c = products(6, 4, 2), points(3, 2)
    with pytest.raises(ValueError, match=r"products\[1\] has shape"):
        combine([p[0], p[1][:5]], c, dtype=torch.float32)
    with pytest.raises(ValueError, match="not contiguous"):
        combine([t.T for t in p], c, dtype=torch.float32)
    with pytest.raises(ValueError, match="shift has shape"):
        combine(p, c, shift=c, dtype=torch.float32)
    with pytest.raises(ValueError, match="activation"):
        combine(p, c, activation="cube", dtype=torch.float32)
