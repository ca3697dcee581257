"""blend, norms and cross entropy against float64, on every route and backend, in ragged shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mli_fast.ops.backend import requested
from mli_fast.ops.blend import blend_op
from mli_fast.ops.cross_entropy import cross_entropy, cross_entropy_op
from mli_fast.ops.norm import fold_batch_norm, norm_op

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
        ours = torch.vmap(lambda row: blend_op(tensors, row, dtype))(c)
    exact = torch.stack([blended(tensors, row, torch.float64) for row in c])
    assert ours.dtype == dtype
    size = sum(c.abs().max() * t.double().abs() for t in tensors)
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert ((ours.double() - exact).abs() <= 2 * anchors * wide * size + torch.finfo(dtype).eps * exact.abs()).all()


NORMS = {
    "layer": ((5, 7), [7], (7,)),
    "rms": ((2, 3, 11), [11], (11,)),
    "group": ((3, 6, 5), [3], (6,)),
    "instance": ((2, 4, 9), [], (4,)),
}


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("kind", NORMS)
def test_norm_under_vmap_is_the_norm_of_each_point(kind: str, affine: bool) -> None:
    shape, sizes, channels = NORMS[kind]
    g = generator(len(kind))
    x, w, b = normal(g, 4, *shape), normal(g, 4, *channels), normal(g, 4, *channels)
    bias = affine and kind != "rms"

    def plain(p: int, dtype: torch.dtype) -> torch.Tensor:
        xp, wp, bp = x[p].to(dtype), w[p].to(dtype) if affine else None, b[p].to(dtype) if bias else None
        return {
            "layer": lambda: F.layer_norm(xp, sizes, wp, bp, 1e-5),
            "rms": lambda: F.rms_norm(xp, sizes, wp, 1e-5),
            "group": lambda: F.group_norm(xp, 3, wp, bp, 1e-5),
            "instance": lambda: F.instance_norm(xp, None, None, wp, bp, True, 0.0, 1e-5),
        }[kind]()

    ours = torch.vmap(lambda x, w, b: norm_op(x, w if affine else None, b if bias else None, kind, sizes, 1e-5))(
        x, w, b
    )
    exact, theirs = (torch.stack([plain(p, d) for p in range(4)]) for d in (torch.float64, torch.float32))
    assert_as_exact_as_torch(ours, exact, theirs)
    assert torch.equal(
        ours[2], norm_op(x[2].clone(), w[2] if affine else None, b[2] if bias else None, kind, sizes, 1e-5)
    )


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
        losses, predictions = torch.vmap(cross_entropy_op, in_dims=(0, None))(logits, targets)
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


def test_the_operators_have_true_schemas_and_fakes() -> None:
    g = generator(8)
    calls = [
        (blend_op, ([normal(g, 3, 2), normal(g, 3, 2)], coefficients(g, 2, 2)[1], torch.float32)),
        (norm_op, (normal(g, 3, 6), normal(g, 6), normal(g, 6), "layer", [6], 1e-5)),
        (cross_entropy_op, (normal(g, 5, 4), torch.tensor([0, 1, 2, 3, -100]))),
    ]
    for op, arguments in calls:
        results = torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
        assert set(results.values()) == {"SUCCESS"}
