"""What is known of an operator from its schema, and which operators no record may hold."""

from __future__ import annotations

import functools
from typing import Any

import torch

NAMESPACES = frozenset({"aten", "prims", "torchvision"})  # others run Python or C++ that may read what it is not given
PLAIN_DATA = frozenset(
    {int, bool, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
# Operators that write to statistics without saying so in their schemas
_STATISTICS = frozenset({"aten::native_batch_norm", "aten::batch_norm_update_stats", "aten::cudnn_batch_norm"})
_REFUSED = {
    "aten::embedding_renorm_": "an embedding with max_norm writes to its weight",
    "aten::set_": "a tensor gets other memory (set_)",
    "aten::resize_": "a tensor is resized",
    "aten::_resize_output_": "a tensor is resized",
    "aten::resize_as_": "a tensor is resized",
    "aten::_copy_from_and_resize": "a tensor is resized",
    **dict.fromkeys(
        (
            "aten::_linalg_svd",
            "aten::_linalg_eigh",
            "aten::linalg_eig",
            "aten::linalg_eigvals",
            "aten::_linalg_eigvals",
            "aten::linalg_pinv",
        ),
        "singular values or eigenvalues, for which PyTorch takes other routines while a pass is recorded",
    ),
}
_EMPTY = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)


class Operator:
    """An operator, read from its schema once.

    Attributes:
        writes: (position, name) of the arguments that are written to.
        refused: why no record may hold it; None if one may.
        dynamic: the shape of its result depends on data.
        gives_views: its results may lie in the memory of what it was given.
        gives_sizes: numbers among its results are sizes of what it was given.
        literal: it hands on a tensor made from Python data.
        empty: its result's memory holds anything.
        reads_values: of what it is given, where it does not write there.
    """

    __slots__ = (
        "_names",
        "_schema",
        "dynamic",
        "empty",
        "gives_sizes",
        "gives_views",
        "is_index",
        "is_item",
        "literal",
        "name",
        "packs",
        "random",
        "reads_values",
        "refused",
        "statistics",
        "writes",
    )

    def __init__(self, func: Any) -> None:
        schema = self._schema = func._schema
        name = self.name = schema.name
        self._names = [a.name for a in schema.arguments]
        self.writes = [
            (i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write
        ]
        self.refused = _REFUSED.get(name)
        if func.namespace not in NAMESPACES:
            self.refused = f"operator {name} of a namespace of its own"
        self.random = torch.Tag.nondeterministic_seeded in func.tags
        self.statistics = name in _STATISTICS
        self.is_index = name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
        self.dynamic = name == "torchvision::nms" or (
            torch.Tag.dynamic_output_shape in func.tags and name != "aten::_local_scalar_dense"
        )
        self.gives_sizes = name.startswith("aten::_scaled_dot_product")
        self.gives_views = any(r.alias_info is not None for r in schema.returns)
        self.is_item = name == "aten::_local_scalar_dense"
        self.literal = name in ("aten::lift_fresh", "aten::lift", "aten::lift_fresh_copy")
        self.packs = name == "aten::_pack_padded_sequence"
        self.empty = name in _EMPTY
        self.reads_values = not (self.gives_views or name.startswith("aten::new_") or name.endswith("_like"))

    def why_not(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why this call may not be in a record; None if it may."""
        if self.refused is not None:
            return self.refused
        if not (self.random or self.statistics):
            return None
        named = {a.name: a.default_value for a in self._schema.arguments}
        named.update(zip(self._names, args, strict=False))
        named.update(kwargs)
        if self.random:
            p = named.get("dropout_p", named.get("p", named.get("dropout")))
            if p is None or (p and named.get("train", named.get("training", True)) is not False):
                return f"the model draws random numbers ({self._schema.name})"
        if self.statistics and named.get("training", True) and named.get("running_mean") is not None:
            return f"{self._schema.name} writes to its running statistics"
        return None


@functools.cache
def operator(func: Any) -> Operator:
    """What is known of an operator."""
    return Operator(func)
