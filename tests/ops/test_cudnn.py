"""cuDNN's fused convolutions, with PyTorch's own operations in their place: what is folded, and in what order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mli_fast.ops.conv import Geometry, cudnn
from mli_fast.ops.epilogue import Epilogue
from tests.ops.cases import assert_as_exact_as_torch, blended, coefficients, generator, normal


@pytest.fixture(autouse=True)
def in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(x: Tensor, weight: Tensor, bias: Tensor, *move: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *move).relu()

    def added(x: Tensor, weight: Tensor, residual: Tensor, alpha: float, bias: Tensor, *move: Any) -> Tensor:
        return (F.conv2d(x, weight, bias, *move) + alpha * residual).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fused)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", added)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("vectors", ["neither", "scale", "shift", "both"])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_follows_is_folded_in(groups: int, vectors: str, residual: bool) -> None:
    g = generator(groups, len(vectors), residual)
    x, weights = normal(g, 3, 2, 6, 7, 5), [normal(g, 8, 6 // groups, 3, 2) for _ in range(2)]
    c, geometry = coefficients(g, 3, 2), Geometry((2, 1), (1, 0), (1, 2), groups)
    scale = normal(g, 3, 8) if vectors in ("scale", "both") else None
    shift = normal(g, 3, 8) if vectors in ("shift", "both") else None
    shape = geometry.output_shape(x[0].shape, weights[0].shape)
    beside = normal(g, 3, *shape) if residual else None
    ours = cudnn.conv(x, weights, c, geometry, Epilogue(scale, shift, beside, "relu"))

    def plain(dtype: torch.dtype) -> Tensor:
        rows = []
        for p, row in enumerate(c):
            y = F.conv2d(x[p].to(dtype), blended(weights, row, dtype), None, *geometry)
            y = y if scale is None else y * scale[p].to(dtype).view(-1, 1, 1)
            y = y if shift is None else y + shift[p].to(dtype).view(-1, 1, 1)
            rows.append((y if beside is None else y + beside[p].to(dtype)).relu())
        return torch.stack(rows)

    assert_as_exact_as_torch(ours, plain(torch.float64), plain(torch.float32))
