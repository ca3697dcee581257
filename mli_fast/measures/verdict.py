"""Whether a measured curve is monotone beyond the noise of its examples."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mli_fast.measures.curves import real_curve


@dataclass(frozen=True)
class Verdict:
    """What a number of examples says about a curve's monotonicity. It counts as true only where it says "monotone".

    Attributes:
        outcome: "monotone": no step rises. "not monotone": some step rises. "undecided": these examples do not tell.
        rising: Indices, in the array given, of the steps shown to rise.
        unsettled: Indices of the steps shown neither to rise nor not to rise: more examples are needed for these.
        tested: Number of steps.
        confidence: Of the outcome, all steps taken together.
    """

    outcome: Literal["monotone", "not monotone", "undecided"]
    rising: tuple[int, ...]
    unsettled: tuple[int, ...]
    tested: int
    confidence: float

    def __bool__(self) -> bool:
        return self.outcome == "monotone"


def is_monotonic(steps: ArrayLike, stderr: ArrayLike, confidence: float = 0.95) -> Verdict:
    r"""Test from paired standard errors whether a curve never rises: monotone, not monotone, or undecided.

    Every step :math:`d_j`, the mean over examples of ``loss(alpha_j) - loss(alpha_{j-1})``, gets one-sided normal
    bounds :math:`d_j \pm z s_j` with :math:`z = \Phi^{-1}(1 - (1 - confidence) / m)`, Bonferroni over the m steps. It
    is shown to rise if the lower one is above 0, and shown not to rise if the upper one is at most 0. One step shown to
    rise makes the curve not monotone; monotone needs all m shown not to rise; anything else is undecided.
    :math:`s_j` is paired: of the difference of the same examples, whose noise mostly cancels. Slopes dL/dalpha with
    their standard errors are tested alike. The normal quantile wants some dozens of examples.

    Args:
        steps: Mean differences of consecutive alphas, or slopes [A], as in ``result["loss_step"]``. A first entry that
            is NaN in both arrays is left out, for no step leads to the first alpha; any other NaN stays unsettled.
        stderr: Their standard errors [A], as in ``result["loss_step_stderr"]``.
        confidence: Probability with which the bounds of all steps hold together, 0.5 up to 1 exclusive.

    Returns:
        The outcome, and the steps it rests on.

    Raises:
        ValueError: If a shape is not 1-D, the lengths differ, there is no step, a standard error is negative, or
            ``confidence`` is out of range.
        TypeError: If ``steps`` or ``stderr`` is not real.

    Examples:
        >>> is_monotonic([float("nan"), -0.5, -0.1], [float("nan"), 0.01, 0.02]).outcome
        'monotone'
        >>> is_monotonic([-0.5, 0.1], [0.01, 0.02])
        Verdict(outcome='not monotone', rising=(1,), unsettled=(), tested=2, confidence=0.95)
        >>> is_monotonic([-0.5, 0.1], [0.01, 0.2]).outcome  # the same rise, known less well
        'undecided'
    """
    means, errors = real_curve("steps", steps), real_curve("stderr", stderr)
    if means.shape != errors.shape:
        raise ValueError(f"steps and stderr must have the same length, got {means.size} and {errors.size}")
    if (errors < 0.0).any():
        raise ValueError(f"stderr must be zero or more, got {errors.min()}")
    if not 0.5 <= confidence < 1.0:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence}")
    first = int(means.size > 0 and np.isnan(means[0]) and np.isnan(errors[0]))
    tested = means.size - first
    if tested == 0:
        raise ValueError("steps holds no step: a curve of two alphas has one")

    reach = -NormalDist().inv_cdf((1.0 - confidence) / tested) * errors
    with np.errstate(invalid="ignore"):
        rising, falling = means - reach > 0.0, means + reach <= 0.0
    unsettled = ~(rising | falling)
    unsettled[:first] = False
    return Verdict(
        outcome="not monotone" if rising.any() else "undecided" if unsettled.any() else "monotone",
        rising=tuple(np.flatnonzero(rising).tolist()),
        unsettled=tuple(np.flatnonzero(unsettled).tolist()),
        tested=tested,
        confidence=float(confidence),
    )
