"""The Triton convolution against float64 and PyTorch's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mli_fast.ops.blend.triton import blend
from mli_fast.ops.combine.triton import combine
from mli_fast.ops.conv import Geometry, reference
from mli_fast.ops.conv.reference import CONVOLUTIONS
from mli_fast.ops.conv.triton import conv, depth_blocks
from mli_fast.ops.epilogue import ACTIVATIONS, Epilogue, apply
from tests.ops.cases import assert_as_exact_as_torch, coefficients, generator, normal
from tests.triton.helpers import DEVICE, DTYPES, GPU

pytestmark = pytest.mark.gpu


class Case(NamedTuple):
    P: int
    B: int
    C: int
    N: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    R: int = 2

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, 1)


CASES = {
    "3x3": Case(2, 2, 16, 16, (7, 6), (3, 3)),
    "thin-R1": Case(2, 1, 3, 5, (7, 9), (3, 3), R=1),
    "strided-R3": Case(2, 3, 20, 33, (9, 8), (3, 3), (2, 2), R=3),
    "dilated-R5": Case(1, 2, 5, 17, (9, 10), (3, 2), (1, 2), (2, 1), (2, 3), R=5),
    "1x1-wide": Case(2, 1, 70, 131, (5, 4), (1, 1), (2, 2), (0, 0)),
    "pixel": Case(3, 1, 1, 1, (1, 1), (3, 3)),
    "line": Case(2, 2, 6, 7, (13,), (5,), (2,), (2,), (1,)),
}
SAME_3X3: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


def images(t: Tensor, dims: int = 2) -> Tensor:
    """[..., C, *spatial] with the channels innermost in memory."""
    return t.to(DEVICE).movedim(-1 - dims, -1).contiguous().movedim(-1, -1 - dims)


def operands(case: Case, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
    """x, weights, coefficients on the CPU."""
    g = generator(*case[:4], case.R)
    fan = case.C * torch.Size(case.kernel).numel()
    weights = [(normal(g, case.N, case.C, *case.kernel) / fan**0.5).to(dtype) for _ in range(case.R)]
    return normal(g, case.P, case.B, case.C, *case.sizes).to(dtype), weights, coefficients(g, case.P, case.R)


def run(x: Tensor, weights: list[Tensor], c: Tensor, geometry: Geometry, epilogue: Epilogue, **options: Any) -> Tensor:
    """`conv` where Triton runs, from operands anywhere, the result on the CPU."""
    dims = weights[0].ndim - 2
    scale, shift = (None if v is None else v.to(DEVICE) for v in epilogue[:2])
    out = conv(
        images(x, dims),
        [images(w, dims) for w in weights],
        c.to(DEVICE),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        scale=scale,
        shift=shift,
        residual=None if epilogue.residual is None else images(epilogue.residual, dims),
        activation=epilogue.activation,
        **options,
    )
    assert out.movedim(2, -1).is_contiguous()
    return out.cpu()


def exact(x: Tensor, weights: list[Tensor], c: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """In float64, with the blend not rounded."""
    wide = Epilogue(*(None if t is None else t.double() for t in epilogue[:3]), epilogue.activation)
    rows = []
    for p, row in enumerate(c):
        weight = torch.tensordot(row, torch.stack(weights).double(), 1)
        y = CONVOLUTIONS[weight.ndim - 2](x[p].double(), weight, None, *geometry)
        rows.append(apply(y, wide.point(p), 1))
    return torch.stack(rows)


def full_epilogue(case: Case, dtype: torch.dtype, activation: str) -> Epilogue:
    g = generator(7, case.N)
    shape = case.geometry.output_shape(
        torch.Size((case.B, case.C, *case.sizes)), torch.Size((case.N, case.C, *case.kernel))
    )
    scale, shift = normal(g, case.P, case.N), normal(g, case.P, case.N)
    return Epilogue(scale, shift, normal(g, case.P, *shape).to(dtype), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("whole", [False, True], ids=["bare", "epilogue"])
def test_values(case: Case, dtype: torch.dtype, whole: bool) -> None:
    x, weights, c = operands(case, dtype)
    epilogue = full_epilogue(case, dtype, "relu") if whole else Epilogue()
    ours = run(x, weights, c, case.geometry, epilogue)
    theirs = reference.conv(x, weights, c, case.geometry, epilogue)
    assert ours.dtype == dtype
    assert_as_exact_as_torch(ours, exact(x, weights, c, case.geometry, epilogue), theirs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    case = CASES["thin-R1"]
    x, weights, c = operands(case, torch.float32)
    for epilogue in (full_epilogue(case, torch.float32, activation), Epilogue(shift=normal(generator(3), 2, 5))):
        ours = run(x, weights, c, case.geometry, epilogue)
        theirs = reference.conv(x, weights, c, case.geometry, epilogue)
        assert_as_exact_as_torch(ours, exact(x, weights, c, case.geometry, epilogue), theirs)


def test_tf32() -> None:
    case = CASES["3x3"]
    x, weights, c = operands(case, torch.float32)
    ours = run(x, weights, c, case.geometry, Epilogue(), tf32=True)
    blended = [torch.tensordot(row.float(), torch.stack(weights), 1) for row in c]
    theirs = torch.stack(
        [
            CONVOLUTIONS[2](rounded_to_tf32(x[p]).double(), rounded_to_tf32(w).double(), None, *case.geometry)
            for p, w in enumerate(blended)
        ]
    )
    true = exact(x, weights, c, case.geometry, Epilogue())
    assert_as_exact_as_torch(ours, true, theirs.float())
    if GPU:
        assert not torch.equal(ours, run(x, weights, c, case.geometry, Epilogue()))


def rounded_to_tf32(t: Tensor) -> Tensor:
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.float32 or not GPU])
def test_a_one_hot_input_shows_the_weight(dtype: torch.dtype) -> None:
    # on a GPU float32 is multiplied in two halves of 11 bits, so the last bits of the 24 may differ
    C, N = 37, 21
    weights = [normal(generator(r), N, C, 1, 1).to(dtype) for r in range(3)]
    x = torch.eye(C).to(dtype)[None, None, :, None, :]  # [1, 1, C, 1, W]: pixel w is channel w alone
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    for r in range(3):
        c = torch.eye(3, dtype=torch.float64)[r : r + 1]
        assert torch.equal(run(x, weights, c, geometry, Epilogue())[0, 0, :, 0], weights[r][:, :, 0, 0])
    c = torch.tensor([[0.3, -1.7, 0.9]], dtype=torch.float64)
    blended = blend([w.to(DEVICE) for w in weights], c.to(DEVICE), dtype).cpu()
    assert torch.equal(run(x, weights, c, geometry, Epilogue())[0, 0, :, 0], blended[0, :, :, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_endpoints_are_exact(dtype: torch.dtype) -> None:
    case = CASES["3x3"]._replace(P=1)
    x, weights, _ = operands(case, dtype)
    epilogue = full_epilogue(case, dtype, "gelu")
    for r in (0, 1):
        c = torch.eye(2, dtype=torch.float64)[r : r + 1]
        alone = run(x, [weights[r]], torch.ones(1, 1, dtype=torch.float64), case.geometry, epilogue)
        other = [w if i == r else torch.full_like(w, torch.nan) for i, w in enumerate(weights)]
        for ws in (weights, other):
            assert torch.equal(run(x, ws, c, case.geometry, epilogue), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_endpoint_does_not_depend_on_the_route(dtype: torch.dtype) -> None:
    """Products of a shared input, combined, are what the convolution of that input gives."""
    case = CASES["3x3"]._replace(P=1)
    x, weights, _ = operands(case, dtype)
    epilogue = full_epilogue(case, dtype, "gelu_tanh")
    one = torch.ones(1, 1, dtype=torch.float64)
    products = [run(x, [w], one, case.geometry, Epilogue(), dtype=torch.float32) for w in weights]
    rows = [p.movedim(2, -1).reshape(-1, case.N).to(DEVICE) for p in products]
    c = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    combined = combine(
        rows,
        c.to(DEVICE),
        scale=epilogue.scale.to(DEVICE),
        shift=epilogue.shift.to(DEVICE),
        residual=epilogue.residual.movedim(2, -1).reshape(1, -1, case.N).to(DEVICE),
        activation=epilogue.activation,
        dtype=dtype,
    )
    direct = run(x, weights, c, case.geometry, epilogue)
    assert torch.equal(direct.movedim(2, -1).reshape(1, -1, case.N), combined.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_point_stands_alone(dtype: torch.dtype) -> None:
    case = CASES["3x3"]._replace(P=4)
    x, weights, c = operands(case, dtype)
    epilogue = full_epilogue(case, dtype, "silu")
    together = run(x, weights, c, case.geometry, epilogue)
    turned = Epilogue(*(t.flip(0) for t in epilogue[:3]), epilogue.activation)
    assert torch.equal(run(x.flip(0), weights, c.flip(0), case.geometry, turned).flip(0), together)
    for p in (0, 2):
        alone = run(x[p : p + 1], weights, c[p : p + 1], case.geometry, epilogue.point(p).stacked())
        assert torch.equal(alone[0], together[p])


def test_one_input_for_all_points() -> None:
    case = CASES["strided-R3"]
    x, weights, c = operands(case, torch.float32)
    shared = run(x[0], weights, c, case.geometry, Epilogue())
    assert torch.equal(shared, run(x[:1].expand_as(x), weights, c, case.geometry, Epilogue()))


def test_writes_where_told_and_in_the_dtype_asked_for() -> None:
    case = CASES["3x3"]
    x, weights, c = operands(case, torch.float16)
    wide = run(x, weights, c, case.geometry, Epilogue(), dtype=torch.float32)
    out = images(torch.full(wide.shape, torch.nan))
    assert torch.equal(run(x, weights, c, case.geometry, Epilogue(), dtype=torch.float32, out=out), wide)
    assert torch.equal(out.cpu(), wide)
    assert torch.equal(wide.half(), run(x, weights, c, case.geometry, Epilogue()))
    mixed = run(x, [w.float() for w in weights], c, case.geometry, Epilogue())
    assert torch.equal(mixed, run(x, weights, c, case.geometry, Epilogue()))


def test_nan_reaches_only_the_patches_it_is_in() -> None:
    case = Case(2, 2, 4, 5, (6, 7), (3, 3))
    x, weights, c = operands(case, torch.float32)
    x[1, 0, 2, 0, 3] = torch.nan
    found = run(x, weights, c, case.geometry, Epilogue(activation="relu")).isnan().any(2)
    expected = torch.zeros(2, 2, 6, 7, dtype=torch.bool)
    expected[1, 0, :2, 2:5] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        (Case(0, 2, 3, 4, (5, 5), (3, 3)), (5, 5)),
        (Case(2, 0, 3, 4, (5, 5), (3, 3)), (5, 5)),
        (Case(2, 2, 3, 4, (2, 5), (3, 3), padding=(0, 1)), (0, 5)),
    ],
    ids=["no-points", "no-images", "no-pixels"],
)
def test_empty(case: Case, sizes: tuple[int, int]) -> None:
    weights = [torch.zeros(case.N, case.C, *case.kernel)] * 2
    x, c = torch.zeros(case.P, case.B, case.C, *case.sizes), torch.zeros(case.P, 2, dtype=torch.float64)
    assert run(x, weights, c, case.geometry, Epilogue()).shape == (case.P, case.B, case.N, *sizes)


def test_no_channels_give_the_epilogue_of_zeros() -> None:
    case = Case(2, 1, 0, 3, (4, 4), (3, 3))
    shift = normal(generator(1), 2, 3)
    out = run(
        torch.zeros(2, 1, 0, 4, 4),
        [torch.zeros(3, 0, 3, 3)] * 2,
        torch.ones(2, 2, dtype=torch.float64),
        case.geometry,
        Epilogue(shift=shift, activation="tanh"),
    )
    torch.testing.assert_close(out, shift.tanh()[:, None, :, None, None].expand_as(out))


def test_misfits_are_named() -> None:
    x, w, c = torch.zeros(2, 1, 4, 5, 5), torch.zeros(3, 4, 3, 3), torch.zeros(2, 1, dtype=torch.float64)
    good = images(x), [images(w)], c.to(DEVICE)
    with pytest.raises(ValueError, match="x: expected"):
        conv(x.to(DEVICE), *good[1:], **SAME_3X3)
    with pytest.raises(ValueError, match=r"weights\[0\]"):
        conv(good[0], [w.to(DEVICE)], good[2], **SAME_3X3)
    with pytest.raises(ValueError, match="coefficients"):
        conv(*good[:2], good[2].float(), **SAME_3X3)
    with pytest.raises(ValueError, match="scale"):
        conv(*good, **SAME_3X3, scale=torch.zeros(2, 4, device=DEVICE))
    with pytest.raises(ValueError, match="activation"):
        conv(*good, **SAME_3X3, activation="softmax")
    with pytest.raises(ValueError, match="do not fit"):
        conv(good[0].double(), *good[1:], **SAME_3X3)


@pytest.mark.parametrize(
    ("channels", "taps", "expected"),
    [(16, 9, (16, 4)), (64, 9, (64, 1)), (100, 9, (64, 1)), (3, 9, (4, 16)), (3, 1, (16, 1)), (1, 2, (8, 2))],
)
def test_depth_of_a_step(channels: int, taps: int, expected: tuple[int, int]) -> None:
    assert depth_blocks(channels, taps, 64) == expected
