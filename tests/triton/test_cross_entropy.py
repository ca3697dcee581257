"""The Triton cross entropy, its sums, and the last product fused with it, against float64 and PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from mli_fast.ops.cross_entropy import fused
from mli_fast.ops.cross_entropy.fused_triton import linear_cross_entropy
from mli_fast.ops.cross_entropy.triton import cross_entropy
from tests.ops.cases import coefficients, generator, normal
from tests.triton.helpers import DEVICE, DTYPES, needs_gpu

pytestmark = pytest.mark.gpu

EPS = torch.finfo(torch.float32).eps
INF, NAN = math.inf, math.nan
SHAPES = [(2, 5, 10), (1, 3, 2500), (3, 131, 17), (2, 1, 1), (0, 4, 3), (3, 0, 5)]
SHAPE_IDS = [f"P{p}-M{m}-C{c}" for p, m, c in SHAPES]
PRODUCTS = [  # P, M, K, V, R
    (2, 37, 70, 331, 2),
    (3, 5, 7, 1, 1),
    (1, 67, 33, 130, 3),
    (2, 1, 1, 65, 5),
    (2, 4, 0, 6, 2),
    (0, 3, 4, 5, 2),
    (2, 0, 4, 5, 2),
]
PRODUCT_IDS = [f"P{p}-M{m}-K{k}-V{v}-R{r}" for p, m, k, v, r in PRODUCTS]


def targets_for(rows: int, classes: int, *seeds: int) -> Tensor:
    targets = torch.randint(0, classes, (rows,), generator=generator(rows, classes, *seeds))
    targets[::3] = -100
    return targets


def assert_losses(ours: Tensor, exact: Tensor, theirs: Tensor) -> None:
    """As exact as PyTorch's float32 losses, within a few roundings."""
    assert ours.dtype == torch.float64
    assert ours.shape == exact.shape
    if exact.numel():
        allowed = 2 * (theirs - exact).abs().max() + 4 * EPS * exact.abs().max()
        assert (ours.cpu() - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_losses_and_predictions(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    logits = (3 * normal(generator(*shape), *shape)).to(dtype)
    targets = targets_for(*shape[1:])
    losses, predictions = cross_entropy(logits.to(DEVICE), targets.to(DEVICE))
    flat, repeated = logits.reshape(-1, shape[2]), targets.repeat(shape[0])
    wide = flat if dtype == torch.float64 else flat.float()
    theirs = F.cross_entropy(wide, repeated, reduction="none").double()
    exact = F.cross_entropy(flat.double(), repeated, reduction="none")
    assert_losses(losses, exact.view(shape[:2]), theirs.view(shape[:2]))
    assert torch.equal(predictions.cpu(), logits.argmax(-1))


# (class, value) of what differs from 0 in a row of logits; -1 is the last class, so that it lies in another step
EXTREMES = {
    "all equal": [],
    "a tie": [(2, 5.0), (-1, 5.0)],
    "huge": [(1, 1e4), (-1, -1e4)],
    "target huge": [(0, 1e4)],
    "target tiny": [(0, -1e4)],
    "target -inf": [(0, -INF)],
    "others -inf": [(1, -INF), (-1, -INF)],
    "+inf": [(-1, INF)],
    "two +inf": [(1, INF), (-1, INF)],
    "NaN first": [(0, NAN)],
    "NaN last": [(-1, NAN)],
    "NaN after +inf": [(1, INF), (-1, NAN)],
    "two NaN": [(1, NAN), (-1, NAN)],
}


def extreme_rows(classes: int) -> Tensor:
    rows = torch.zeros(len(EXTREMES) + 1, classes)
    for row, changes in zip(rows, EXTREMES.values(), strict=False):
        for c, value in changes:
            row[c] = value
    rows[-1] = -INF
    return rows


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("classes", [7, 2100])
def test_extreme_logits_are_as_in_pytorch(classes: int, dtype: torch.dtype) -> None:
    logits = extreme_rows(classes).to(dtype)
    targets = torch.zeros(len(logits), dtype=torch.int64)
    losses, predictions = cross_entropy(logits[None].to(DEVICE), targets.to(DEVICE))
    theirs = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(losses[0].cpu(), theirs, equal_nan=True, rtol=4 * EPS, atol=4 * EPS)
    assert torch.equal(predictions[0].cpu(), logits.argmax(-1))


def test_targets_that_are_no_class() -> None:
    logits = torch.tensor([[[1.0, 2.0], [NAN, 0.0], [1.0, 2.0], [1.0, 2.0]]], device=DEVICE)
    losses, predictions = cross_entropy(logits, torch.tensor([-100, -100, 2, -1], device=DEVICE))
    assert losses[0, :2].tolist() == [0.0, 0.0]
    assert losses[0, 2:].isnan().all()
    assert predictions.tolist() == [[1, 0, 1, 1]]


@pytest.mark.parametrize("classes", [10, 2100])
def test_a_point_stands_alone(classes: int) -> None:
    logits = normal(generator(classes), 4, 3, classes).to(DEVICE)
    targets = targets_for(3, classes).to(DEVICE)
    together = cross_entropy(logits, targets)
    for p in range(4):
        alone = cross_entropy(logits[p : p + 1], targets)
        assert all(torch.equal(a[0], t[p]) for a, t in zip(alone, together, strict=True))


def test_misfits_are_named() -> None:
    logits, targets = torch.zeros(2, 3, 4, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="logits"):
        cross_entropy(logits.mT, targets)
    with pytest.raises(ValueError, match="targets"):
        cross_entropy(logits, targets[:2])
    with pytest.raises(ValueError, match="weights"):
        linear_cross_entropy(logits[:1], [torch.zeros(4, 5, device=DEVICE).mT], one(), None, targets)
    with pytest.raises(ValueError, match="coefficients"):
        linear_cross_entropy(logits, [torch.zeros(5, 4, device=DEVICE)], one().float(), None, targets)
    with pytest.raises(ValueError, match="shift"):
        linear_cross_entropy(logits[:1], [torch.zeros(5, 4, device=DEVICE)], one(), torch.zeros(1, 4), targets)


def one() -> Tensor:
    return torch.ones(1, 1, dtype=torch.float64, device=DEVICE)


def fused_case(
    P: int, M: int, K: int, V: int, R: int, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """x, weights, coefficients, shift, targets on the CPU."""
    g = generator(P, M, K, V, R)
    weights = [(normal(g, V, K) / max(K, 1) ** 0.5).to(dtype) for _ in range(R)]
    c = coefficients(g, P, R) if P else torch.zeros(0, R, dtype=torch.float64)
    return normal(g, P, M, K).to(dtype), weights, c, normal(g, P, V), targets_for(M, V)


def placed(
    x: Tensor, weights: list[Tensor], c: Tensor, shift: Tensor | None, targets: Tensor, **options: bool
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` where Triton runs, the result on the CPU."""
    on_device = (x.to(DEVICE), [w.to(DEVICE) for w in weights], c.to(DEVICE))
    there = None if shift is None else shift.to(DEVICE)
    losses, predictions = linear_cross_entropy(*on_device, there, targets.to(DEVICE), **options)
    return losses.cpu(), predictions.cpu()


def exact_logits(x: Tensor, weights: list[Tensor], c: Tensor, shift: Tensor | None) -> Tensor:
    """[P, M, V] float64."""
    blended = torch.tensordot(c, torch.stack(weights).double(), 1)
    logits = x.double() @ blended.mT
    return logits if shift is None else logits + shift.double()[:, None]


def exact_losses(logits: Tensor, targets: Tensor) -> Tensor:
    P, M, V = logits.shape
    return F.cross_entropy(logits.reshape(-1, V), targets.repeat(P), reduction="none").view(P, M)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", PRODUCTS, ids=PRODUCT_IDS)
@pytest.mark.parametrize("shifted", [True, False], ids=["shift", "no-shift"])
def test_fused_with_the_product(sizes: tuple[int, int, int, int, int], dtype: torch.dtype, shifted: bool) -> None:
    x, weights, c, shift, targets = fused_case(*sizes, dtype)
    bias = shift if shifted else None
    losses, predictions = placed(x, weights, c, bias, targets)
    logits = exact_logits(x, weights, c, bias)
    theirs, _ = fused.linear_cross_entropy(x, weights, c, bias, targets)
    assert_losses(losses, exact_losses(logits, targets), theirs)
    if predictions.numel():
        chosen = logits.gather(-1, predictions[..., None])[..., 0]
        assert (chosen >= logits.amax(-1) - 16 * torch.finfo(dtype).eps * (1 + logits.abs().amax())).all()


@pytest.mark.parametrize("mixed", [False, True], ids=["own-dtype", "float32-weights"])
def test_fused_reads_one_input_for_all_points(mixed: bool) -> None:
    x, weights, c, shift, targets = fused_case(3, 5, 20, 70, 2, torch.float16)
    weights = [w.float() for w in weights] if mixed else weights
    shared = placed(x[0], weights, c, shift, targets)
    repeated = placed(x[:1].expand_as(x).contiguous(), weights, c, shift, targets)
    assert all(torch.equal(a, b) for a, b in zip(shared, repeated, strict=True))


def rounded_to_tf32(t: Tensor) -> Tensor:
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_fused_in_tf32() -> None:
    x, weights, c, shift, targets = fused_case(2, 9, 70, 130, 2, torch.float32)
    losses, _ = placed(x, weights, c, shift, targets, tf32=True)
    blended = torch.tensordot(c.float(), torch.stack(weights), 1)
    theirs = rounded_to_tf32(x).double() @ rounded_to_tf32(blended).double().mT + shift.double()[:, None]
    exact = exact_losses(exact_logits(x, weights, c, shift), targets)
    assert_losses(losses, exact, exact_losses(theirs, targets))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_endpoints_are_exact(dtype: torch.dtype) -> None:
    x, weights, _, shift, targets = fused_case(1, 6, 40, 131, 2, dtype)
    for r in (0, 1):
        c = torch.tensor([[float(r == 0), float(r == 1)]], dtype=torch.float64)
        other = [w if i == r else torch.full_like(w, NAN) for i, w in enumerate(weights)]
        alone = placed(x, [weights[r]], c[:, r : r + 1], shift, targets)
        for ws in (weights, other):
            assert all(torch.equal(a, b) for a, b in zip(placed(x, ws, c, shift, targets), alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 70])
def test_fused_points_stand_alone(dtype: torch.dtype, rows: int) -> None:
    x, weights, c, shift, targets = fused_case(4, rows, 20, 150, 2, dtype)
    together = placed(x, weights, c, shift, targets)
    backwards = placed(x.flip(0), weights, c.flip(0), shift.flip(0), targets)
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(together, backwards, strict=True))
    alone = placed(x[2:3], weights, c[2:3], shift[2:3], targets)
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("classes", [7, 333])
def test_fused_extreme_logits_are_as_in_pytorch(classes: int) -> None:
    rows = extreme_rows(classes)
    nothing = torch.zeros(1, 1, 3), [torch.zeros(classes, 3)], torch.ones(1, 1, dtype=torch.float64)
    for row in rows:  # as the shift, every point being one row
        losses, predictions = placed(*nothing, row[None], torch.zeros(1, dtype=torch.int64))
        theirs = F.cross_entropy(row[None].double(), torch.zeros(1, dtype=torch.int64), reduction="none")
        torch.testing.assert_close(losses[0], theirs, equal_nan=True, rtol=4 * EPS, atol=4 * EPS)
        assert int(predictions) == int(row.argmax())


def test_fused_nan_stays_where_it_is() -> None:
    x, weights, c, shift, targets = fused_case(2, 6, 20, 150, 2, torch.float32)
    targets = targets.clamp(min=0)
    x[1, 4, 3] = NAN
    losses, _ = placed(x, weights, c, shift, targets)
    assert losses.isnan().nonzero().tolist() == [[1, 4]]
    targets[:3] = torch.tensor([-100, 150, -1])
    losses, _ = placed(x[:1], weights, c[:1], shift[:1], targets)
    assert losses[0, 0] == 0
    assert losses[0].isnan().tolist() == [False, True, True, False, False, False]


def test_the_plain_fused_op_is_the_two_ops_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, c, shift, targets = fused_case(2, 7, 5, 11, 2, torch.float64)
    whole = fused.linear_cross_entropy(x, weights, c, shift, targets)
    logits = exact_logits(x, weights, c, shift)
    torch.testing.assert_close(whole[0], exact_losses(logits, targets))
    assert torch.equal(whole[1], logits.argmax(-1))
    monkeypatch.setattr(fused, "CHUNK", 30)  # two rows at a time
    torch.testing.assert_close(fused.linear_cross_entropy(x, weights, c, shift, targets), whole)


@needs_gpu
def test_a_cuda_graph_captures_both() -> None:
    x, weights, c, shift, targets = fused_case(3, 130, 64, 300, 2, torch.float32)
    operands = x.to(DEVICE), [w.to(DEVICE) for w in weights], c.to(DEVICE), shift.to(DEVICE), targets.to(DEVICE)

    def work() -> tuple[Tensor, ...]:
        return linear_cross_entropy(*operands)

    eager = work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))
