"""embedding: rows of a blended table; the rows of each anchor are looked up, the table is never blended whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mli_fast.ops.combine import combine
from mli_fast.ops.embedding import reference
from mli_fast.ops.epilogue import Epilogue
from mli_fast.ops.points import per_point, stack


def products(indices: Tensor, tables: Sequence[Tensor]) -> list[Tensor]:
    """The R look-ups of `indices` [*shape], each [*shape, D], for `combine`."""
    return [reference.lookup(indices, table) for table in tables]


def embedding(
    indices: Tensor,  # [P, *shape] integers
    tables: Sequence[Tensor],  # R x [V, D]
    coefficients: Tensor,  # [P, R] float64
    dtype: torch.dtype,
) -> Tensor:  # [P, *shape, D]
    """The rows of sum_r c[p, r] tables[r] at `indices`, for indices that differ from point to point."""
    rows = [
        combine(products(index, tables), coefficients[p : p + 1], Epilogue(), -1, dtype)[0]
        for p, index in enumerate(indices)
    ]
    return stack(rows)


@torch.library.custom_op("mli_fast::embedding", mutates_args=())
def embedding_op(indices: Tensor, tables: Sequence[Tensor], coefficients: Tensor, dtype: torch.dtype) -> Tensor:
    """`embedding` at one point as a PyTorch operator."""
    return embedding(indices[None], tables, coefficients[None], dtype)[0]


@embedding_op.register_fake
def _(indices, tables, coefficients, dtype):  # type: ignore[no-untyped-def]
    return tables[0].new_empty(*indices.shape, tables[0].shape[1], dtype=dtype)


@embedding_op.register_vmap
def _(info, in_dims, indices, tables, coefficients, dtype):  # type: ignore[no-untyped-def]
    coefficients = per_point(coefficients, in_dims[2], info.batch_size)
    if in_dims[0] is None:
        return combine(products(indices, tables), coefficients, Epilogue(), -1, dtype), 0
    return embedding(indices.movedim(in_dims[0], 0), tables, coefficients, dtype), 0
