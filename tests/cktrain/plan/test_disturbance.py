"""Other work on the cores shows in the spread of the register loop's own short runs."""

from __future__ import annotations

import pytest

from cktrain.plan.rates import disturbance


@pytest.mark.parametrize("slow", [0.0, 0.05, 0.1])
def test_a_clock_that_moves_is_no_disturbance(slow: float) -> None:
    assert disturbance([190e9, (1 - slow) * 190e9] * 100) == ""


@pytest.mark.parametrize("shared", [0.3, 0.5, 0.9])
def test_runs_that_share_their_cores_are_told(shared: float) -> None:
    """A part of the runs takes twice as long, as beside one busy process per core."""
    rates = [190e9] * round(100 * (1 - shared)) + [95e9] * round(100 * shared)
    said = disturbance(rates)
    assert said.startswith("OTHER WORK used these cores")
    assert f"{100 / (1 + shared):.0f} % of its best" in said and "95 to 190 GFLOP/s" in said


def test_one_run_that_was_interrupted_is_no_disturbance() -> None:
    assert disturbance([190e9] * 199 + [19e9]) == ""
