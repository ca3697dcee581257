"""Questions about tensor values that matching and gathering share: same bits, finite, a common dtype."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

_SCAN = 1 << 22  # elements looked at per step, so that scanning a large tensor needs no large temporary
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# What quantised weights are stored as
CODES = frozenset(
    {torch.int8, torch.uint8} | {d for d in vars(torch).values() if isinstance(d, torch.dtype) and d.itemsize == 1}
) - {torch.bool}


def plain(value: Tensor) -> Tensor:
    """Return ``value`` detached, contiguous and aligned; the storage stays the caller's unless that forces a copy.

    >>> weight = torch.nn.Parameter(torch.ones(2, 3))
    >>> plain(weight).requires_grad, plain(weight).data_ptr() == weight.data_ptr()
    (False, True)
    """
    value = value.detach().resolve_conj().resolve_neg().contiguous()
    # Files written without padding map to odd addresses, which vector loads do not accept everywhere.
    return value.clone() if value.data_ptr() % value.element_size() else value


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Say whether two tensors agree in dtype, shape and every bit (so 0.0 differs from -0.0, and NaN equals itself).

    >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    True
    >>> same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    False
    """
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    first, second = plain(first), plain(second)
    if first.device != second.device:
        first, second = first.cpu(), second.cpu()
    if first.numel() == 0 or first.data_ptr() == second.data_ptr():
        return True
    return torch.equal(_as_integers(first), _as_integers(second))


def all_finite(value: Tensor) -> bool:
    """Say whether a tensor of any dtype holds neither NaN nor Inf.

    >>> all_finite(torch.full((4,), 6e4, dtype=torch.float16)), all_finite(torch.tensor([1.0, float("inf")]))
    (True, False)
    """
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if not value.is_floating_point():
        return True
    for part in torch.split(value.detach().reshape(-1), _SCAN):
        wide = part if part.element_size() >= 4 else part.float()
        # A finite sum proves finite terms; only a sum that overflowed or met NaN is looked at element by element.
        if not bool(wide.sum().isfinite()) and not bool(wide.isfinite().all()):
            return False
    return True


def wider(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype in which values of all ``dtypes`` are computed; 8-bit floats, which do not promote, as float32.

    >>> wider([torch.float16, torch.bfloat16]), wider([torch.float8_e4m3fn, torch.float16])
    (torch.float32, torch.float32)
    """
    found = list(dict.fromkeys(dtypes))
    if len(found) == 1:
        return found[0]
    return reduce(torch.promote_types, (torch.float32 if d.is_floating_point and d.itemsize == 1 else d for d in found))


def cast_exactly(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return ``value`` in ``dtype``, or None where that would change a value.

    >>> cast_exactly(torch.tensor([3.0]), torch.int64)
    tensor([3])
    >>> cast_exactly(torch.tensor([3.5]), torch.int64) is None
    True
    """
    if value.is_complex() and not dtype.is_complex:
        return None
    cast = value.to(dtype)
    return cast if torch.equal(cast.to(value.dtype), value) else None


def _as_integers(value: Tensor) -> Tensor:
    """View a contiguous tensor as integers of the same size, which compare by their bits."""
    if value.is_complex():
        value = torch.view_as_real(value)
    return value.view(_INTEGER_OF_SIZE[value.element_size()])


def blends(dtype: torch.dtype) -> bool:
    """Whether values of a dtype are interpolated; of others a point has one anchor's."""
    return dtype.is_floating_point or dtype.is_complex
