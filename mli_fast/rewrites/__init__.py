"""Rewrites: each makes a program cheaper where its condition says that the values stay what they are.

Nothing here may depend on which parameters move, or on the points: a point's value must not. What a rewrite changes in
the last bits, it changes at every point and at the ends alone.
"""

from __future__ import annotations

from collections.abc import Callable

from mli_fast.capture import Record
from mli_fast.program import Program
from mli_fast.rewrites import attention, batch_norm, chains, epilogues, gelu, in_place, products
from mli_fast.rewrites.products import Kernels, Product

Rewrite = Callable[[Program, Kernels], None]

REWRITES: dict[str, Rewrite] = {
    "attention": attention.rewrite,
    "gelu": gelu.rewrite,
    "products": products.rewrite,
    "batch_norm": batch_norm.rewrite,
    "epilogues": epilogues.rewrite,
    "chains": chains.rewrite,
    "in_place": in_place.rewrite,
}

__all__ = ["REWRITES", "Kernels", "Product", "rewritten"]


def rewritten(record: Record, kernels: Kernels, which: tuple[str, ...] = tuple(REWRITES)) -> Program:
    """The program of a record after these rewrites.

    A program from which numbers leave that depend on a parameter is left as it is: whether a point goes on here or by
    plain PyTorch then makes no difference.

    Args:
        record: a pass.
        kernels: what there is to compute products with.
        which: names of `REWRITES`, done in its order.

    Raises:
        Unfit: the record may not be replayed.
    """
    program = Program(record, assigned_once=bool(which))
    if not which or program.exact:
        return Program(record, assigned_once=False)
    for name, rewrite in REWRITES.items():
        if name in which:
            rewrite(program, kernels)
    program.remove_unread()
    program.index()
    return program
