"""Parameters and activations that are not computed yet, and the table of what is done with them."""

from mli_fast.blended.ending import LastProduct, last_product
from mli_fast.blended.memo import Memo, remembering
from mli_fast.blended.table import evaluated
from mli_fast.blended.tensors import BlendedTensor, CannotDefer, Shared

__all__ = [
    "BlendedTensor",
    "CannotDefer",
    "LastProduct",
    "Memo",
    "Shared",
    "evaluated",
    "last_product",
    "remembering",
]
