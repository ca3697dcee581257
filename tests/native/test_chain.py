"""The chain of linear layers: bit for bit what the single kernels give, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mli_fast import native
from mli_fast.native import Blended, chain
from tests.native.helpers import DTYPES, needs_kernels, normal

pytestmark = needs_kernels


def blended(
    points: int,
    count: int,
    shape: tuple[int, int],
    width: int,
    dtype: torch.dtype,
    seed: int,
    scaled: bool,
    activation: str,
) -> Blended:
    """Seeded tensors, coefficients and epilogue of one part of a chain; about as large as what goes in."""
    tensors = [normal(*shape, dtype=dtype, seed=100 * seed + r) / max(shape[1], 1) ** 0.5 for r in range(count)]
    coefficients = normal(points, count, dtype=torch.float64, seed=100 * seed + 50)
    scale = normal(points, width, dtype=dtype, seed=100 * seed + 60) if scaled else None
    shift = normal(points, width, dtype=dtype, seed=100 * seed + 70) if scaled or seed % 3 else None
    return Blended(tensors, coefficients, scale, shift, activation)


def network(
    rows: int,
    widths: Sequence[int],
    counts: Sequence[int],
    dtype: torch.dtype,
    activations: Sequence[str] = ("relu",),
    scaled: bool = False,
    points: int = 1,
) -> tuple[Blended, list[Blended]]:
    """Shared products [rows, widths[0]] and the layers after them, at `points` points."""

    def activation(i: int) -> str:
        return activations[i % len(activations)]

    source = blended(points, counts[0], (rows, widths[0]), widths[0], dtype, 1, scaled, activation(0))
    layers = [
        blended(points, counts[(i + 1) % len(counts)], (n, k), n, dtype, i + 2, scaled, activation(i + 1))
        for i, (k, n) in enumerate(pairwise(widths))
    ]
    return source, layers


def one_by_one(source: Tensor | Blended, layers: Sequence[Blended], residual: Tensor | None = None) -> Tensor:
    """The same with `native.combine` and `native.linear`: [P, M, N]."""
    if isinstance(source, Tensor):
        x = source
    else:
        x = native.combine(
            source.tensors,
            source.coefficients,
            scale=source.scale,
            shift=source.shift,
            activation=source.activation,
        )
    for i, layer in enumerate(layers):
        x = native.linear(
            x,
            layer.tensors,
            layer.coefficients,
            scale=layer.scale,
            shift=layer.shift,
            residual=residual if i == len(layers) - 1 else None,
            activation=layer.activation,
        )
    return x


def assert_same_bits(source: Tensor | Blended, layers: Sequence[Blended], residual: Tensor | None = None) -> None:
    expected = one_by_one(source, layers, residual)
    out = torch.full_like(expected, torch.nan)
    assert chain(source, layers, residual=residual, out=out) is out
    assert torch.isfinite(expected).all()
    assert torch.equal(out, expected)


# rows, widths from the source on; 577 and more: several blocks of K, 289 and more: several runs of one block
SHAPES = [
    (1, (1, 1)),
    (7, (13, 5, 3)),
    (53, (37, 64, 10)),
    (101, (17, 8, 31, 16, 10)),
    (50, (289, 24, 577, 17)),
    (23, (1201, 33, 9)),
    (230, (96, 300, 12)),
    (3, (5, 4000, 2)),
]


def shape_id(case: tuple[int, tuple[int, ...]]) -> str:
    return f"M{case[0]}-" + "-".join(map(str, case[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", [(1,), (2,), (3,), (1, 2, 5)], ids=lambda c: "R" + "-".join(map(str, c)))
@pytest.mark.parametrize("case", SHAPES, ids=shape_id)
def test_equals_combine_and_linear_bit_for_bit(
    isa: str, case: tuple[int, tuple[int, ...]], counts: tuple[int, ...], dtype: torch.dtype
) -> None:
    source, layers = network(*case, counts, dtype)
    assert_same_bits(source, layers)
    assert_same_bits(source.tensors[0][None], layers)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("points", [0, 2, 3, 7])
@pytest.mark.parametrize("case", SHAPES[1:6], ids=shape_id)
def test_many_points_in_a_call_are_each_as_if_alone(
    isa: str, threads: None, case: tuple[int, tuple[int, ...]], points: int, count: int
) -> None:
    torch.set_num_threads(count)
    source, layers = network(*case, (2, 3), torch.float32, ("relu", "tanh"), scaled=True, points=points)
    residual = normal(points, case[0], case[1][-1], dtype=torch.float32, seed=8)
    x = normal(points, case[0], case[1][0], dtype=torch.float32, seed=9)
    assert_same_bits(source, layers, residual)
    assert_same_bits(x, layers, residual)
    whole = chain(source, layers, residual=residual)

    def alone(part: Blended, p: int) -> Blended:
        vectors = [None if t is None else t[p : p + 1] for t in part[1:4]]
        return Blended(part.tensors, *vectors, part.activation)  # type: ignore[arg-type]

    for p in range(points):
        own = chain(alone(source, p), [alone(layer, p) for layer in layers], residual=residual[p : p + 1])
        assert torch.equal(own[0], whole[p])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", native.ACTIVATIONS)
def test_every_activation_with_scale_shift_and_residual(isa: str, activation: str, dtype: torch.dtype) -> None:
    source, layers = network(41, (19, 40, 600, 11), (2,), dtype, (activation,), scaled=True)
    assert_same_bits(source, layers, normal(1, 41, 11, dtype=dtype, seed=9))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(isa: str, threads: None, count: int) -> None:
    source, layers = network(397, (70, 45, 26, 10), (2,), torch.float32)
    torch.set_num_threads(1)
    expected = one_by_one(source, layers)
    torch.set_num_threads(count)
    for _ in range(3):
        assert torch.equal(chain(source, layers), expected)


def test_a_row_does_not_depend_on_how_many_there_are(isa: str) -> None:
    source, layers = network(211, (33, 310, 18, 10), (2,), torch.float32)
    whole = chain(source, layers)
    for rows in (slice(0, 1), slice(5, 18), slice(100, 211)):
        part = source._replace(tensors=[t[rows].contiguous() for t in source.tensors])
        assert torch.equal(chain(part, layers), whole[:, rows])


def test_coefficient_zero_leaves_nan_anchors_out(isa: str) -> None:
    source, layers = network(30, (21, 20, 10), (3,), torch.float32)
    parts = [source, *layers]
    without = [p._replace(tensors=p.tensors[:2], coefficients=p.coefficients[:, :2].contiguous()) for p in parts]
    bad = [
        p._replace(
            tensors=[torch.full_like(p.tensors[0], torch.nan), *p.tensors[:2]],
            coefficients=torch.cat([torch.zeros(1, 1, dtype=torch.float64), p.coefficients[:, :2]], 1),
        )
        for p in parts
    ]
    assert torch.equal(chain(bad[0], bad[1:]), chain(without[0], without[1:]))
    nothing = [
        p._replace(tensors=b.tensors[:1], coefficients=b.coefficients[:, :1].contiguous())
        for p, b in zip(parts, bad, strict=True)
    ]
    assert_same_bits(nothing[0], nothing[1:])


def test_nan_in_one_row_stays_in_that_row(isa: str) -> None:
    source, layers = network(60, (40, 30, 10), (2,), torch.float32)
    clean = chain(source, layers)
    source.tensors[1][17, 3] = torch.nan
    spoilt = chain(source, layers)
    assert spoilt[0, 17].isnan().all()
    spoilt[0, 17] = clean[0, 17]
    assert torch.equal(spoilt, clean)


@pytest.mark.parametrize("case", [(0, (3, 4, 5)), (4, (3, 0, 5)), (4, (0, 3)), (4, (3, 0))], ids=shape_id)
def test_empty_sizes(isa: str, case: tuple[int, tuple[int, ...]]) -> None:
    source, layers = network(*case, (2,), torch.float32)
    assert_same_bits(source, layers)
    assert_same_bits(source.tensors[0][None], layers)


def test_what_does_not_fit_is_an_error_that_names_the_part() -> None:
    source, layers = network(6, (5, 4, 3), (2,), torch.float32)
    with pytest.raises(ValueError, match="at least one"):
        chain(source, [])
    with pytest.raises(ValueError, match=r"layers\[1\].*\(3, 4\)"):
        chain(source, [layers[0], layers[1]._replace(tensors=[torch.zeros(3, 7)] * 2)])
    with pytest.raises(ValueError, match=r"layers\[1\]: coefficients"):
        chain(source, [layers[0], layers[1]._replace(coefficients=torch.zeros(2, 2, dtype=torch.float64))])
    with pytest.raises(ValueError, match=r"layers\[0\]: activation 'mish'"):
        chain(source, [layers[0]._replace(activation="mish"), layers[1]])
    with pytest.raises(ValueError, match=r"layers\[1\]: at least one"):
        chain(source, [layers[0], layers[1]._replace(tensors=[])])
    with pytest.raises(ValueError, match="source: needs contiguous"):
        chain(torch.zeros(1, 5, 6).mT, layers)
    with pytest.raises(ValueError, match="source: expected"):
        chain(source._replace(tensors=[]), layers)
    with pytest.raises(ValueError, match="source: shift"):
        chain(source._replace(shift=torch.zeros(1, 3)), layers)
    with pytest.raises(ValueError, match=r"torch\.float16"):
        chain(torch.zeros(1, 6, 5, dtype=torch.float16), layers)
    with pytest.raises(ValueError, match="residual"):
        chain(source, layers, residual=torch.zeros(1, 6, 4))
    with pytest.raises(ValueError, match="out"):
        chain(source, layers, out=torch.zeros(1, 6, 4))
