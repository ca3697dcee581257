"""Lengths of the curve that a network's outputs draw along a path: how far it goes and how much it turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import Float64, real_array


def gauss_length(logits: ArrayLike) -> float:
    """Mean over examples of the Gauss length: by how much the direction of an example's output path turns in all.

    With v = dz/dalpha and n = v / |v| it is the integral of the norm of the part of dn/dalpha orthogonal to n (Lucas et
    al. 2021, arXiv:2104.11044). Here it is the sum of the angles between consecutive chords ``z[j + 1] - z[j]``, chords
    of length zero left out: a lower bound that also sees the kinks of ReLU and grows under refinement. A straight path
    has 0; an arc of angle pi has pi, and pi (1 - 1 / (A - 1)) at A points spaced evenly. Scaling, shifting and
    rotating the outputs leave it as it is. A chord no longer than the rounding of the outputs has a direction without
    meaning: where outputs hardly move, take them in fp64 or at fewer alphas.

    Args:
        logits: Outputs [A, N, C] at ascending alphas, of N examples, real.

    Returns:
        The mean in radians; NaN if an output is not finite. 0.0 for fewer than three points.

    Raises:
        ValueError: If ``logits`` is not 3-D or is empty.
        TypeError: If ``logits`` is not real.

    Examples:
        >>> corner = [[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]]
        >>> gauss_length(corner) == np.pi / 2
        True
        >>> gauss_length([[[0.0]], [[1.0]], [[1.0]], [[3.0]]])
        0.0
    """
    return float(np.mean(gauss_lengths(logits)))


def gauss_lengths(logits: ArrayLike) -> Float64:
    """Gauss length of every example, of which `gauss_length` is the mean.

    Args:
        logits: Outputs [A, N, C], see `gauss_length`.

    Returns:
        Float64 [N], radians.

    Raises:
        ValueError: If ``logits`` is not 3-D or is empty.
        TypeError: If ``logits`` is not real.

    Examples:
        >>> gauss_lengths([[[0.0], [0.0]], [[1.0], [1.0]], [[0.0], [2.0]]]) / np.pi
        array([1., 0.])
    """
    lengths, directions = _chords(logits)
    moves = lengths != 0.0  # [A - 1, N]
    latest = np.maximum.accumulate(np.where(moves, np.arange(len(moves))[:, None], -1))[:-1]
    before = np.take_along_axis(directions, np.maximum(latest, 0)[:, :, None], axis=0)
    after = directions[1:]
    # Kahan's form: exact where the chords are nearly parallel, where the arc cosine of their product is not.
    angles = 2.0 * np.arctan2(np.linalg.norm(after - before, axis=2), np.linalg.norm(after + before, axis=2))
    return np.sum(angles, axis=0, where=moves[1:] & (latest >= 0))


def path_length(logits: ArrayLike) -> float:
    """Mean over examples of the length of the output path, ``sum |z[j + 1] - z[j]|``: path length in function space.

    The sum over chords is a lower bound of the integral of |dz/dalpha| that grows under refinement, and is at least
    the distance between the two ends.

    Args:
        logits: Outputs [A, N, C] at ascending alphas, of N examples, real.

    Returns:
        The mean in the units of the outputs; NaN if an output is not finite. 0.0 for one point.

    Raises:
        ValueError: If ``logits`` is not 3-D or is empty.
        TypeError: If ``logits`` is not real.

    Examples:
        >>> path_length([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 0.0]]])
        9.0
    """
    return float(np.mean(path_lengths(logits)))


def path_lengths(logits: ArrayLike) -> Float64:
    """Length of every example's output path, of which `path_length` is the mean.

    Args:
        logits: Outputs [A, N, C], see `path_length`.

    Returns:
        Float64 [N], in the units of the outputs.

    Raises:
        ValueError: If ``logits`` is not 3-D or is empty.
        TypeError: If ``logits`` is not real.

    Examples:
        >>> path_lengths([[[0.0], [0.0]], [[1.0], [1.0]], [[0.0], [2.0]]])
        array([2., 2.])
    """
    return _chords(logits)[0].sum(axis=0)


def _chords(logits: ArrayLike) -> tuple[Float64, Float64]:
    """Lengths [A - 1, N] and directions [A - 1, N, C] of the chords; a chord of length zero has direction zero."""
    outputs = real_array("logits", logits, ndim=3)
    if outputs.size == 0:
        raise ValueError(f"logits is empty: shape {outputs.shape}")
    with np.errstate(invalid="ignore"):
        chords = np.diff(outputs, axis=0)
        # Scaled by the largest entry, so that squares neither overflow nor vanish.
        scale = np.abs(chords).max(axis=2, keepdims=True)
        chords /= np.where(scale == 0.0, 1.0, scale)
        norms = np.linalg.norm(chords, axis=2, keepdims=True)
        chords /= np.where(norms == 0.0, 1.0, norms)
    return (scale * norms)[:, :, 0], chords
