"""Learning-rate schedules at their corners."""

from __future__ import annotations

import pytest

from cktrain.config import ScheduleConfig
from cktrain.optim.schedule import learning_rate


def rates(steps: int, **config) -> list[float]:
    schedule = ScheduleConfig(**config)
    return [learning_rate(schedule, 1.0, steps, step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_rises_evenly_to_the_peak(name):
    result = rates(100, name=name, warmup_steps=4)
    assert result[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(result) == 1.0


def test_constant_stays():
    assert set(rates(50, name="constant")) == {1.0}


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_the_last_step_has_the_lowest_rate(name):
    result = rates(100, name=name, warmup_steps=10, min_lr_ratio=0.1)
    assert result[-1] == pytest.approx(0.1)
    assert result[9:] == sorted(result[9:], reverse=True)


def test_linear_and_cosine_at_half_way():
    assert rates(100, name="linear", min_lr_ratio=0.0)[49] == pytest.approx(0.5)
    assert rates(100, name="cosine", min_lr_ratio=0.0)[49] == pytest.approx(0.5)
    assert rates(100, name="cosine", min_lr_ratio=0.0)[24] == pytest.approx(0.8535534, rel=1e-6)


def test_wsd_is_stable_until_its_decay():
    result = rates(100, name="wsd", decay_steps=20, min_lr_ratio=0.0)
    assert set(result[:80]) == {1.0}
    assert result[89] == pytest.approx(0.5)
    assert rates(100, name="wsd", min_lr_ratio=0.0)[89] == 1.0  # the default decay is a tenth


def test_a_run_that_is_all_warm_up():
    assert rates(5, name="cosine", warmup_steps=5)[-1] == 1.0
