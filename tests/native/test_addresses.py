"""No kernel takes the address of a tensor whose memory does not hold its values: it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import requested
from mli_fast.ops.blend import blend
from mli_fast.ops.combine import combine
from mli_fast.ops.cross_entropy import cross_entropy
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import linear
from tests.native.helpers import channels_last, mixed, needs_kernels, normal
from tests.odd_tensors import expanded, freed, negative, shrunk, wrapped

pytestmark = needs_kernels

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": negative,
    "freed": freed,
    "freed-with-offset": lambda t: _second_half(torch.cat([t, t])),
    "shrunk": shrunk,
    "wrapped": wrapped,
    "expanded": expanded,
    "every-other": lambda t: torch.stack([t, t], -1)[..., 0],
}


def _second_half(tensor: Tensor) -> Tensor:
    half = tensor[len(tensor) // 2 :]
    tensor.untyped_storage().resize_(0)
    return half


def _conv(x: Tensor, w: Tensor, c: Tensor, residual: Tensor, **options: Any) -> Tensor:
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "shared": True, **options}
    return native.conv(x, [w, w], c, residual=residual, **geometry)


# Kernel -> a call of it, and the shapes of its operands.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "linear": (
        lambda x, w, c, scale, shift, residual, out: native.linear(
            x, [w, w], c, scale=scale, shift=shift, residual=residual, out=out
        ),
        {
            "x": (2, 5, 3), "w": (7, 3), "c": (2, 2),
            "scale": (7,), "shift": (2, 7), "residual": (5, 7), "out": (2, 5, 7),
        },
    ),
    "conv": (_conv, {"x": (2, 3, 5, 4), "w": (7, 3, 3, 3), "c": (2, 2), "residual": (2, 7, 5, 4)}),
    "winograd": (
        lambda **t: _conv(**t, algorithm="winograd"),
        {"x": (2, 3, 5, 4), "w": (7, 3, 3, 3), "c": (2, 2), "residual": (2, 7, 5, 4)},
    ),
    "combine": (
        lambda w, c, scale, out: native.combine([w, w], c, scale=scale, out=out),
        {"w": (5, 7), "c": (2, 2), "scale": (2, 7), "out": (2, 5, 7)},
    ),
    "blend": (lambda w, c, out: native.blend([out], [[w, w]], c), {"w": (5, 7), "c": (1, 2), "out": (5, 7)}),
    "cross-entropy": (lambda x: native.cross_entropy(x, torch.zeros(5, dtype=torch.int64)), {"x": (2, 5, 7)}),
    "chain": (
        lambda x, w, c, shift, residual, out: native.chain(
            x, [native.Blended([w, w], c, shift=shift)], residual=residual, out=out
        ),
        {"x": (2, 5, 3), "w": (7, 3), "c": (2, 2), "shift": (2, 7), "residual": (2, 5, 7), "out": (2, 5, 7)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("kernel", CALLS)
def test_every_operand_in_every_form_that_memory_does_not_hold(kernel: str, form: str) -> None:
    call, shapes = CALLS[kernel]
    operands = {
        name: normal(*shape, dtype=torch.float64 if name == "c" else torch.float32, seed=i)
        for i, (name, shape) in enumerate(shapes.items())
    }
    operands = {name: channels_last(t) if t.dim() == 4 else t for name, t in operands.items()}
    call(**operands)
    for name, tensor in operands.items():
        with pytest.raises(ValueError, match=r"view|freed|elsewhere|contiguous|channels-last"):
            call(**{**operands, name: REFUSED[form](tensor)})


def test_targets_likewise() -> None:
    logits, targets = normal(2, 5, 7), torch.arange(5)
    for form in ("negative", "freed", "wrapped", "expanded"):
        with pytest.raises(ValueError, match="targets: "):
            native.cross_entropy(logits, REFUSED[form](targets))


def test_a_freed_anchor_is_refused_even_where_its_coefficient_is_zero() -> None:
    with pytest.raises(ValueError, match=r"anchors: needs contiguous CPU memory, got cpu, layout torch.sparse_coo"):
        native.linear(normal(1, 2, 3), [normal(4, 3).to_sparse()], torch.ones(1, 1).double())
    with pytest.raises(ValueError, match=r"anchors: a tensor whose storage was freed"):
        native.linear(normal(1, 2, 3), [normal(4, 3), freed(normal(4, 3))], torch.tensor([[1.0, 0.0]]).double())


@pytest.mark.parametrize(
    "geometry",
    [{"stride": (0, 1)}, {"stride": (-1, 1)}, {"padding": (-1, 0)}, {"dilation": (0, 1)}, {"stride": (1,)}, "kernel"],
    ids=["stride-0", "stride-negative", "padding-negative", "dilation-0", "one-stride", "kernel-empty"],
)
def test_geometries_that_are_no_convolution(geometry: Any) -> None:
    x, w = channels_last(normal(1, 3, 5, 5)), channels_last(normal(2, 3, *((0, 3) if geometry == "kernel" else (3, 3))))
    usual = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    for algorithm in ("direct", "winograd"):
        with pytest.raises(ValueError, match=r"conv|winograd|zip"):
            native.conv(
                x,
                [w],
                torch.ones(1, 1).double(),
                algorithm=algorithm,
                **(usual if geometry == "kernel" else {**usual, **geometry}),
            )


def test_scalars_where_weights_are_expected() -> None:
    x, c, scalar = normal(1, 2, 3), torch.ones(1, 1).double(), torch.tensor(1.0)
    for call in (
        lambda: native.linear(x, [scalar], c),
        lambda: native.chain(x, [native.Blended([scalar], c)]),
        lambda: native.chain(x, [native.Blended([normal(4, 3)], scalar.double())]),
        lambda: native.combine([scalar], c),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


# --------------------------------------------------------------- ops resolve, or leave to PyTorch, what kernels refuse


@pytest.mark.parametrize("form", ["negative", "expanded", "every-other"])
def test_ops_give_such_tensors_their_values(form: str) -> None:
    odd, c = REFUSED[form], normal(2, 2, dtype=torch.float64, seed=9)
    x, weights = odd(normal(2, 5, 3)), [odd(normal(7, 3, seed=1)), normal(7, 3, seed=2)]
    shift, residual = odd(normal(2, 7, seed=3)), odd(normal(2, 5, 7, seed=4))
    after = Epilogue(None, shift, residual, "none")
    added = shift.double()[:, None] + residual.double()
    targets = odd(torch.arange(1, 6) % 7)
    with requested("native", False):
        found = {
            "linear": (linear(x, weights, c, after), x.double() @ mixed(weights, c).mT + added),
            "combine": (
                combine([x[0], x[1]], c, Epilogue(), -1, torch.float32),
                torch.tensordot(c, torch.stack([x[0], x[1]]).double(), 1),
            ),
            "blend": (blend(weights, c, torch.float32), mixed(weights, c)),
            "cross_entropy": (
                cross_entropy(residual, targets)[0],
                torch.stack(
                    [torch.nn.functional.cross_entropy(r.double(), targets, reduction="none") for r in residual]
                ),
            ),
        }
    for actual, expected in found.values():
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
