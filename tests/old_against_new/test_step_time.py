"""The arithmetic of the step times, on made-up ones."""

import pytest
from step_time import lower_quartile, parts_of, summary


def test_a_figure_is_the_lower_quartile_of_its_turns():
    """What makes some turns longer does not count."""
    assert lower_quartile([9.0, 1.0, 2.0, 9.0, 3.0, 9.0, 9.0, 9.0, 9.0]) == 3.0
    assert lower_quartile([2.0]) == 2.0
    old = [1.0] * 20
    disturbed = [1.0 if i % 3 else 5.0 for i in range(20)]
    found = summary("step", old, disturbed, disturbed)
    assert found.ratio == 1.0 and found.spread == 0.0 and found.old_ms == 1000.0


def test_parts_hold_every_round_once():
    assert parts_of(15) == [slice(3 * i, 3 * i + 3) for i in range(5)]
    assert parts_of(7) == [slice(0, 3), slice(3, 7)] and parts_of(2) == [slice(0, 2)]


@pytest.mark.parametrize(
    "factor, verdict",
    [(1.0, "within spread"), (1.005, "within spread"), (1.05, "slower by 5.0 %"), (0.9, "faster by 10.0 %")],
)
def test_the_verdict_compares_the_median_with_the_spread(factor, verdict):
    old = [1.0 + 0.3 * (i % 3) for i in range(15)]
    again = [t * (0.99 if i < 3 else 1.005) for i, t in enumerate(old)]
    found = summary("step", old, [t * factor for t in old], again)
    assert found.verdict == verdict
    assert found.spread == pytest.approx(0.01) and found.rounds == 15


def test_a_spread_above_two_percent_decides_only_what_is_beyond_it():
    old = [1.0] * 15
    again = [0.95 if i < 3 else 1.0 for i in range(15)]
    for factor in (0.97, 1.0, 1.03):
        assert summary("step", old, [factor] * 15, again).verdict.startswith(
            "undecided: the spread is above 2 %"
        )
    assert summary("step", old, [1.08] * 15, again).verdict == "slower by 8.0 %"
