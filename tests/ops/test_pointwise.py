"""blend, folded batch norms and cross entropy against float64, on every route and backend, in ragged shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mli_fast.ops.backend import requested
from mli_fast.ops.blend import blend
from mli_fast.ops.cross_entropy import cross_entropy
from mli_fast.ops.norm import fold_batch_norm

from .cases import BACKENDS, assert_as_exact_as_torch, blended, coefficients, generator, normal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("anchors", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (17, 5), (2, 3, 7)], ids=str)
def test_blend_is_rounded_once(shape: tuple[int, ...], anchors: int, backend: str, dtype: torch.dtype) -> None:
    g = generator(anchors, *shape)
    c = coefficients(g, 3, anchors)
    tensors = [normal(g, *shape).to(torch.float64 if dtype == torch.float64 else torch.float32) for _ in range(anchors)]
    with requested(backend):
        ours = blend(tensors, c, dtype)
    exact = torch.stack([blended(tensors, row, torch.float64) for row in c])
    assert ours.dtype == dtype
    size = sum(c.abs().max() * t.double().abs() for t in tensors)
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert ((ours.double() - exact).abs() <= 2 * anchors * wide * size + torch.finfo(dtype).eps * exact.abs()).all()


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_batch_norm_folds_into_scale_and_shift(affine: bool) -> None:
    g = generator(7)
    x, mean, var = normal(g, 5, 11, 3), normal(g, 11), normal(g, 11).exp()
    w, b = (normal(g, 11), normal(g, 11)) if affine else (None, None)
    scale, shift = fold_batch_norm(mean, var, w, b, 1e-5)
    parts = [None if t is None else t.double() for t in (mean, var, w, b)]
    exact = F.batch_norm(x.double(), *parts, False, 0.0, 1e-5)
    theirs = F.batch_norm(x, mean, var, w, b, False, 0.0, 1e-5)
    assert_as_exact_as_torch(x * scale[:, None] + shift[:, None], exact, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 17, 10), (1, 1, 1), (2, 0, 4), (2, 5, 1003), (4, 101, 7)], ids=str)
def test_cross_entropy_is_as_exact_as_torch(shape: tuple[int, ...], backend: str) -> None:
    _, m, classes = shape
    g = generator(*shape)
    logits, targets = 5 * normal(g, *shape), torch.randint(0, classes, (m,), generator=g)
    targets[: m // 3] = -100
    with requested(backend):
        losses, predictions = cross_entropy(logits, targets)
    assert losses.dtype == torch.float64
    assert torch.equal(predictions, logits.argmax(-1))
    if m:
        exact, theirs = (
            torch.stack([F.cross_entropy(z.to(d), targets, reduction="none") for z in logits])
            for d in (torch.float64, torch.float32)
        )
        assert_as_exact_as_torch(losses, exact, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_of_nan_is_nan_and_of_huge_logits_finite(backend: str) -> None:
    logits = torch.tensor([[[1e38, -1e38, 0.0], [float("nan"), 0.0, 1.0], [0.0, 0.0, 0.0]]])
    with requested(backend):
        losses, predictions = cross_entropy(logits, torch.tensor([0, 1, 2]))
    assert losses[0, 0] == 0.0
    assert losses[0, 1].isnan()
    assert losses[0, 2] == pytest.approx(1.0986122886681098, rel=1e-7)
    assert predictions[0, 2] == 0
