"""The index arithmetic and the synchronisation of the sm_90a kernel, on an emulation of what it asks of the hardware.

The kernel's own source is compiled for the CPU with `emulated/` in place of ptx.cuh and wgmma.cuh. That shows that
tiles, fragments, swizzles, barriers and the epilogue fit together as the emulation understands the instructions; a GPU
has the last word on those.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from mli_fast.native import ACTIVATIONS
from mli_fast.ops.epilogue import ACTIVATIONS as FUNCTIONS
from tests.cuda.emulation import EMULATED, SOURCES, build, normal, rounded

pytestmark = pytest.mark.slow
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "split": torch.float32}
UNITS = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-11, "split": 2.0**-21}  # roundings of an operand


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    memory = "char* dynamic = reinterpret_cast<char*>(machine::block().memory.data());"
    names = ("linear_sm90.cuh", "numbers.cuh", "activation.cuh", "kernels.hpp")
    texts = {n: (SOURCES / n).read_text().replace("extern __shared__ char dynamic[];", memory) for n in names}
    return build(tmp_path_factory.mktemp("emulated"), texts, EMULATED.glob("*.*"), ["main.cpp"])


def run(
    machine: ctypes.CDLL,
    kind: str,
    tile: tuple[int, int],  # rows of x, points
    x: Tensor,
    weights: list[Tensor],
    coefficients: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    cluster: int = 1,
    clusters: int = 2,
    dtype: torch.dtype | None = None,
) -> Tensor:
    (rows, depth), columns, points = x.shape[-2:], len(weights[0]), len(coefficients)
    out = torch.full((points, rows, columns), torch.nan, dtype=dtype or KINDS[kind])
    terms = [scale, shift, residual]
    wide = [int(t is not None and t.dtype == torch.float32) for t in (out, *terms)]
    vectors = columns % (8 if KINDS[kind].itemsize == 2 else 4) == 0
    sizes = [
        list(KINDS).index(kind),
        len(weights),
        *tile,
        points,
        rows,
        columns,
        depth,
        x.dim() == 2,
        cluster,
        clusters,
    ]
    numbers = [*sizes, ACTIVATIONS[activation], vectors, *wide]
    if kind == "split":
        x = torch.stack([rounded(x), rounded(x - rounded(x))])
    failed = machine.emulated_linear(
        (ctypes.c_int * len(numbers))(*numbers),
        ctypes.c_void_p(x.data_ptr()),
        (ctypes.c_void_p * len(weights))(*(w.data_ptr() for w in weights)),
        *(ctypes.c_void_p(None if t is None else t.data_ptr()) for t in (coefficients, out, *terms)),
    )
    assert failed == 0, {1: "deadlock", 2: "no such case in main.cpp"}[failed]
    return out


CASES = [  # kind, anchors, (rows of x, points) of the tile, P, M, N, K, cluster
    ("bf16", 2, (256, 1), 3, 270, 136, 200, 2),
    ("bf16", 2, (256, 1), 1, 7, 24, 72, 1),
    ("bf16", 1, (128, 2), 3, 130, 131, 328, 2),
    ("bf16", 2, (64, 4), 6, 37, 260, 64, 2),
    ("bf16", 4, (16, 16), 19, 13, 128, 136, 2),
    ("fp16", 3, (64, 4), 5, 65, 72, 392, 1),
    ("tf32", 2, (128, 2), 3, 45, 140, 100, 2),
    ("tf32", 3, (16, 16), 2, 16, 10, 36, 1),
    ("split", 2, (128, 1), 2, 129, 129, 164, 2),
    ("split", 2, (16, 8), 9, 11, 64, 68, 1),
]


@pytest.mark.parametrize(
    ("kind", "anchors", "tile", "points", "rows", "columns", "depth", "cluster"),
    CASES,
    ids=[f"{c[0]}-R{c[1]}-tile{c[2][0]}x{c[2][1]}-P{c[3]}-M{c[4]}-N{c[5]}-K{c[6]}-cluster{c[7]}" for c in CASES],
)
def test_value(
    machine: ctypes.CDLL,
    kind: str,
    anchors: int,
    tile: tuple[int, int],
    points: int,
    rows: int,
    columns: int,
    depth: int,
    cluster: int,
) -> None:
    dtype = KINDS[kind]
    x = normal(points, rows, depth, dtype=dtype, seed=1)
    weights = [normal(columns, depth, dtype=dtype, seed=2 + r) for r in range(anchors)]
    c = normal(points, anchors, dtype=torch.float64, seed=9)
    c[0, 0] = 0.0
    scale, shift = normal(points, columns, dtype=torch.float32, seed=10), normal(points, columns, dtype=dtype, seed=11)
    residual = normal(points, rows, columns, dtype=dtype, seed=12)
    got = run(machine, kind, tile, x, weights, c, scale, shift, residual, "tanh", cluster, dtype=torch.float32)

    blended = torch.einsum("pr,rnk->pnk", c, torch.stack(weights).double())
    product = x.double() @ blended.mT
    exact = torch.tanh(product * scale[:, None].double() + shift[:, None].double() + residual.double())
    size = (x.double().abs() @ blended.abs().mT) * scale[:, None].abs().double()
    allowed = 4 * UNITS[kind] * size / depth**0.5 + 1e-5 * (kind != "split") + 3e-6
    assert not got.isnan().any()
    assert ((got.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("kind", "anchors", "tile"),
    [("bf16", 2, (256, 1)), ("bf16", 2, (64, 4)), ("bf16", 4, (16, 16)), ("fp16", 3, (64, 4)), ("tf32", 2, (128, 2))],
    ids=str,
)
def test_one_hot_rows_give_the_blended_weight(
    machine: ctypes.CDLL, kind: str, anchors: int, tile: tuple[int, int]
) -> None:
    columns, depth = 136, 72
    weights = [normal(columns, depth, dtype=KINDS[kind], seed=r) for r in range(anchors)]
    c = normal(3, anchors, dtype=torch.float64, seed=5)
    got = run(machine, kind, tile, torch.eye(depth, dtype=KINDS[kind]), weights, c, cluster=2)
    for p, row in enumerate(c.float()):
        blended = torch.zeros(columns, depth)
        for w, a in zip(weights, row, strict=True):  # a fused multiply-add: exact in float64, then rounded
            blended = (blended.double() + a.double() * w.double()).float()
        expected = rounded(blended) if kind == "tf32" else blended.to(KINDS[kind])
        assert torch.equal(got[p], expected.mT)


@pytest.mark.parametrize(("kind", "tile"), [("bf16", (64, 4)), ("bf16", (256, 1)), ("split", (128, 1))], ids=str)
def test_a_point_stands_alone_and_an_endpoint_is_exact(machine: ctypes.CDLL, kind: str, tile: tuple[int, int]) -> None:
    dtype = KINDS[kind]
    x = normal(5, 21, 200, dtype=dtype, seed=1)
    weights = [normal(40, 200, dtype=dtype, seed=r) for r in (2, 3)]
    weights[1][3, 5] = torch.nan
    c = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    whole = run(machine, kind, tile, x, weights, c, cluster=2)
    order = [3, 1, 4]
    part = run(machine, kind, tile, x[order].contiguous(), weights, c[order].contiguous(), clusters=1)
    alone = [run(machine, kind, tile, x[p : p + 1].contiguous(), weights, c[p : p + 1].contiguous()) for p in order]
    for i, p in enumerate(order):
        assert torch.equal(part[i].nan_to_num(7.0), whole[p].nan_to_num(7.0))
        assert torch.equal(alone[i][0].nan_to_num(7.0), whole[p].nan_to_num(7.0))
    assert not whole[1].isnan().any()
    bad = whole[[0, 2, 3, 4]].isnan()
    assert bad[:, :, 3].all()
    assert bad.sum() == 4 * 21
    if kind == "split":
        one = torch.ones(1, 1, dtype=torch.float64)
        assert torch.equal(run(machine, kind, tile, x[1:2].contiguous(), weights[:1], one)[0], whole[1])


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activation(machine: ctypes.CDLL, activation: str) -> None:
    x, w = normal(1, 40, 64, dtype=torch.bfloat16, seed=1), normal(11, 64, dtype=torch.bfloat16, seed=2)
    one = torch.ones(1, 1, dtype=torch.float64)
    got = run(machine, "bf16", (128, 2), x, [w], one, activation=activation, dtype=torch.float32)
    product = run(machine, "bf16", (128, 2), x, [w], one, dtype=torch.float32)
    torch.testing.assert_close(got, FUNCTIONS[activation](product), rtol=2e-6, atol=2e-6)
