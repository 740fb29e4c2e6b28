"""The arithmetic of the step times, on made-up ones."""

import pytest
from step_time import median_interval, summary


def test_the_bounds_of_a_median_are_order_statistics():
    """Of 15 values the 4th and the 12th: the least with 95 % (96.5 %)."""
    assert median_interval([float(v) for v in range(15, 0, -1)]) == (4.0, 12.0)
    assert median_interval([float(v) for v in range(1, 21)]) == (6.0, 15.0)
    assert median_interval([2.0, 1.0, 3.0]) == (1.0, 3.0)


@pytest.mark.parametrize(
    "factor, verdict",
    [(1.0, "within spread"), (1.005, "within spread"), (1.05, "slower by 5.0 %"), (0.9, "faster by 10.0 %")],
)
def test_the_verdict_compares_the_median_with_the_spread(factor, verdict):
    old = [1.0 + 0.3 * (i % 3) for i in range(15)]
    again = [t * (1.01 if i % 2 else 0.99) for i, t in enumerate(old)]
    found = summary("step", old, [t * factor for t in old], again)
    assert found.verdict == verdict
    assert found.spread == pytest.approx(0.01) and found.rounds == 15


def test_a_spread_above_two_percent_decides_only_what_is_beyond_it():
    old = [1.0] * 15
    again = [1.05 if i % 2 else 0.95 for i in range(15)]
    for factor in (0.97, 1.0, 1.03):
        assert summary("step", old, [factor] * 15, again).verdict.startswith(
            "undecided: the spread is above 2 %"
        )
    assert summary("step", old, [1.08] * 15, again).verdict == "slower by 8.0 %"
