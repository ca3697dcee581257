"""The compiled kernels against fp64 references, and bitwise where the contract is bitwise."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product as combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast import native
from mli_fast.native.loading import gomp_parallel
from mli_fast.ops.epilogue import ACTIVATIONS
from tests.native.helpers import (
    DTYPES,
    assert_as_good_as_torch,
    channels_last,
    mixed,
    needs_kernels,
    normal,
    one,
    poisoned,
)

pytestmark = needs_kernels

# -------------------------------------------------------------------------------------------------------------- linear

LINEAR = [(1, 1, 1, 1), (2, 7, 13, 5), (3, 53, 331, 37), (1, 0, 3, 4), (2, 11, 0, 3), (0, 3, 4, 5), (2, 97, 64, 10)]
LINEAR += [(1, 50, 700, 17), (2, 5, 24, 131)]


def linear_id(case: tuple[int, ...]) -> str:
    return "P{}-M{}-K{}-N{}".format(*case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("anchor_count", [1, 2, 3, 5])
@pytest.mark.parametrize("case", LINEAR, ids=linear_id)
def test_linear_with_every_epilogue_term(
    isa: str, case: tuple[int, ...], anchor_count: int, dtype: torch.dtype
) -> None:
    points, rows, depth, columns = case
    x = normal(points, rows, depth, dtype=dtype)
    anchors = [normal(columns, depth, dtype=dtype, seed=r + 1) for r in range(anchor_count)]
    coefficients = normal(points, anchor_count, dtype=torch.float64, seed=9)
    scale, shift = normal(points, columns, dtype=dtype, seed=10), normal(points, columns, dtype=dtype, seed=11)
    residual = normal(points, rows, columns, dtype=dtype, seed=12)
    weight = mixed(anchors, coefficients)

    def model(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return F.relu((x @ w.mT) * scale[:, None] + shift[:, None] + residual)

    out = poisoned(points, rows, columns, dtype=dtype)
    native.linear(x, anchors, coefficients, scale=scale, shift=shift, residual=residual, activation="relu", out=out)
    vendor = model(x, weight.to(dtype), scale, shift, residual)
    reference = model(x.double(), weight, scale.double(), shift.double(), residual.double())
    assert_as_good_as_torch(out, vendor, reference)


@pytest.mark.parametrize(
    "terms", list(combinations((0, 1, 2), (0, 1, 2), (0, 1, 2))), ids=lambda t: "scale{}-shift{}-residual{}".format(*t)
)
def test_epilogue_terms_absent_shared_and_per_point(isa: str, terms: tuple[int, int, int]) -> None:
    x, anchors, c = (
        normal(2, 9, 20),
        [normal(19, 20, seed=1), normal(19, 20, seed=2)],
        normal(2, 2, dtype=torch.float64),
    )
    shapes = [((19,), (2, 19)), ((19,), (2, 19)), ((9, 19), (2, 9, 19))]
    scale, shift, residual = (normal(*shapes[i][t - 1], seed=20 + i) if t else None for i, t in enumerate(terms))
    expected = x.double() @ mixed(anchors, c).mT
    expected = expected if scale is None else expected * scale.double().view(-1, 1, 19)
    expected = expected if shift is None else expected + shift.double().view(-1, 1, 19)
    expected = expected if residual is None else expected + residual.double()
    actual = native.linear(x, anchors, c, scale=scale, shift=shift, residual=residual)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_hot_input_gives_the_blended_weight_bit_for_bit(isa: str, dtype: torch.dtype) -> None:
    anchors = [normal(37, 41, dtype=dtype, seed=r) for r in range(3)]
    coefficients = normal(2, 3, dtype=torch.float64, seed=4)
    actual = native.linear(torch.eye(41, dtype=dtype), anchors, coefficients, shared=True)
    weights = [poisoned(37, 41, dtype=dtype) for _ in range(2)]
    native.blend(weights, [anchors, anchors], coefficients)
    assert torch.equal(actual, torch.stack([w.T for w in weights]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coefficient_zero_leaves_a_nan_anchor_out_and_one_is_exact(isa: str, dtype: torch.dtype) -> None:
    good, bad = normal(21, 30, dtype=dtype), torch.full((21, 30), torch.nan, dtype=dtype)
    eye = torch.eye(30, dtype=dtype)
    for anchors, c in (([good, bad], (1, 0)), ([bad, good], (0, 1)), ([bad, good, bad], (0, 1, -0.0)), ([good], (1,))):
        assert torch.equal(native.linear(eye, anchors, one(c), shared=True)[0], good.T)
        assert torch.equal(native.combine(anchors, one(c))[0], good)
        out = poisoned(21, 30, dtype=dtype)
        native.blend([out], [anchors], one(c))
        assert torch.equal(out, good)
    assert native.linear(eye, [good, bad], one((0.5, 0.5)), shared=True).isnan().all()
    assert torch.equal(native.linear(eye, [bad, bad], one((0, 0)), shared=True), torch.zeros(1, 30, 21, dtype=dtype))


def test_a_row_and_a_point_stand_alone(isa: str, threads: None) -> None:
    points, rows, depth, columns = 3, 131, 333, 45
    x, anchors = normal(points, rows, depth), [normal(columns, depth, seed=1), normal(columns, depth, seed=2)]
    coefficients = normal(points, 2, dtype=torch.float64, seed=3)
    torch.set_num_threads(1)
    whole = native.linear(x, anchors, coefficients, activation="gelu")
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert torch.equal(native.linear(x, anchors, coefficients, activation="gelu"), whole)
    for point, rows_taken in ((0, slice(0, 1)), (1, slice(5, 5 + 13)), (2, slice(130, 131)), (1, slice(1, 131))):
        part = x[point : point + 1, rows_taken].contiguous()
        alone = native.linear(part, anchors, coefficients[point : point + 1], activation="gelu")
        assert torch.equal(alone[0], whole[point, rows_taken])


def test_nan_and_infinity_pass_through_relu(isa: str) -> None:
    x = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [torch.inf, 1.0], [-torch.inf, 1.0]])
    actual = native.linear(x, [torch.ones(3, 2)], one([1.0]), activation="relu", shared=True)
    assert torch.equal(
        actual.nan_to_num(nan=7.0)[0, :, 0], torch.tensor([1.0, 7.0, torch.finfo(torch.float32).max, 0.0])
    )


# ---------------------------------------------------------------------------------------------------------------- conv

CONV = {
    "2d-3x3-pad1": ((2, 5, 9, 7), (6, 5, 3, 3), (1, 1), (1, 1), (1, 1)),
    "2d-3x3-stride2": ((3, 16, 11, 11), (17, 16, 3, 3), (2, 2), (1, 1), (1, 1)),
    "2d-many-channels": ((1, 337, 5, 5), (11, 337, 3, 3), (1, 1), (1, 1), (1, 1)),
    "2d-64-channels": ((2, 64, 6, 6), (35, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
    "2d-one-channel": ((4, 1, 12, 10), (10, 1, 5, 5), (1, 1), (2, 0), (1, 1)),
    "2d-1x1": ((2, 33, 5, 4), (7, 33, 1, 1), (1, 1), (0, 0), (1, 1)),
    "2d-patches": ((2, 3, 16, 16), (20, 3, 8, 8), (8, 8), (0, 0), (1, 1)),
    "2d-dilated-uneven": ((1, 20, 13, 9), (5, 20, 3, 2), (2, 1), (3, 1), (2, 3)),
    "1d": ((2, 18, 31), (9, 18, 5), (2,), (2,), (1,)),
    "3d": ((2, 4, 5, 6, 7), (8, 4, 3, 1, 2), (1, 2, 1), (1, 0, 1), (1, 1, 1)),
    "no-images": ((0, 4, 5, 5), (3, 4, 3, 3), (1, 1), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["per-point", "shared"])
@pytest.mark.parametrize("case", CONV)
def test_conv(isa: str, case: str, shared: bool, dtype: torch.dtype) -> None:
    x_shape, w_shape, stride, padding, dilation = CONV[case]
    points, batch, columns = 2, x_shape[0], w_shape[0]
    x = channels_last(normal(batch if shared else points * batch, *x_shape[1:], dtype=dtype))
    anchors = [channels_last(normal(*w_shape, dtype=dtype, seed=r + 1)) for r in range(2)]
    coefficients = normal(points, 2, dtype=torch.float64, seed=5)
    scale, shift = normal(points, columns, dtype=dtype, seed=6), normal(columns, dtype=dtype, seed=7)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    weight = mixed(anchors, coefficients)

    def model(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        tail = (-1, *(1,) * len(stride))
        inputs = [x] * points if shared else list(x.split(batch)) if batch else [x] * points
        outs = [convolve(inputs[p], w[p], None, stride, padding, dilation) * scale[p].view(tail) for p in range(points)]
        return torch.cat(outs) + shift.view(tail)

    vendor = model(x, weight.to(dtype), scale, shift)
    reference = model(x.double(), weight, scale.double(), shift.double())
    residual = channels_last(normal(*reference.shape, dtype=dtype, seed=8))
    actual = native.conv(
        x,
        anchors,
        coefficients,
        stride=stride,
        padding=padding,
        dilation=dilation,
        scale=scale,
        shift=shift,
        residual=residual,
        activation="relu",
        shared=shared,
    )
    assert actual.movedim(1, -1).is_contiguous()
    assert_as_good_as_torch(actual, F.relu(vendor + residual), F.relu(reference + residual.double()))


@pytest.mark.parametrize("channels", [3, 40], ids=["gathered", "indirect"])
def test_an_image_stands_alone(isa: str, channels: int, threads: None) -> None:
    x, anchors = (
        channels_last(normal(5, channels, 7, 9)),
        [channels_last(normal(19, channels, 3, 3, seed=r)) for r in (1, 2)],
    )
    settings = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    torch.set_num_threads(2)
    whole = native.conv(x, anchors, one((0.3, 0.7)), **settings)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    for i in range(5):
        alone = native.conv(channels_last(x[i : i + 1].clone()), anchors, one((0.3, 0.7)), **settings)  # type: ignore[arg-type]
        assert torch.equal(alone[0], whole[i])


# ------------------------------------------------------------------------------------------------------------- combine


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_over_the_whole_range(isa: str, activation: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-20, 20, 40_001), torch.logspace(-30, 30, 999), -torch.logspace(-30, 30, 999)])
    x = x.sort().values.to(dtype)[None]
    actual = native.combine([x], one([1.0]), activation=activation)[0]
    reference = ACTIVATIONS[activation](x.double())
    vendor = (ACTIVATIONS[activation](x).double() - reference).abs()
    vendor = F.max_pool1d(vendor / reference.abs().clamp(min=1e-300), 101, stride=1, padding=50) * reference.abs()
    eps = torch.finfo(dtype).eps
    allowed = 2 * vendor + 2 * eps * reference.abs() + torch.finfo(dtype).tiny
    if activation.startswith("gelu"):  # 1 + erf cancels for negative x, in the float64 reference as well
        allowed += (
            1.2e-8 if dtype == torch.float32 else 4 * eps * x.double().abs().clamp(max=10)
        )  # activation.hpp says so
    wrong = (actual.double() - reference).abs() > allowed
    assert not wrong.any(), (x[wrong][:5], actual[wrong][:5], reference[wrong][:5])
    assert native.combine([torch.full((1, 3), torch.nan, dtype=dtype)], one([1.0]), activation=activation).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("anchor_count", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (2, 300, 257), (4, 0, 5), (0, 2, 3), (2, 3, 20_001)], ids=str)
def test_combine(isa: str, shape: tuple[int, int, int], anchor_count: int, dtype: torch.dtype) -> None:
    points, rows, columns = shape
    products = [normal(rows, columns, dtype=dtype, seed=r) for r in range(anchor_count)]
    coefficients = normal(points, anchor_count, dtype=torch.float64, seed=7)
    shift, residual = normal(points, columns, dtype=dtype, seed=8), normal(rows, columns, dtype=dtype, seed=9)
    out = poisoned(points, rows, columns, dtype=dtype)
    native.combine(products, coefficients, shift=shift, residual=residual, activation="relu", out=out)
    vendor = torch.tensordot(coefficients.to(dtype), torch.stack(products), 1) + shift[:, None] + residual
    reference = mixed(products, coefficients) + shift[:, None].double() + residual.double()
    assert_as_good_as_torch(out, F.relu(vendor), F.relu(reference))


# --------------------------------------------------------------------------------------------------------------- blend


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("anchor_count", [1, 2, 3, 5])
def test_blend_of_many_sizes(isa: str, anchor_count: int, dtype: torch.dtype) -> None:
    shapes = [(0,), (1,), (3, 5), (70_001,), (), (0, 4), (129, 257), (7,)]
    anchors = [[normal(*s, dtype=dtype, seed=10 * t + r) for r in range(anchor_count)] for t, s in enumerate(shapes)]
    coefficients = normal(len(shapes), anchor_count, dtype=torch.float64, seed=99)
    outs = [poisoned(*s, dtype=dtype) for s in shapes]
    native.blend(outs, anchors, coefficients)
    for out, group, c in zip(outs, anchors, coefficients, strict=True):
        reference = mixed(group, c)
        vendor = sum((float(k) * a for k, a in zip(c, group, strict=True)), torch.zeros_like(out))
        assert_as_good_as_torch(out, vendor, reference)


def test_blend_takes_one_row_of_coefficients_for_all(isa: str) -> None:
    outs = [poisoned(5, dtype=torch.float32), poisoned(2, 3, dtype=torch.float32)]
    native.blend(outs, [[torch.ones_like(o), torch.full_like(o, 3.0)] for o in outs], torch.tensor([0.5, 0.5]).double())
    assert all(torch.equal(o, torch.full_like(o, 2.0)) for o in outs)


def test_a_blend_plan_follows_its_coefficients_and_anchors(isa: str) -> None:
    anchors, out = [normal(300), normal(300, seed=1)], poisoned(300, dtype=torch.float32)
    plan = native.BlendPlan([out], [anchors])
    plan(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(out, anchors[1])
    anchors[0].fill_(4.0)
    plan(one((0.5, 0.0)))
    assert torch.equal(out, torch.full((300,), 2.0))
    native.BlendPlan([], [])(torch.ones(2, dtype=torch.float64))


def test_blend_does_not_depend_on_threads(isa: str, threads: None) -> None:
    anchors, results = [normal(100_003), normal(100_003, seed=1)], []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(poisoned(100_003, dtype=torch.float32))
        native.blend(results[-1:], [anchors], one((0.3, 0.7)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# ------------------------------------------------------------------------------------------------------- cross entropy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["soft", "sharp"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 37, 2), (3, 4001, 10), (2, 17, 64), (2, 9, 65), (1, 5, 5003), (2, 0, 3)], ids=str
)
def test_cross_entropy(isa: str, shape: tuple[int, int, int], scale: float, dtype: torch.dtype) -> None:
    points, rows, classes = shape
    logits = normal(*shape, dtype=dtype) * scale
    targets = torch.arange(rows) * 7 % classes
    targets[1::5] = -100
    losses, predictions = native.cross_entropy(logits, targets)
    assert losses.dtype == torch.float64
    assert predictions.dtype == torch.int64
    for p in range(points):
        reference = F.cross_entropy(logits[p].double(), targets, reduction="none")
        vendor = F.cross_entropy(logits[p], targets, reduction="none")
        assert_as_good_as_torch(losses[p].to(dtype), vendor, reference)
        counted = targets != -100
        assert torch.equal(predictions[p], logits[p].argmax(-1))
        assert not losses[p][~counted].any()


@pytest.mark.parametrize("classes", [5, 10, 64, 100])
def test_cross_entropy_ties_nan_and_infinity(isa: str, classes: int) -> None:
    logits = normal(1, 6, classes)
    logits[0, 0, :] = 2.0  # ties: the first
    logits[0, 1, [3, 4]] = 50.0
    logits[0, 2, [2, 4]] = torch.nan  # the first NaN
    logits[0, 3, :] = -torch.inf
    logits[0, 4, 4] = torch.inf
    logits[0, 5, 1] = -torch.inf
    targets = torch.tensor([0, 3, 1, 0, 4, 0])
    losses, predictions = native.cross_entropy(logits, targets)
    assert predictions[0].tolist() == [0, 3, 2, 0, 4, int(logits[0, 5].argmax())]
    expected = F.cross_entropy(logits[0].double(), targets, reduction="none")
    torch.testing.assert_close(losses[0], expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("classes", [10, 200])
def test_cross_entropy_rows_points_and_threads(isa: str, classes: int, threads: None) -> None:
    logits, targets = normal(3, 2003, classes), torch.arange(2003) % classes
    torch.set_num_threads(1)
    whole = native.cross_entropy(logits, targets)
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(native.cross_entropy(logits, targets), whole, strict=True))
    alone = native.cross_entropy(logits[1:2].contiguous(), targets)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, whole, strict=True))
    rows = native.cross_entropy(logits[:, 3:20].contiguous(), targets[3:20])
    assert torch.equal(rows[0], whole[0][:, 3:20])


# ----------------------------------------------------------------------------------------------------- errors, loading


def test_bad_arguments_say_what_they_are() -> None:
    x, w, c = normal(1, 4, 3), [normal(5, 3)], one([1.0])
    bad = {
        r"anchors: expected .*\(5, 3\), got .*\(5, 4\)": lambda: native.linear(x, [w[0], normal(5, 4)], one((1, 0))),
        r"coefficients: expected .*\(1, 1\)": lambda: native.linear(x, w, one((1, 0))),
        r"contiguous": lambda: native.linear(normal(1, 3, 4).mT, w, c),
        r"float16": lambda: native.linear(x.half(), w, c),
        r"activation 'swish'": lambda: native.linear(x, w, c, activation="swish"),
        r"x: expected \[M, K\]": lambda: native.linear(x, w, c, shared=True),
        r"at least one": lambda: native.linear(x, [], torch.empty(1, 0, dtype=torch.float64)),
        r"targets\[1\] is 4": lambda: native.cross_entropy(x, torch.tensor([0, 4, 1, 1])),
        r"C > 0": lambda: native.cross_entropy(torch.empty(1, 2, 0), torch.tensor([0, 0])),
        r"2 outputs, but anchors for 1": lambda: native.blend([x, x], [[x]], c),
        r"1 anchors for tensor 1, 2 for the first": lambda: native.blend([x, x], [[x, x], [x]], one((1, 0))),
        r"coefficients: expected .*\(1, 1\), got .*\(1, 2\)": lambda: native.blend([x], [[x]], one((1, 0))),
        r"outs\[0\]: needs contiguous": lambda: native.blend([x.mT], [[x.mT.contiguous()]], c),
        r"products: expected \[M, N\]": lambda: native.combine([x], c),
        r"channels-last": lambda: native.conv(
            normal(1, 2, 3, 3), [channels_last(normal(1, 2, 1, 1))], c, stride=(1, 1), padding=(0, 0), dilation=(1, 1)
        ),
    }  # fmt: skip
    for message, call in bad.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    module = native.module()
    assert module is not None
    assert module.usable_isas()[0] == "portable"
    assert native.isa() in module.usable_isas()
    with pytest.raises(ValueError, match="usable: portable"):
        module.set_isa("quantum")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("MLI_FAST_NATIVE", "0", "none | switched off by MLI_FAST_NATIVE=0"),
        ("MLI_FAST_ISA", "portable", "portable | None"),
        ("MLI_FAST_ISA", "quantum", "'quantum' is not usable here"),
    ],
)
def test_environment(variable: str, value: str, expected: str) -> None:
    code = "from mli_fast import native; print(native.isa(), '|', native.why_missing())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, variable: value}, capture_output=True, text=True, check=True
    )
    assert expected in run.stdout


def test_without_openmp_threads_of_our_own_give_the_same(threads: None) -> None:
    code = (
        "import torch; from mli_fast import native; m = native.module(); torch.set_num_threads(3)\n"
        "x, w, c = torch.randn(2, 99, 64), [torch.randn(40, 64)] * 2, torch.rand(2, 2).double()\n"
        "a = native.linear(x, w, c); m.set_openmp(0); assert not m.has_openmp()\n"
        "print(torch.equal(a, native.linear(x, w, c)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what a process has mapped")
def test_threads_are_those_of_torch_whatever_other_runtimes_are_there() -> None:
    """Two pools of threads spin against each other; scikit-learn, for one, brings a runtime of its own."""
    pytest.importorskip("sklearn.utils._openmp_helpers")
    at = gomp_parallel()
    runtimes = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        region, *_, path = line.split(maxsplit=5)
        if Path(path).name.startswith(("libgomp", "libiomp", "libomp")):
            first, last = (int(end, 16) for end in region.split("-"))
            runtimes.setdefault(path, []).append(range(first, last))
    used = [path for path, regions in runtimes.items() if any(at in region for region in regions)]
    assert len(used) == 1
    assert "scikit_learn" not in used[0]
