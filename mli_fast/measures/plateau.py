"""How long a curve stays near where it started, and where the simplest model that does so leaves its plateau."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import falls_to, in_order


def plateau_length(alphas: ArrayLike, values: ArrayLike, threshold: float) -> float:
    """Longest initial alpha-interval on which a curve stays at or above a share of its starting value.

    With ``level = threshold * L(alpha_0)``, alpha_0 the least alpha given, it is ``alpha* - alpha_0``, where alpha* is
    the last alpha for which L >= level on all of [alpha_0, alpha*], L being straight between its points. A curve that
    never falls below the level is a plateau all along. Report loss and error apart: they leave their plateaus at
    different alphas (Wang et al. 2022, arXiv:2210.01019, describe the plateau; this length is a definition of ours).

    Args:
        alphas: Where the curve was evaluated [A], in any order: points are taken in ascending alpha. Leave out those
            before the start model.
        values: The curve [A], loss or error, starting above zero.
        threshold: The share, above 0 and at most 1; 0.9 asks how long nine tenths of the starting value remain.

    Returns:
        The length in units of alpha; NaN if the curve holds a NaN before it leaves the plateau.

    Raises:
        ValueError: If ``threshold`` is out of range, the starting value is not above zero, a shape is not 1-D, there
            is no point, the lengths differ, or an alpha is not finite.
        TypeError: If ``alphas`` or ``values`` is not real.

    Examples:
        >>> plateau_length([0.0, 0.25, 0.5, 1.0], [2.0, 2.0, 1.0, 0.0], threshold=0.75)
        0.375
        >>> plateau_length([0.0, 0.5, 1.0], [2.0, 2.0, 1.5], threshold=0.5)
        1.0
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be a share above 0 and at most 1, got {threshold}")
    points, curve = in_order(alphas, values, least=1)
    if curve[0] <= 0.0:
        raise ValueError(f"values must start above zero for a share of it to be a level, got {curve[0]:g}")
    level = threshold * curve[0]
    left = np.flatnonzero(~(curve >= level))
    if left.size == 0:
        return float(points[-1] - points[0])
    after = int(left[0])
    if after == 0:  # only a NaN is not at or above a share of itself
        return float("nan")
    return falls_to(level, points[after - 1 : after + 1], curve[after - 1 : after + 1]) - float(points[0])


def homogeneous_crossing(lead: float, margin: float, r: float) -> float:
    """Where the r-homogeneous model leaves its error plateau: ``alpha* = (lead / margin)^(1 / (r - 1))``.

    In a network that is homogeneous of degree r in its weights but for a last-layer bias, started at zero, the logits
    along the line are ``alpha^r s_k + alpha b_k``. The true class, ahead by ``margin`` in the signal s, overtakes a
    rival that is ahead by ``lead`` in the bias b, at alpha*: the deeper the network, the longer the plateau. (Derived;
    the setting is that of Wang et al. 2022, arXiv:2210.01019.)

    Args:
        lead: The rival's lead in the bias, ``b_rival - b_true``, above 0: else there is no plateau.
        margin: The true class's margin in the signal, ``s_true - s_rival``, above ``lead``: else it never overtakes.
        r: Degree of homogeneity, above 1; the number of layers for a ReLU network.

    Returns:
        alpha*, in (0, 1).

    Raises:
        ValueError: If an argument is out of its range.

    Examples:
        >>> homogeneous_crossing(lead=1.0, margin=4.0, r=2)
        0.25
        >>> homogeneous_crossing(lead=1.0, margin=4.0, r=3)
        0.5
    """
    if not lead > 0.0:
        raise ValueError(f"lead must be above 0, else the true class leads from the start: got {lead}")
    if not lead < margin < np.inf:
        raise ValueError(f"margin must be finite and above lead = {lead}, else nothing is overtaken: got {margin}")
    if not 1.0 < r < np.inf:
        raise ValueError(f"r must be finite and above 1, got {r}")
    return float((lead / margin) ** (1.0 / (r - 1.0)))
