"""What every variant's values are held against: the tuned loop's, and that one's against fp64."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers import PEERS, Options, Peer
from benchmarks.workloads import Problem

TOLERANCE = 1e-5  # relative, of every variant's losses at every point


class Judge:
    """The losses of one problem, and of what some peers answer in its place.

    Raises:
        AssertionError: if the tuned loop is off the fp64 result by more than ten times `TOLERANCE`.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        self._problem, self._options = problem, options
        self.expected = PEERS["tuned_loop"].prepare(problem, options)()
        some = _some(problem.count)
        exact = PEERS["tuned_loop"].prepare(double(problem.take(points=some)), options)()
        self.reference_error = relative_error(self.expected[some], exact)
        assert self.reference_error <= 10 * TOLERANCE, f"the tuned loop is {self.reference_error:.1e} from fp64"
        self.tolerance = max(TOLERANCE, 2 * self.reference_error)  # a few training steps may end where fp32 itself errs

    def error(self, peer: Peer, options: Options, asked: Problem, values: np.ndarray) -> float:
        """The largest relative difference of a peer's values to what the problem it answers has.

        Args:
            peer: it may answer a problem of its own in place of the one it was asked.
            options: those it ran with.
            asked: that problem, or a part of it.
            values: one per point.
        """
        some = _some(len(values))
        if peer.averages and asked.calibration:  # its statistics depend on its batches: torch's update_bn on the same
            exact = PEERS["plain_loop"].prepare(double(asked.take(points=some)), Options(options.batch_size))()
            return relative_error(values[some], exact)
        if asked is self._problem and not peer.answers:
            return relative_error(values, self.expected)
        answered = peer.question(asked).take(points=some)
        return relative_error(values[some], PEERS["tuned_loop"].prepare(answered, self._options)())


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference; infinite where a value is missing, NaN or of another count."""
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.max(np.abs(values - expected) / np.abs(expected)))


def double(problem: Problem) -> Problem:
    """The same problem in fp64."""

    def wide(value: Any) -> Any:
        return value.double() if value.is_floating_point() else value

    return problem._replace(
        model_factory=lambda: problem.model_factory().double(),
        anchors=tuple({name: wide(value) for name, value in anchor.items()} for anchor in problem.anchors),
        X=wide(problem.X),
        calibration=problem.calibration and tuple(map(wide, problem.calibration)),
    )


def _some(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, 5).astype(int))
