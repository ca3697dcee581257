"""A chain of blended linear layers as one call of the compiled kernels: what an MLP does at P points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mli_fast import buffers
from mli_fast.native.checks import ACTIVATIONS, addresses, check, check_dtype
from mli_fast.native.loading import require

# Beyond this many bytes of blended weights the call is right but slower: they leave the cache between row blocks.
CHAIN_WEIGHT_BYTES = 4 * 1024 * 1024


class Blended(NamedTuple):
    """A layer, or shared products ``act((sum_r coefficients[p, r] * tensors[r]) * scale + shift)`` before the first."""

    tensors: Sequence[Tensor]  # a layer's weights: R times [N, K]; shared products: R times [M, K]
    coefficients: Tensor  # [P, R] float64
    scale: Tensor | None = None  # [P, N], of shared products [P, K]
    shift: Tensor | None = None  # [P, N], of shared products [P, K]
    activation: str = "none"


_Packed = tuple[list[int], int, int, int, int, int, int]  # as the binding takes a layer


def _packed(
    name: str, part: Blended, points: int, rows: int, columns: int, dtype: torch.dtype, *, is_layer: bool
) -> _Packed:
    """Addresses and sizes of one part, its tensors [rows, columns]; a layer's outputs are as many as its rows."""
    tensors, coefficients, scale, shift, activation = part
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name}: activation {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    width = rows if is_layer else columns
    return (
        addresses(name, tensors, (rows, columns), dtype),
        check(f"{name}: coefficients", coefficients, (points, len(tensors)), torch.float64),
        width,
        columns,
        0 if scale is None else check(f"{name}: scale", scale, (points, width), dtype),
        0 if shift is None else check(f"{name}: shift", shift, (points, width), dtype),
        ACTIVATIONS[activation],
    )


def chain(
    source: Tensor | Blended,  # x [P, M, K], or products R times [M, K]
    layers: Sequence[Blended],
    *,
    residual: Tensor | None = None,  # [P, M, N of the last layer]
    out: Tensor | None = None,  # [P, M, N of the last layer]
) -> Tensor:
    """Linear layers one after the other at P points, without their intermediate results ever leaving the cache.

    Bit for bit what `mli_fast.native.combine` (for shared products) and `mli_fast.native.linear` give layer by layer.

    Args:
        source: The input, or shared products of the layer before, to be combined: float32 or float64, contiguous.
        layers: At least one; R may differ. A tensor whose coefficient is exactly 0 is not read.
        residual: Summand of the last layer.
        out: Written and returned if given; shares no memory with the inputs.

    Returns:
        The last layer's output, [P, M, N].

    Raises:
        ValueError: A shape, dtype or memory layout does not fit, or there is no layer.
        RuntimeError: The compiled module is missing.

    Meant for layers whose blended weights are at most `CHAIN_WEIGHT_BYTES` together; right, but slower, above.
    """
    native = require()
    if not layers:
        raise ValueError("layers: at least one is needed")
    points = layers[0].coefficients.shape[0] if layers[0].coefficients.dim() else 0
    given = source if isinstance(source, Tensor) else source.tensors[0] if source.tensors else None
    if given is None or given.dim() != (3 if isinstance(source, Tensor) else 2):
        expected = "[P, M, K]" if isinstance(source, Tensor) else "products [M, K]"
        raise ValueError(f"source: expected {expected}, got {'none' if given is None else tuple(given.shape)}")
    dtype = check_dtype("source", given)
    rows, depth = given.shape[-2:]
    first: _Packed = ([], 0, 0, 0, 0, 0, 0)
    if isinstance(source, Tensor):
        x_at = check("source", source, (points, rows, depth), dtype)
    else:
        x_at, first = 0, _packed("source", source, points, rows, depth, dtype, is_layer=False)
    packed: list[_Packed] = []
    for i, layer in enumerate(layers):
        columns = layer.tensors[0].shape[0] if layer.tensors and layer.tensors[0].dim() else 0
        packed.append(_packed(f"layers[{i}]", layer, points, columns, depth, dtype, is_layer=True))
        depth = columns
    residual_at = 0 if residual is None else check("residual", residual, (points, rows, depth), dtype)
    if out is None:
        out = buffers.empty((points, rows, depth), dtype)
    to = check("out", out, (points, rows, depth), dtype)
    threads = torch.get_num_threads()
    native.chain(dtype is torch.float64, to, x_at, first, packed, points, rows, residual_at, threads)
    return out
