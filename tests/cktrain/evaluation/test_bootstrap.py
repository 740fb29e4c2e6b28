"""Intervals beside draws that are made one by one, and beside what theory says of a mean."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain.evaluation import bootstrap
from cktrain.evaluation.bootstrap import interval, resampled_ratios


def one_by_one(figures, draws, seed):
    """The definition, in loops."""
    rng = np.random.default_rng(seed)
    count = len(figures[0][0])
    found = [[] for _ in figures]
    for _ in range(draws):
        rows = rng.integers(0, count, (1, count))[0]
        for ratios, (numerators, denominators) in zip(found, figures, strict=True):
            ratios.append(sum(numerators[row] for row in rows) / sum(denominators[row] for row in rows))
    return found


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_ratios_are_those_of_draws_one_by_one(at_once, monkeypatch):
    monkeypatch.setattr(bootstrap, "_AT_ONCE", at_once)
    rng = np.random.default_rng(4)
    figures = [(rng.random(9), rng.integers(1, 5, 9)), (rng.random(9), np.ones(9))]
    found = resampled_ratios(figures, draws=60, seed=7)
    for ratios, wanted in zip(found, one_by_one(figures, 60, 7), strict=True):
        assert np.allclose(ratios, wanted, rtol=1e-14)
    ordered = np.sort(found[0])
    low, high = interval(found[0])
    # numpy's percentile lies between its neighbours in order: of 60 draws at places 1.475 and 57.525.
    assert low == pytest.approx(ordered[1] + 0.475 * (ordered[2] - ordered[1]))
    assert high == pytest.approx(ordered[57] + 0.525 * (ordered[58] - ordered[57]))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = interval(resampled_ratios([(values, np.ones(400))])[0])
    error = values.std() / 20
    # 2,000 draws: a percentile at 2.5 % of a normal law spreads by 0.06 of its deviation; four of these.
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.24 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.24 * error)


def test_a_difference_that_all_rows_share_has_no_spread():
    rng = np.random.default_rng(2)
    values, counts = rng.normal(3, 2, 50), rng.integers(1, 9, 50)
    one, other = resampled_ratios([(values, counts), (values + 0.5 * counts, counts)])
    assert interval(other - one) == pytest.approx((0.5, 0.5))
    assert interval(one)[1] - interval(one)[0] > 0.1
