"""How alike two sets of outputs are: linear CKA."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import Float64, real_array


def cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of two representations of the same inputs (Kornblith et al. 2019).

    ``CKA = |Y'X|^2 / (|X'X| |Y'Y|)`` in Frobenius norms, columns centred (arXiv:1905.00414): 1 for representations that
    are equal up to rotation, scale and shift, near 0 for unrelated ones with many more examples than features. It is
    computed from features or from Gram matrices, whichever costs less; both give the same. This is the biased
    estimate: with few examples it is too high.

    Args:
        x: Outputs [N, D1] of one network, real.
        y: Outputs [N, D2] of another on the same N inputs in the same order.

    Returns:
        CKA in 0..1, up to rounding; NaN, as 0 / 0, if the outputs of either do not vary over the inputs at all, and
        where an output is not finite.

    Raises:
        ValueError: If a shape is not 2-D, the numbers of examples differ or are below 2, or there are no features.
        TypeError: If ``x`` or ``y`` is not real.

    Examples:
        >>> x = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(cka(x, 3.0 * x[:, ::-1] + 1.0), 12)
        1.0
        >>> cka([[1.0], [-1.0], [0.0]], [[1.0], [1.0], [-2.0]])
        0.0
    """
    a, b = _centred("x", x), _centred("y", y)
    if len(a) != len(b):
        raise ValueError(f"x and y must be of the same examples, got {len(a)} and {len(b)}")
    n, d1, d2 = len(a), a.shape[1], b.shape[1]
    with np.errstate(invalid="ignore"):
        if n * (d1 + d2) < d1 * d1 + d1 * d2 + d2 * d2:
            gram_a, gram_b = a @ a.T, b @ b.T
            return float(np.sum(gram_a * gram_b) / (np.linalg.norm(gram_a) * np.linalg.norm(gram_b)))
        return float(np.sum((b.T @ a) ** 2) / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def _centred(name: str, values: ArrayLike) -> Float64:
    """Check outputs [N, D], centre their columns, and scale by the largest entry, which CKA does not see."""
    outputs = real_array(name, values, ndim=2)
    if len(outputs) < 2 or outputs.shape[1] == 0:
        raise ValueError(f"{name} must hold at least 2 examples and 1 feature, got shape {outputs.shape}")
    with np.errstate(invalid="ignore"):
        outputs -= outputs[0].copy()  # so that a constant column is centred to zeros, not to rounding errors
        outputs -= outputs.mean(axis=0)
        return outputs / np.abs(outputs).max()
