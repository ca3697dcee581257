"""Every layer of torch.nn and every functional that takes weights, judged as the zoo judges whole models.

The lists are held against PyTorch's own namespaces, so that a new name is noticed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import torch_layers
from benchmarks.zoo.judge import judged
from benchmarks.zoo.specimen import Specimen, against_noise

LAYERS = {entry.name: entry for entry in torch_layers.entries()}
C = 8
WEIGHTS = re.compile(r"\b\w*weight\w*|mat2|mat_b")  # what functionals call them

# name -> (the shapes of its weights, the call, the shape of an example)
Form = tuple[dict[str, tuple[int, ...]], Callable[..., Tensor], tuple[int, ...]]
ROWS, LINE, IMAGE, VOLUME = (C,), (C, 12), (C, 6, 6), (C, 4, 5, 6)
NORM = {"w": (C,), "b": (C,)}
CHOSEN = torch.arange(5) % 4  # classes of the losses


def _normed(call: Callable[..., Tensor], shape: tuple[int, ...] = IMAGE) -> Form:
    return NORM, lambda x, w, b: call(x, None, None, w, b, True), shape


def _loss(call: Callable[..., Tensor], weight: tuple[int, ...]) -> Form:
    """A loss of each example, whose class weights are a parameter."""

    def each(x: Tensor, head: Tensor, w: Tensor) -> Tensor:
        return call(torch.sigmoid(x @ head.T), w.abs() + 0.1)

    return {"head": (4, C), "w": weight}, each, ROWS


def _in_time(x: Tensor) -> Tensor:  # [B, C, T] -> [T, B, C]
    return x.permute(2, 0, 1).contiguous()


def _half(x: Tensor) -> Tensor:
    return torch.full_like(x, 0.5)


FUNCTIONALS: dict[str, Form] = {
    "linear": ({"w": (5, C), "b": (5,)}, F.linear, ROWS),
    "bilinear": ({"w": (5, C, C), "b": (5,)}, lambda x, w, b: F.bilinear(x, torch.tanh(x), w, b), ROWS),
    "conv1d": ({"w": (5, C, 3), "b": (5,)}, lambda x, w, b: F.conv1d(x, w, b, dilation=2), LINE),
    "conv2d": ({"w": (6, 4, 3, 3), "b": (6,)}, lambda x, w, b: F.conv2d(x, w, b, padding="same", groups=2), IMAGE),
    "conv3d": ({"w": (5, C, 2, 3, 3), "b": (5,)}, F.conv3d, VOLUME),
    "conv_tbc": (
        {"w": (3, C, 5), "b": (5,)}, lambda x, w, b: F.conv_tbc(_in_time(x), w, b, 1).transpose(0, 1), LINE),
    "conv_transpose1d": ({"w": (C, 5, 3), "b": (5,)}, lambda x, w, b: F.conv_transpose1d(x, w, b, 2), LINE),
    "conv_transpose2d": ({"w": (C, 3, 3, 3), "b": (6,)}, lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2), IMAGE),
    "conv_transpose3d": ({"w": (C, 5, 2, 2, 2), "b": (5,)}, F.conv_transpose3d, VOLUME),
    "embedding": ({"w": (9, C)}, lambda x, w: F.embedding((x * 3).long() % 9, w), ROWS),
    "embedding_bag": ({"w": (9, C), "s": (C,)}, lambda x, w, s: F.embedding_bag(
        (x * 3).long() % 9, w, mode="sum", per_sample_weights=s.expand_as(x).contiguous()), ROWS),
    "batch_norm": _normed(F.batch_norm),
    "instance_norm": _normed(F.instance_norm),
    "layer_norm": (NORM, lambda x, w, b: F.layer_norm(x, (C,), w, b), ROWS),
    "rms_norm": ({"w": (C,)}, lambda x, w: F.rms_norm(x, (C,), w), ROWS),
    "group_norm": (NORM, lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE),
    "prelu": ({"w": (C,)}, F.prelu, IMAGE),
    "multi_head_attention_forward": (
        {"q": (C, C), "k": (C, C), "v": (C, C), "bias": (3 * C,), "w": (C, C), "b": (C,)},
        lambda x, q, k, v, bias, w, b: F.multi_head_attention_forward(
            _in_time(x), _in_time(x), _in_time(x), C, 2, None, bias, None, None, False, 0.0, w, b,
            training=False, use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
        )[0].transpose(0, 1), LINE),
    "grouped_mm": (
        {"w": (2, C, C)},
        lambda x, w: F.grouped_mm(x, w, offs=torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)), ROWS),
    "linear_cross_entropy": (
        {"w": (4, C)}, lambda x, w: F.linear_cross_entropy(x, w, CHOSEN[:len(x)], reduction="none"), ROWS),
    "cross_entropy": _loss(lambda x, w: F.cross_entropy(x, CHOSEN[:len(x)], w, reduction="none"), (4,)),
    "nll_loss": _loss(lambda x, w: F.nll_loss(x.log(), CHOSEN[:len(x)], w, reduction="none"), (4,)),
    "multi_margin_loss": _loss(
        lambda x, w: F.multi_margin_loss(x, CHOSEN[:len(x)], weight=w, reduction="none"), (4,)),
    "binary_cross_entropy": _loss(lambda x, w: F.binary_cross_entropy(x, _half(x), w, reduction="none"), (4,)),
    "binary_cross_entropy_with_logits": _loss(
        lambda x, w: F.binary_cross_entropy_with_logits(x, _half(x), w, reduction="none", pos_weight=w), (4,)),
    "multilabel_soft_margin_loss": _loss(
        lambda x, w: F.multilabel_soft_margin_loss(x, _half(x), w, reduction="none"), (4,)),
    **{name: _loss(
        lambda x, w, loss=name: getattr(F, loss)(x, _half(x), reduction="none", weight=w.expand_as(x)), (4,))
       for name in ("mse_loss", "l1_loss", "huber_loss")},
}  # fmt: skip
ELSEWHERE = {"scaled_mm", "scaled_grouped_mm"}  # in 8 bits, on GPUs


class Applied(nn.Module):
    """A stem, the functional with weights of its own, a head that is not linear."""

    def __init__(self, name: str) -> None:
        super().__init__()
        shapes, self.call, _ = FUNCTIONALS[name]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape) / 3) for shape in shapes.values())
        self.stem = nn.Parameter(torch.randn(C, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * self.stem.view(C, *[1] * (x.ndim - 2))
        return torch.tanh(self.call(hidden, *self.weights)).reshape(len(x), -1)


def take_weights() -> set[str]:
    """The functionals whose signature names a weight."""
    found = set()
    for name, function in vars(F).items():
        if name.startswith("_") or not callable(function) or isinstance(function, type):
            continue
        try:
            signature = str(inspect.signature(function))
        except (TypeError, ValueError):  # built in: its first line says
            signature = (function.__doc__ or "").strip().split("\n")[0]
        if WEIGHTS.search(signature.split("->")[0]):
            found.add(name)
    return found


def _assert_right(specimen: Specimen) -> None:
    row = judged(specimen)
    assert row["status"] == "ok", {k: v for k, v in row.items() if k not in ("kernels", "seconds", "plain_seconds")}


def test_no_layer_and_no_functional_of_pytorch_is_missing() -> None:
    assert torch_layers.unlisted() == []
    assert take_weights() - FUNCTIONALS.keys() - ELSEWHERE == set()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_right_in_every_mode_and_company(name: str) -> None:
    _assert_right(LAYERS[name].make())


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_a_functional_with_weights_is_right_in_every_mode_and_company(name: str) -> None:
    if not hasattr(F, name):
        pytest.skip(f"this PyTorch has no {name}")
    torch.manual_seed(0)
    shape = FUNCTIONALS[name][2]
    _assert_right(against_noise(Applied(name), [torch.randn(n, *shape) for n in (5, 3)], [5, 3]))
