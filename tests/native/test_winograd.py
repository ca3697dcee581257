"""The Winograd convolution: as accurate as the vendor's, and bitwise where the contract is bitwise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast import native
from mli_fast.ops.epilogue import ACTIVATIONS
from tests.native.helpers import (
    assert_as_good_as_torch,
    channels_last,
    mixed,
    needs_kernels,
    normal,
    one,
)

pytestmark = needs_kernels

# images, channels, height, width, columns, padding; at every stride
CASES = {
    "even": (3, 16, 8, 8, 16, (1, 1)),
    "odd-output": (2, 13, 9, 7, 19, (1, 1)),
    "one-pixel-out": (2, 5, 3, 3, 3, (0, 0)),
    "one-pixel-in": (2, 8, 1, 1, 4, (1, 1)),
    "one-channel-one-column": (1, 1, 6, 5, 1, (1, 1)),
    "no-padding": (2, 24, 10, 11, 40, (0, 0)),
    "uneven-wide-padding": (2, 9, 4, 5, 17, (3, 0)),
    "many-blocks": (9, 64, 14, 14, 35, (1, 1)),
    "channels-in-parts": (1, 1201, 4, 5, 9, (1, 1)),
    "columns-in-groups": (1, 530, 3, 4, 139, (1, 1)),
    "no-images": (0, 4, 5, 5, 3, (1, 1)),
    "empty-output": (2, 4, 2, 6, 3, (0, 1)),
}


@pytest.fixture(params=[1, 2], ids=["stride-1", "stride-2"])
def stride(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def winograd(
    x: Tensor,
    anchors: Sequence[Tensor],
    coefficients: Tensor,
    stride: int = 1,
    padding: Sequence[int] = (1, 1),
    **terms: object,
) -> Tensor:
    sizes = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1)}
    return native.conv(x, anchors, coefficients, **sizes, **terms, algorithm="winograd")  # type: ignore[arg-type]


def images(*shape: int, seed: int = 0) -> Tensor:
    return channels_last(normal(*shape, seed=seed))


def kernels(count: int, columns: int, channels: int) -> list[Tensor]:
    return [images(columns, channels, 3, 3, seed=10 + r) for r in range(count)]


@pytest.mark.parametrize("anchor_count", [1, 2, 5])
@pytest.mark.parametrize("shared", [False, True], ids=["per-point", "shared"])
@pytest.mark.parametrize("case", CASES)
def test_every_epilogue_term(isa: str, stride: int, case: str, shared: bool, anchor_count: int) -> None:
    batch, channels, height, width, columns, padding = CASES[case]
    points = 2
    x = images(batch if shared else points * batch, channels, height, width)
    anchors, c = kernels(anchor_count, columns, channels), normal(points, anchor_count, dtype=torch.float64, seed=5)
    scale, shift = normal(points, columns, seed=6), normal(columns, seed=7)
    sizes = ((size + 2 * p - 3) // stride + 1 for size, p in zip((height, width), padding, strict=True))
    out_shape = (points * batch, columns, *sizes)
    residual = images(*out_shape, seed=8)
    weight = mixed(anchors, c)

    def model(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        if not residual.numel():
            return residual
        inputs = [x] * points if shared else x.split(batch)
        outs = [F.conv2d(inputs[p], w[p], None, stride, padding) * scale[p].view(-1, 1, 1) for p in range(points)]
        return F.relu(torch.cat(outs) + shift.view(-1, 1, 1) + residual)

    actual = winograd(
        x, anchors, c, stride, padding, scale=scale, shift=shift, residual=residual, activation="relu", shared=shared
    )
    vendor = model(x, weight.float(), scale, shift, residual)
    reference = model(x.double(), weight, scale.double(), shift.double(), residual.double())
    assert actual.movedim(1, -1).is_contiguous()
    assert_as_good_as_torch(actual, vendor, reference)


@pytest.mark.parametrize("data", ["normal", "relu"])
@pytest.mark.parametrize("channels", [16, 64, 200])
def test_root_mean_square_error_is_at_most_twice_the_vendors(isa: str, stride: int, channels: int, data: str) -> None:
    x = images(4, channels, 14, 14)
    x = x.relu() if data == "relu" else x
    (weight,) = kernels(1, 32, channels)
    reference = F.conv2d(x.double(), weight.double(), stride=stride, padding=1)

    def error(actual: Tensor) -> float:
        return float((actual.double() - reference).square().mean().sqrt())

    vendor = F.conv2d(x, weight, stride=stride, padding=1)
    assert 0 < error(winograd(x, [weight], one([1.0]), stride)) <= 2 * error(vendor)


@pytest.mark.parametrize("terms", ["none", "scale", "shift", "scale-shift", "residual", "residual-shift"])
def test_absent_terms_change_no_bit(isa: str, stride: int, terms: str) -> None:
    x, anchors = images(2, 9, 5, 6), kernels(2, 21, 9)
    plain = winograd(x, anchors, one((0.25, 0.5)), stride)
    given: dict[str, Tensor] = {}
    expected = plain
    if "scale" in terms:  # a power of two: fused or not, rounding is the same
        given["scale"] = torch.full((21,), 2.0)
        expected = expected * 2
    if "shift" in terms:
        given["shift"] = normal(21, seed=3)
        expected = expected + given["shift"].view(-1, 1, 1)
    if "residual" in terms:
        given["residual"] = images(*plain.shape, seed=4)
        expected = expected + given["residual"]
    assert torch.equal(winograd(x, anchors, one((0.25, 0.5)), stride, **given), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa: str, stride: int, activation: str) -> None:
    x, anchors = images(2, 6, 5, 7), kernels(1, 19, 6)
    plain = winograd(x, anchors, one([1.0]), stride)
    actual = winograd(x, anchors, one([1.0]), stride, activation=activation)
    torch.testing.assert_close(actual, ACTIVATIONS[activation](plain), rtol=1e-6, atol=1e-6)


def test_an_impulse_gives_the_blended_kernel_of_small_integers_exactly(isa: str, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = [channels_last(torch.randint(-8, 8, (18, 3, 3, 3), generator=generator).float().mul(4)) for _ in range(2)]
    x = channels_last(torch.zeros(3, 3, 3, 3))
    for i in range(3):
        x[i, i, 1, 1] = 1
    weight = 0.5 * anchors[0] + 0.25 * anchors[1]
    expected = weight.flip(2, 3).movedim(1, 0)[:, :, ::stride, ::stride]
    assert torch.equal(winograd(x, anchors, one((0.5, 0.25)), stride), expected)


def test_coefficient_zero_leaves_a_nan_anchor_out_and_one_is_exact(isa: str, stride: int) -> None:
    (good,) = kernels(1, 20, 11)
    bad = torch.full_like(good, torch.nan)
    x = images(2, 11, 6, 5)
    alone = winograd(x, [good], one([1.0]), stride)
    for anchors, c in (([good, bad], (1, 0)), ([bad, good], (0, 1)), ([bad, good, bad], (0, 1, -0.0))):
        assert torch.equal(winograd(x, anchors, one(c), stride), alone)
    assert winograd(x, [good, bad], one((0.5, 0.5)), stride).isnan().all()
    assert torch.equal(winograd(x, [bad, bad], one((0, 0)), stride), torch.zeros_like(alone))
    both = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    points = winograd(x, [good, bad], both, stride, shared=True)
    assert torch.equal(points[:2], alone)
    assert points[2:].isnan().all()


def test_nan_stays_in_the_tiles_that_touch_its_pixel_and_passes_through_relu(isa: str, stride: int) -> None:
    x, anchors = images(2, 8, 24, 24), kernels(1, 16, 8)
    clean = winograd(x, anchors, one([1.0]), stride, activation="relu")
    x[1, 3, 12, 12] = torch.nan
    actual = winograd(x, anchors, one([1.0]), stride, activation="relu")
    touched = slice(12 // stride - 1 + stride // 2, 12 // stride + 3 - stride)  # outputs whose taps meet the pixel
    assert actual[1, :, touched, touched].isnan().all()
    far = torch.ones(actual.shape[2:], dtype=torch.bool)
    far[
        touched.start // 2 * 2 : touched.stop + touched.stop % 2,
        touched.start // 2 * 2 : touched.stop + touched.stop % 2,
    ] = False
    assert torch.equal(actual[0], clean[0])
    assert torch.equal(actual[1][:, far], clean[1][:, far])


@pytest.mark.parametrize("channels", [3, 40, 700])
def test_an_image_and_a_point_stand_alone(isa: str, stride: int, channels: int, threads: None) -> None:
    points, batch = 2, 11
    x, anchors = images(points * batch, channels, 7, 9), kernels(2, 19, channels)
    c = torch.tensor([[0.3, 0.7], [1.5, -0.5]], dtype=torch.float64)
    torch.set_num_threads(1)
    whole = winograd(x, anchors, c, stride, activation="relu")
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert torch.equal(winograd(x, anchors, c, stride, activation="relu"), whole)
    for point, first, taken in ((0, 0, 1), (0, 4, 3), (1, 10, 1), (1, 1, 10)):
        rows = slice(point * batch + first, point * batch + first + taken)
        alone = winograd(channels_last(x[rows].clone()), anchors, c[point : point + 1], stride, activation="relu")
        assert torch.equal(alone, whole[rows])


def test_no_channels_leave_the_shift(isa: str, stride: int) -> None:
    shift = normal(3, seed=1)
    actual = winograd(images(2, 0, 5, 5), kernels(2, 3, 0), one((0.5, 0.5)), stride, shift=shift)
    size = (5 - 1) // stride + 1
    assert torch.equal(actual, shift.view(-1, 1, 1).expand(2, 3, size, size))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": (2, 1)}, "stride"),
        ({"stride": (3, 3)}, "stride"),
        ({"dilation": (1, 2)}, "dilation"),
        ({"padding": (0, 1)}, "does not fit"),
        ({"algorithm": "fast"}, "expected .direct. or .winograd."),
    ],
    ids=["uneven-stride", "stride", "dilation", "too-small", "unknown"],
)
def test_what_it_does_not_take_is_an_error(change: dict[str, object], message: str) -> None:
    settings = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "algorithm": "winograd", **change}
    with pytest.raises(ValueError, match=message):
        native.conv(images(1, 4, 1, 6), kernels(1, 5, 4), one([1.0]), **settings)  # type: ignore[arg-type]


def test_float64_and_other_kernels_are_errors() -> None:
    with pytest.raises(ValueError, match="float64"):
        winograd(images(1, 4, 5, 5).double(), [k.double() for k in kernels(1, 5, 4)], one([1.0]))
    with pytest.raises(ValueError, match=r"kernel \(5, 3\)"):
        winograd(images(1, 4, 5, 5), [images(2, 4, 5, 3)], one([1.0]))
    with pytest.raises(ValueError, match="use direct"):
        native.conv(
            channels_last(normal(1, 4, 9)),
            [channels_last(normal(2, 4, 3))],
            one([1.0]),
            stride=(1,),
            padding=(1,),
            dilation=(1,),
            algorithm="winograd",
        )
