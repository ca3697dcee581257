"""The Triton blended linear layer against float64 and PyTorch's own products; what it shares with blend and combine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mli_fast.ops import launching
from mli_fast.ops.blend.triton import blend
from mli_fast.ops.combine.triton import combine
from mli_fast.ops.epilogue import ACTIVATIONS, Epilogue, apply
from mli_fast.ops.linear.triton import linear, linear_of_products, stages_that_fit, tune_linear
from tests.ops.cases import assert_as_exact_as_torch, coefficients, generator, normal
from tests.triton.helpers import DEVICE, DTYPES, GPU, needs_gpu

pytestmark = pytest.mark.gpu

SIZES = ((3, 5, 7, 11), (3, 37, 70, 45), (1, 1, 1, 1), (2, 130, 33, 64), (3, 17, 10, 100))
SPLIT = {"BLOCK_N": 64, "BLOCK_M": 32, "BLOCK_K": 32, "POINTS": 2, "GROUP": 2, "num_warps": 4, "num_stages": 2}


@pytest.fixture(params=["default", "many-tiles"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """The default configuration, and one that cuts small problems into several programs."""
    if request.param == "default":
        yield
        return
    with launching.forced("linear", SPLIT), launching.forced("linear_of_products", SPLIT):
        yield


class Case:
    """Operands on the device; `keywords` is the epilogue."""

    def __init__(self, p: int, m: int, n: int, k: int, r: int, dtype: torch.dtype = torch.float32) -> None:
        g = generator(p, m, n, k, r)
        self.x = normal(g, p, m, k).to(DEVICE, dtype)
        self.weights = [(normal(g, n, k) / max(k, 1) ** 0.5).to(DEVICE, dtype) for _ in range(r)]
        self.c = coefficients(g, p, r).to(DEVICE) if p else torch.zeros(0, r, dtype=torch.float64, device=DEVICE)
        self.scale, self.shift = normal(g, p, n).to(DEVICE), normal(g, p, n).to(DEVICE)
        self.residual = normal(g, p, m, n).to(DEVICE, dtype)

    def keywords(self, activation: str = "relu") -> dict[str, Any]:
        after = {"scale": self.scale, "shift": self.shift, "residual": self.residual}
        return {**after, "activation": activation}


def blended(weights: list[Tensor], c: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensordot(c, torch.stack(weights).double(), 1).to(dtype)


def check(actual: Tensor, case: Case, tf32: bool = False, **after: Any) -> None:
    """Against the same rounded operands multiplied in float64, and by PyTorch."""
    epilogue = Epilogue(**after)
    w = blended(case.weights, case.c, case.x.dtype)
    vendor, exact = [], []
    for p in range(len(case.x)):
        point = epilogue.point(p)
        wide = Epilogue(*(None if t is None else t.double() for t in point[:3]), point.activation)
        product = case.x[p] @ w[p].T
        if tf32:
            product = _truncated(case.x[p]) @ _truncated(w[p]).T
        product = product.float()
        vendor.append(apply(product, point, -1).to(actual.dtype))
        exact.append(apply(case.x[p].double() @ w[p].double().T, wide, -1))
    assert not actual.isnan().any()
    assert_as_exact_as_torch(actual, torch.stack(exact), torch.stack(vendor))


def _truncated(t: Tensor) -> Tensor:
    return (t.view(torch.int32) & -8192).view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("p", "m", "n", "k"), SIZES, ids=str)
@pytest.mark.usefixtures("tiles")
def test_products_are_exact(p: int, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    for r in (2, 3) if k == 45 else (2,):
        case = Case(p, m, n, k, r, dtype)
        out = torch.full((p, m, n), torch.nan, dtype=dtype, device=DEVICE)
        assert linear(case.x, case.weights, case.c, out=out, **case.keywords()) is out
        check(out, case, **case.keywords())


@pytest.mark.parametrize("r", [1, 4, 5])
def test_any_number_of_anchors(r: int) -> None:
    case = Case(3, 18, 20, 40, r)
    check(linear(case.x, case.weights, case.c), case)


@pytest.mark.parametrize(("p", "m", "n", "k"), SIZES[:2], ids=str)
def test_tf32_rounds_to_nearest(p: int, m: int, n: int, k: int) -> None:
    case = Case(p, m, n, k, 2)
    check(linear(case.x, case.weights, case.c, tf32=True), case, tf32=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    case = Case(2, 5, 19, 17, 2)
    check(linear(case.x, case.weights, case.c, **case.keywords(activation)), case, **case.keywords(activation))


@pytest.mark.parametrize("given", ["scale", "shift", "residual"])
def test_any_part_of_the_epilogue_alone(given: str) -> None:
    case = Case(3, 5, 19, 17, 2)
    after = {given: getattr(case, given)}
    check(linear(case.x, case.weights, case.c, **after), case, **after)


@pytest.mark.usefixtures("tiles")
def test_an_input_that_all_points_share() -> None:
    case = Case(5, 18, 70, 45, 2)
    own = case.x[:1].expand(5, -1, -1)
    assert torch.equal(linear(case.x[0], case.weights, case.c), linear(own, case.weights, case.c))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("tiles")
def test_one_hot_inputs_give_the_blended_weight(dtype: torch.dtype) -> None:
    case = Case(3, 1, 70, 45, 2, dtype)
    x = torch.eye(45, device=DEVICE, dtype=dtype).expand(3, -1, -1)
    actual, expected = linear(x, case.weights, case.c), blend(case.weights, case.c, dtype).mT
    if GPU and dtype == torch.float32:  # the two TF32 parts of a weight hold 22 of its 24 bits
        torch.testing.assert_close(actual, expected, rtol=2.0**-21, atol=0)
    else:
        assert torch.equal(actual, expected)


def test_wide_weights_are_rounded_after_blending() -> None:
    case = Case(3, 1, 20, 45, 2)
    x = torch.eye(45, device=DEVICE, dtype=torch.float16).expand(3, -1, -1)
    assert torch.equal(linear(x, case.weights, case.c), blend(case.weights, case.c, torch.float16).mT)


def test_a_wide_result_is_not_rounded() -> None:
    case = Case(2, 5, 19, 17, 2, torch.float16)
    out = torch.full((2, 5, 19), torch.nan, device=DEVICE)
    linear(case.x, case.weights, case.c, out=out)
    assert torch.equal(out.half(), linear(case.x, case.weights, case.c))
    assert not torch.equal(out, out.half().float())


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("hole", [torch.nan, torch.inf])
@pytest.mark.usefixtures("tiles")
def test_endpoints_are_one_anchor_alone(hole: float, tf32: bool) -> None:
    case = Case(3, 18, 70, 45, 2)
    first, second = case.weights
    ends = torch.tensor([[1, 0], [0, 1], [0.5, 0.5]], dtype=torch.float64, device=DEVICE)
    one = torch.ones(1, 1, dtype=torch.float64, device=DEVICE)
    out = linear(case.x, [first, torch.full_like(second, hole)], ends, tf32=tf32)
    assert torch.equal(out[:1], linear(case.x[:1], [first], one, tf32=tf32))
    assert not out[1:].isfinite().any()
    out = linear(case.x, [torch.full_like(first, hole), second], ends, tf32=tf32)
    assert torch.equal(out[1:2], linear(case.x[1:2], [second], one, tf32=tf32))


@pytest.mark.parametrize("m", [3, 40])
@pytest.mark.usefixtures("tiles")
def test_a_point_stands_alone(m: int) -> None:
    case = Case(5, m, 19, 45, 2)
    together = linear(case.x, case.weights, case.c, activation="gelu")
    turned = linear(case.x.flip(0), case.weights, case.c.flip(0), activation="gelu")
    assert torch.equal(turned, together.flip(0))
    for p in range(5):
        own = slice(p, p + 1)
        assert torch.equal(linear(case.x[own], case.weights, case.c[own], activation="gelu")[0], together[p])


def prologue(p: int, m: int, k: int, r: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Products, coefficients, scale, shift."""
    g = generator(p, m, k, r)
    products = [normal(g, m, k).to(DEVICE) for _ in range(r)]
    return products, coefficients(g, p, r).to(DEVICE), normal(g, p, k).to(DEVICE), normal(g, p, k).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_prologue_is_combine_bit_for_bit(activation: str, dtype: torch.dtype) -> None:
    products, first, scale, shift = prologue(3, 18, 45, 2)
    case = Case(3, 18, 20, 45, 2, dtype)
    x = combine(products, first, scale=scale, shift=shift, activation=activation, dtype=dtype)
    expected = linear(x, case.weights, case.c, **case.keywords())
    actual = linear_of_products(products, first, scale, shift, activation, case.weights, case.c, **case.keywords())
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("forced", [pytest.param(False, marks=needs_gpu), True], ids=["default", "many-tiles"])
@pytest.mark.parametrize(("p", "m", "n", "k", "r"), [(1, 1, 1, 1, 1), (3, 70, 33, 64, 3), (2, 20, 70, 45, 5)])
def test_the_prologue_in_other_shapes(p: int, m: int, n: int, k: int, r: int, forced: bool) -> None:
    """Interpreted, NumPy sums tiles of different sizes in different orders; a matrix unit does not."""
    products, first, _, shift = prologue(p, m, k, r)
    case = Case(p, m, n, k, 2)
    with contextlib.ExitStack() as stack:
        for kernel in ("linear", "linear_of_products") if forced else ():
            stack.enter_context(launching.forced(kernel, SPLIT))
        expected = linear(combine(products, first, shift=shift, dtype=torch.float32), case.weights, case.c)
        assert torch.equal(linear_of_products(products, first, None, shift, "none", case.weights, case.c), expected)


