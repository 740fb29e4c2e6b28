"""Runs as long as their epochs: the steps that follow, what is said and saved of them, and how such a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cktrain.config import Config, ScheduleConfig
from cktrain.config_file import load_config
from cktrain.optim.schedule import learning_rate
from cktrain.run_length import count_steps, length_in_words

EPOCHS = {"precision": "fp64", "run.steps": None, "run.epochs": 0.5, "batch.global_batch_size": 40}
"""Of 374 sequences: 187, in 5 steps of 40."""


def lines(config: Config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("epochs", "sequences", "batch", "steps"),
    [(3, 100, 16, 19), (1, 16, 16, 1), (0.5, 374, 40, 5), (0.001, 10, 16, 1), (2, 8, 8, 2)],
)
def test_steps_follow_from_the_sequences(tiny, epochs, sequences, batch, steps):
    config = tiny(
        **{
            "run.steps": None,
            "run.epochs": epochs,
            "batch.global_batch_size": batch,
            "schedule.warmup_steps": 0,
        }
    )
    assert count_steps(config, sequences).run.total_steps == steps


def test_steps_that_were_done_with_another_batch_count(tiny):
    """2 epochs of 100 sequences; 10 steps have consumed 40 of them, and 160 are left: 20 steps of 8."""
    config = tiny(**{"run.steps": None, "run.epochs": 2})
    assert count_steps(config, 100, done=10, examples=40).run.total_steps == 30


def test_tokens_are_counted_in_sequences(tiny):
    """1,000 tokens are 63 sequences of 16, the last one not whole: 8 steps of 8; after 24 sequences 5 more steps."""
    config = tiny(
        **{"run.steps": None, "run.tokens": 1000, "data.sequence_length": 16, "batch.global_batch_size": 8}
    )
    counted = count_steps(config, 100)
    assert counted.run.total_steps == 8
    assert length_in_words(counted, 100) == "tokens: 1,000, 128 in a step: 8 steps, 0.64 epochs"
    assert count_steps(config, 100, done=2, examples=24).run.total_steps == 7


def test_one_length_is_given(tiny):
    with pytest.raises(ValueError, match="steps 3 and epochs 1 both say how long it is"):
        tiny(**{"run.steps": 3, "run.epochs": 1})
    with pytest.raises(ValueError, match="steps 3 and epochs 1 and tokens 5 all say how long it is"):
        tiny(**{"run.steps": 3, "run.epochs": 1, "run.tokens": 5})
    with pytest.raises(ValueError, match=r"nothing says how long it is. Give steps, epochs or tokens"):
        tiny(**{"run.steps": None})


def test_a_schedule_longer_than_the_epochs_is_refused(tiny, composed):
    with pytest.raises(ValueError, match=r"schedule.warmup_steps 6 is more than run.steps 5"):
        composed(tiny(**EPOCHS, **{"schedule.warmup_steps": 6}))


def test_the_warm_up_may_be_a_share(tiny):
    schedule = ScheduleConfig(warmup_ratio=0.03)
    assert [schedule.warmup(steps) for steps in (10, 100, 200)] == [1, 3, 6]
    assert learning_rate(schedule, 1.0, 200, 3) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="both say how long the warm-up is"):
        ScheduleConfig(warmup_ratio=0.03, warmup_steps=3)


def test_a_run_of_epochs(tiny, composed, said, tmp_path):
    config = tiny(**EPOCHS, **{"log.every": 2})
    assert composed(config).trainer.run()
    assert "epochs: 0.5 of 374 sequences of 16 tokens, 40 in a step: 5 steps, 9.3 an epoch" in said
    assert [(line["step"], line["epoch"]) for line in lines(config)] == [
        (step, pytest.approx(40 * step / 374)) for step in (1, 2, 4, 5)
    ]
    assert any(line.startswith("step: 4") and line.endswith("epoch: 0.43") for line in said)
    kept = load_config(tmp_path / "run" / "config.yaml").run
    assert (kept.epochs, kept.steps) == (0.5, None)


def test_more_epochs_say_what_happens_to_the_schedule(tiny, composed, said):
    assert composed(tiny(**EPOCHS)).trainer.run()
    said.clear()
    longer = tiny(**{**EPOCHS, "run.epochs": 1.0})
    trainer = composed(longer).trainer
    assert trainer.config.run.total_steps == 10
    told = [line for line in said if line.startswith("changed on resume")]
    assert told == [
        "changed on resume: run.steps: 5 -> 10: the rate of the next step is 0.006501 instead of 0.001",
        "changed on resume: run.epochs: 0.5 -> 1.0: the run ends after 10 steps",
    ]
    assert trainer.run()
    assert [line["step"] for line in lines(longer)] == [1, 5, 10]


def test_validation_comes_several_times_in_an_epoch(tiny, composed, tokens_file):
    """9.35 steps an epoch, in quarters: after steps 3 (120 of 93.5), 5 (200 of 187), 8, 10; and before the first."""
    validation = {"times_per_epoch": 4, "at_start": True, "batches": 1, "path": str(tokens_file)}
    config = tiny(**{**EPOCHS, "run.epochs": 1.0}, **{"data.validation": validation})
    assert composed(config).trainer.run()
    assert [line["step"] for line in lines(config) if "val_loss" in line] == [0, 3, 5, 8, 10]


def test_validation_after_every_step_of_short_epochs(tiny, composed, tokens_file):
    validation = {"times_per_epoch": 40, "batches": 1, "path": str(tokens_file)}
    config = tiny(**EPOCHS, **{"data.validation": validation})
    assert composed(config).trainer.run()
    assert [line["step"] for line in lines(config) if "val_loss" in line] == [1, 2, 3, 4, 5]
