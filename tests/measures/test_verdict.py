from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mli_fast.measures import Verdict, is_monotonic, min_delta
from tests.measures.curves import CURVES, POWERS

NAN = math.nan
STEPS = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 50)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("steps", "stderr", "expected"),
    [
        pytest.param([-1, -2], [0.1, 0.1], Verdict("monotone", (), (), 2, 0.95), id="falls"),
        pytest.param([-1, 0.5], [0.1, 0.1], Verdict("not monotone", (1,), (), 2, 0.95), id="rises"),
        pytest.param([-1, -0.1], [0.1, 0.1], Verdict("undecided", (), (1,), 2, 0.95), id="falls-within-the-noise"),
        pytest.param([-1, 0.1], [0.1, 0.1], Verdict("undecided", (), (1,), 2, 0.95), id="rises-within-the-noise"),
        pytest.param([1, 0.1], [0.1, 0.1], Verdict("not monotone", (0,), (1,), 2, 0.95), id="one-rise-is-enough"),
        pytest.param([-1, 0], [0.1, 0], Verdict("monotone", (), (), 2, 0.95), id="exactly-level"),
        pytest.param([NAN, -1, 1], [NAN, 0.1, 0.1], Verdict("not monotone", (2,), (), 2, 0.95), id="as-in-a-result"),
        pytest.param([NAN, -1], [0.1, 0.1], Verdict("undecided", (), (0,), 2, 0.95), id="first-of-unknown-value"),
        pytest.param([-1, NAN], [0.1, NAN], Verdict("undecided", (), (1,), 2, 0.95), id="a-gap"),
        pytest.param([-1, -1], [NAN, NAN], Verdict("undecided", (), (0, 1), 2, 0.95), id="one-example"),
        pytest.param([-1], [math.inf], Verdict("undecided", (), (0,), 1, 0.95), id="endless-noise"),
    ],
)
def test_verdicts_of_hand_made_steps(steps: list[float], stderr: list[float], expected: Verdict) -> None:
    found = is_monotonic(steps, stderr)
    assert found == expected
    assert bool(found) is (expected.outcome == "monotone")


@pytest.mark.parametrize(
    ("tested", "quantile"),
    # one-sided 5 % of the normal distribution, and 0.5 % for ten steps
    [pytest.param(1, 1.6449, id="one-step"), pytest.param(10, 2.5758, id="ten-steps")],
)
@pytest.mark.parametrize(("sign", "outcome"), [(1, "not monotone"), (-1, "monotone")])
def test_a_step_counts_from_the_bonferroni_quantile_on(tested: int, quantile: float, sign: int, outcome: str) -> None:
    others = [-100.0] * (tested - 1)
    assert is_monotonic([*others, sign * (quantile + 1e-3)], [1.0] * tested).outcome == outcome
    assert is_monotonic([*others, sign * (quantile - 1e-3)], [1.0] * tested).outcome == "undecided"


@given(CURVES)
def test_without_noise_it_is_min_delta(values: NDArray[np.float64]) -> None:
    found = is_monotonic(np.diff(values), np.zeros(values.size - 1))
    assert found.outcome == ("monotone" if min_delta(values) == 0 else "not monotone")


@given(STEPS, st.floats(0.5, 0.999), POWERS)
def test_units_do_not_matter_and_less_noise_only_settles(
    pairs: list[tuple[int, int]], confidence: float, scale: float
) -> None:
    steps, stderr = np.array(pairs, dtype=np.float64).T
    noisy, clear = is_monotonic(steps, stderr, confidence), is_monotonic(steps, stderr / 2, confidence)
    assert is_monotonic(scale * steps, scale * stderr, confidence) == noisy
    assert set(noisy.rising) <= set(clear.rising)
    assert set(clear.unsettled) <= set(noisy.unsettled)
    if noisy.outcome != "undecided":
        assert clear.outcome == noisy.outcome
    falling = is_monotonic(-abs(steps), stderr, confidence)
    assert falling.rising == ()


def test_false_claims_are_as_rare_as_promised() -> None:
    # 4,000 level curves of 20 independent steps: claims of a rise are wrong, and 5 % are allowed.
    rng = np.random.default_rng(0)
    claims = [is_monotonic(step, np.ones(20)).outcome == "not monotone" for step in rng.standard_normal((4000, 20))]
    assert 0.035 < np.mean(claims) < 0.06


def test_pairing_settles_what_unpaired_errors_do_not() -> None:
    # Examples differ by far more than the step they all take.
    rng = np.random.default_rng(1)
    losses = rng.exponential(5.0, 200) + np.array([[0.0], [0.05]]) + 0.01 * rng.standard_normal((2, 200))
    step = losses[1] - losses[0]
    paired = step.std(ddof=1) / math.sqrt(200)
    unpaired = math.hypot(*(losses.std(axis=1, ddof=1) / math.sqrt(200)))
    assert is_monotonic([step.mean()], [paired]).outcome == "not monotone"
    assert is_monotonic([step.mean()], [unpaired]).outcome == "undecided"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(([1, 2], [1]), ValueError, "same length, got 2 and 1", id="lengths"),
        pytest.param(([1], [-0.5]), ValueError, "stderr must be zero or more, got -0.5", id="negative"),
        pytest.param(([], []), ValueError, "no step", id="empty"),
        pytest.param(([NAN], [NAN]), ValueError, "no step", id="one-alpha"),
        pytest.param(([1], [1], 1.0), ValueError, "confidence", id="certain"),
        pytest.param(([1], [1], 0.3), ValueError, "confidence", id="less-than-even"),
        pytest.param(([1], [1], NAN), ValueError, "confidence", id="confidence-nan"),
        pytest.param((["a"], [1]), TypeError, "steps must be real", id="text"),
    ],
)
def test_bad_input_is_refused(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        is_monotonic(*arguments)