def test_the_prologue_leaves_out_a_product_of_coefficient_zero() -> None:
    products, _, scale, shift = prologue(2, 18, 45, 2)
    products[1].fill_(torch.nan)
    first = torch.tensor([[1, 0], [0.5, 0.5]], dtype=torch.float64, device=DEVICE)
    case = Case(2, 18, 20, 45, 2)
    out = linear_of_products(products, first, scale, shift, "relu", case.weights, case.c)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize(("p", "m", "n"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_sizes_give_empty_results(p: int, m: int, n: int) -> None:
    case = Case(p, m, n, 5, 2)
    assert linear(case.x, case.weights, case.c).shape == (p, m, n)


def test_without_depth_the_epilogue_is_left() -> None:
    case = Case(2, 3, 4, 0, 2)
    assert torch.equal(linear(case.x, case.weights, case.c, shift=case.shift), case.shift[:, None].expand(-1, 3, -1))


def test_what_does_not_fit_is_refused() -> None:
    case = Case(3, 5, 7, 11, 2)
    x, w, c = case.x, case.weights, case.c
    with pytest.raises(ValueError, match="x has shape"):
        linear(x[:2], w, c)
    with pytest.raises(ValueError, match=r"weights\[1\] has shape"):
        linear(x, [w[0], w[1][:6]], c)
    with pytest.raises(ValueError, match="not contiguous"):
        linear(x.mT.contiguous().mT, w, c)
    with pytest.raises(ValueError, match=r"coefficients is torch\.float32"):
        linear(x, w, c.float())
    with pytest.raises(ValueError, match="compute dtype"):
        linear(x.double(), [t.double() for t in w], c)
    with pytest.raises(ValueError, match="weights have to be"):
        linear(x, [t.half() for t in w], c)
    with pytest.raises(ValueError, match="out has shape"):
        linear(x, w, c, out=x)
    with pytest.raises(ValueError, match="activation"):
        linear(x, w, c, activation="cube")


def test_stages_fit_the_shared_memory() -> None:
    blocks = {**SPLIT, "num_stages": 4}
    stage = (8 * 64 + 4 * 32) * 32
    assert stages_that_fit(blocks, 8, 4, 0, 4 * stage) == 4
    assert stages_that_fit(blocks, 8, 4, 0, 3 * stage - 1) == 2
    assert stages_that_fit(blocks, 8, 4, 8, 2 * stage) == 1
    assert stages_that_fit(blocks, 800, 4, 8, 2 * stage) == 1


@needs_gpu
def test_tuning_keeps_a_configuration_that_is_right(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLI_FAST_CACHE", str(tmp_path))
    case = Case(4, 16, 256, 256, 2, torch.bfloat16)
    outcomes = tune_linear(case.x, case.weights, case.c)
    assert any(isinstance(ms, float) for _, ms in outcomes)
    assert "wrong values" not in [ms for _, ms in outcomes]
    check(linear(case.x, case.weights, case.c), case)


@needs_gpu
def test_a_product_can_be_captured_and_replayed() -> None:
    case = Case(3, 20, 70, 48, 2)
    linear(case.x, case.weights, case.c)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear(case.x, case.weights, case.c)
    case.c.copy_(case.c.flip(0))
    graph.replay()
    assert torch.equal(out, linear(case.x, case.weights, case.c))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [16, 64, 128, 600])
def test_large_products_come_out_the_same_every_time(m: int, dtype: torch.dtype) -> None:
    """A race between products in flight and the blend of the next block would show here."""
    case = Case(6, m, 512, 2048, 2, dtype)
    first = linear(case.x, case.weights, case.c)
    check(first, case)
    for _ in range(20):
        assert torch.equal(linear(case.x, case.weights, case.c), first)
