"""What goes by the clock: the end of a run and of its schedule, and checkpoints. The clock is the test's own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cktrain.config_types import duration_seconds
from cktrain.optim.schedule import position
from cktrain.training import run_clock


@pytest.fixture
def steps_of_two_seconds(monkeypatch):
    """The clock is read when training begins, and once in each step."""

    def begin() -> None:
        ticks = itertools.count(0, 2)
        monkeypatch.setattr(run_clock, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))

    begin()
    return begin


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28800),
        ("15min", 900),
        ("1h30min", 5400),
        ("90s", 90),
        ("2d", 172800),
        ("0.5h", 1800),
        ("1d1s", 86401),
    ],
)
def test_durations(text, seconds):
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 h", "h", "-1h", "30min1h", "1:30", "0s", "400d", "8H", "１h2"])
def test_no_durations(text):
    with pytest.raises(ValueError, match=r"is no duration|Give more than none"):
        duration_seconds(text)


def test_the_clock_moves_the_schedule_on_where_it_is_ahead():
    assert position(3, 100, 5.0, None) == 3
    assert position(3, 100, 5.0, 10.0) == 50
    assert position(60, 100, 5.0, 10.0) == 60
    assert position(60, 100, 50.0, 10.0) == 100


def test_max_time_ends_the_run_and_its_schedule(tiny, composed, said, tmp_path, steps_of_two_seconds):
    """20 steps of 2 s in 10 s: after 5 steps, at rates of steps 4, 8 … 20."""
    settings = {"precision": "fp64", "log.every": 1, "schedule.name": "linear", "schedule.warmup_steps": 0}
    trainer = composed(tiny(**settings, **{"run.max_time": "10s"})).trainer
    assert trainer.run()
    rates = [line["lr"] for line in lines(tmp_path / "run")]
    assert rates == pytest.approx([1e-2 * (1 - 0.9 * done / 20) for done in (4, 8, 12, 16, 20)])
    assert "ended after step 5 of 20: run.max_time 10s is over" in said
    assert (tmp_path / "run" / "checkpoints" / "step-00000005" / "COMPLETE").exists()
    said.clear()
    steps_of_two_seconds()
    assert composed(tiny(**settings, **{"run.max_time": "10s"})).trainer.run()
    assert any(
        line.startswith("run.max_time 10s is over, after step 5 of 20: nothing to train") for line in said
    )
    said.clear()
    steps_of_two_seconds()
    assert composed(tiny(**settings, **{"run.max_time": "16s"})).trainer.run()
    effect = "the schedule ends after that time of training, of which 10s are over"
    assert f'changed on resume: run.max_time: "10s" -> "16s": {effect}' in said
    assert "ended after step 8 of 20: run.max_time 16s is over" in said


def test_a_run_that_is_fast_enough_does_not_notice(tiny, composed, tmp_path, steps_of_two_seconds):
    settings = {"precision": "fp64", "run.steps": 6, "log.every": 1}
    assert composed(tiny(**settings)).trainer.run()
    alone = [line["loss"] for line in lines(tmp_path / "run")]
    steps_of_two_seconds()
    assert composed(
        tiny(**settings, **{"run.max_time": "1h", "run.dir": str(tmp_path / "timed")})
    ).trainer.run()
    assert [line["loss"] for line in lines(tmp_path / "timed")] == alone


def test_checkpoints_by_the_clock(tiny, composed, tmp_path, steps_of_two_seconds):
    """Every 5 s, of steps of 2 s: after 6, 12 and 18 s, and at the end."""
    settings = {"precision": "fp64", "run.steps": 10, "checkpoint.every": "5s", "checkpoint.keep": 9}
    assert composed(tiny(**settings)).trainer.run()
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in (3, 6, 9, 10)]


@pytest.mark.parametrize(
    ("value", "what"),
    [("soon", "no duration"), (-1, "no interval"), (True, "no interval"), (1.5, "no interval")],
)
def test_no_interval(tiny, value, what):
    with pytest.raises(ValueError, match=what):
        tiny(**{"checkpoint.every": value})
