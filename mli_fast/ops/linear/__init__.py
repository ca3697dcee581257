"""linear: x W(p)^T with W(p) = sum_r c[p, r] W_r, and an epilogue, at P points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mli_fast import native
from mli_fast.ops.backend import current
from mli_fast.ops.blend.reference import ONE
from mli_fast.ops.dispatch import choose, shape_class
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.linear import reference
from mli_fast.ops.memory import packed, placed


def linear(
    x: Tensor,  # [P, *rows, K]
    weights: Sequence[Tensor],  # R x [N, K]
    coefficients: Tensor,  # [P, R] float64
    epilogue: Epilogue,
) -> Tensor:  # [P, *rows, N]
    """activation(x W(p)^T * scale + shift + residual) for an input that differs from point to point.

    Args:
        x: one input per point, in the compute dtype, which is the result's.
        weights: R weights of one shape.
        coefficients: float64 [P, R].
        epilogue: bias, residual and activation, for P points; its vectors are [P, N].
    """
    out = _by_kernel(x, weights, coefficients, epilogue, None)
    return reference.linear(x, weights, coefficients, epilogue) if out is None else out


def products(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The R products x W_r^T of an input that is the same at every point, for `combine`.

    Args:
        x: [*rows, K].
        weights: R x [N, K].

    Returns:
        R tensors [*rows, N] in the dtype in which they are to be summed. Each is what `linear` computes at a point
        with the one-hot coefficients of its anchor, bit for bit, so an endpoint does not depend on the route.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    found = [_by_kernel(x[None], [w], ONE, Epilogue(), wide) for w in weights]
    return [reference.product(x, w) if p is None else p[0] for p, w in zip(found, weights, strict=True)]


def _by_kernel(
    x: Tensor, weights: Sequence[Tensor], coefficients: Tensor, epilogue: Epilogue, dtype: torch.dtype | None
) -> Tensor | None:
    """`linear` by the kernel that the table names, in `dtype` or that of x; None for PyTorch's own operations."""
    columns, depth = weights[0].shape
    rows = x.shape[1:-1].numel()
    tf32 = current().tf32

    def fits(kernel: str) -> bool:
        if kernel == "native" and x.is_cuda:
            return native.cuda.takes_linear(x, weights, tf32=tf32)
        return all(w.is_contiguous() for w in weights)

    kernel = choose("linear", (x, *weights, *epilogue[:3]), shape_class("linear", rows, columns, depth), fits)
    run: Any
    options: dict[str, Any] = {"tf32": tf32}
    if kernel == "triton":
        from mli_fast.ops.linear import triton

        run = triton.linear
    elif kernel == "native" and x.is_cuda:
        run = native.cuda.linear
    elif kernel == "native":
        run, options = native.linear, {}
    else:
        return None
    points = len(x)
    if dtype is not None and dtype != x.dtype:
        options["out"] = x.new_empty(points, rows, columns, dtype=dtype)
    out = run(
        x.reshape(points, rows, depth).contiguous(),
        weights,
        placed(coefficients, x.device),
        scale=packed(epilogue.scale),
        shift=packed(epilogue.shift),
        residual=None if epilogue.residual is None else epilogue.residual.reshape(points, rows, columns).contiguous(),
        activation=epilogue.activation,
        **options,
    )
    return out.view(*x.shape[:-1], columns)
