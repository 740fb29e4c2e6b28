"""The checkpoint with the lowest validation loss: kept beside the last ones, also by a run that goes on; ending early."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from thread_group import run_ranks

from cktrain.checkpoint import NotSavedError
from cktrain.checkpoint_record import read_checkpoint
from cktrain.saved_model import find_saved_model
from cktrain.training.best_checkpoint import best_checkpoint
from cktrain.training.validation import ValidationResult


@pytest.fixture
def run_with(tiny, composed, tokens_file):
    """`run_with(losses, **overrides)` -> a composed run whose validations, after each step, give these losses."""

    def make(losses: list[float], **overrides):
        validation = {"every": 1, "batches": 1, "path": str(tokens_file)}
        keys = {
            "run.steps": 6,
            "schedule.warmup_steps": 0,
            "checkpoint.save_best": True,
            "checkpoint.keep": 1,
        }
        config = tiny(**{"precision": "fp64", "data.validation": validation, **keys, **overrides})
        trainer = composed(config).trainer
        given = iter(losses)
        trainer.validator.run = lambda: ValidationResult(next(given), 1, None)
        return trainer

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_best_is_kept_beside_the_last(run_with, tmp_path):
    assert run_with([5.0, 4.0, 3.0, 3.5, 3.0, 6.0], **{"checkpoint.every": 1}).run()
    run = tmp_path / "run"
    assert names(run / "checkpoints") == ["step-00000006"]
    assert names(run / "best") == ["step-00000003"]  # an equal one later is not better
    assert best_checkpoint(run / "best") == (run / "best" / "step-00000003", 3.0)
    assert find_saved_model(run).path.name == "step-00000006"
    assert find_saved_model(run / "best").path.name == "step-00000003"


def test_what_the_run_began_with_is_no_checkpoint(run_with, tmp_path, tokens_file):
    validation = {"every": 1, "at_start": True, "batches": 1, "path": str(tokens_file)}
    assert run_with([1.0, *[2.0] * 6], **{"data.validation": validation}).run()
    assert best_checkpoint(tmp_path / "run" / "best") is None


def test_a_run_that_goes_on_keeps_the_best_of_before(run_with, tmp_path):
    assert run_with([5.0, 2.0, 3.0], **{"run.steps": 3}).run()
    assert run_with([2.5, 2.2, 2.1]).run()
    assert names(tmp_path / "run" / "best") == ["step-00000002"]
    assert run_with([1.0], **{"run.steps": 7}).run()
    assert names(tmp_path / "run" / "best") == ["step-00000007"]
    assert read_checkpoint(tmp_path / "run" / "best" / "step-00000007").state.validation_loss == 1.0


def test_the_best_of_other_validation_tokens_is_no_bar_and_is_kept(run_with, tmp_path, tokens_file, caplog):
    assert run_with([5.0, 2.0, 3.0], **{"run.steps": 3}).run()
    other = tmp_path / "other.bin"
    tokens = np.fromfile(tokens_file, np.uint16)
    tokens[0] ^= 1
    tokens.tofile(other)
    validation = {"every": 1, "batches": 1, "path": str(other)}
    assert run_with([9.0, 8.0, 8.5], **{"data.validation": validation}).run()
    assert "changed on resume: validation data:" in caplog.text and "whose loss 2.00000" in caplog.text
    best = tmp_path / "run" / "best"
    (aside,) = [name for name in names(best) if name.startswith("set-aside")]
    assert best_checkpoint(best) == (best / "step-00000005", 8.0)
    assert "step-00000002" in names(best / aside)
    caplog.clear()
    assert run_with([8.5], **{"run.steps": 7, "data.validation": validation}).run()
    assert (
        best_checkpoint(best) == (best / "step-00000005", 8.0)
        and "changed on resume: validation" not in caplog.text
    )


def test_a_run_that_starts_afresh_moves_the_best_aside(run_with, tmp_path):
    assert run_with([1.0, 2.0], **{"run.steps": 2}).run()
    assert run_with([3.0, 4.0], **{"run.steps": 2, "checkpoint.resume": "none"}).run()
    best = tmp_path / "run" / "best"
    (aside,) = [name for name in names(best) if name.startswith("set-aside")]
    assert names(best) == [aside, "step-00000001"]
    assert "step-00000001" in names(best / aside)
    assert best_checkpoint(best) == (best / "step-00000001", 3.0)


def test_a_run_that_gets_no_better_ends_saved(run_with, tmp_path, said):
    assert run_with([5.0, 4.0, 4.5, 4.2], **{"checkpoint.early_stopping_patience": 2}).run()
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000004"]
    assert names(tmp_path / "run" / "best") == ["step-00000002"]
    (line,) = [line for line in said if line.startswith("ended after")]
    assert line == (
        "ended after step 4 of 6: the last 2 validations were not better than loss 4.00000 "
        "(checkpoint.early_stopping_patience)"
    )


def test_patience_alone_keeps_no_best(run_with, tmp_path):
    keys = {"checkpoint.early_stopping_patience": 1, "checkpoint.save_best": False}
    assert run_with([5.0, 5.0], **keys).run()
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000002"]
    assert not (tmp_path / "run" / "best").exists()


def test_a_best_that_cannot_be_written_does_not_end_the_run(run_with, tmp_path, said, monkeypatch):
    trainer = run_with([5.0, 4.0], **{"run.steps": 2})

    def full(*_measured) -> None:
        raise NotSavedError("[checkpoint] the disk is full.", may_pass=True)

    monkeypatch.setattr(trainer.saver, "save_best", full)
    assert trainer.run()
    assert any("The run goes on; the best one up to step 2 is not kept" in line for line in said)
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000002"]


def test_the_best_needs_a_validation(tiny):
    with pytest.raises(ValueError, match=r"nothing is validated. Set data.validation.every"):
        tiny(**{"checkpoint.save_best": True})


def test_losses_stand_in_the_metrics(run_with, tmp_path):
    assert run_with([5.0, 4.0], **{"run.steps": 2}).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_loss"] for line in lines if "val_loss" in line] == [5.0, 4.0]


def test_all_ranks_keep_the_best_and_end_together(tiny, composed, tokens_file, tmp_path):
    """Two data ranks; the run that goes on has to be better than the best one on disk, which rank 0 tells."""
    losses = {"first": [5.0, 3.0, 4.0], "second": [3.5, 3.2]}

    def run(world, given: list[float]) -> tuple[int, float]:
        validation = {"every": 1, "batches": 1, "path": str(tokens_file)}
        steps = {"run.steps": 9, "schedule.warmup_steps": 0, "checkpoint.early_stopping_patience": 2}
        if given is losses["first"]:
            steps |= {"run.steps": 3}
        keys = {"precision": "fp64", "data.validation": validation, "checkpoint.save_best": True, **steps}
        trainer = composed(tiny(**keys), group=world).trainer
        left = iter(given)
        trainer.validator.run = lambda: ValidationResult(next(left), 1, None)
        assert trainer.run()
        return trainer.progress.step, trainer.saver.saved_step

    assert run_ranks(2, lambda world: run(world, losses["first"])) == [(3, 3)] * 2
    assert run_ranks(2, lambda world: run(world, losses["second"])) == [(5, 5)] * 2
    best = tmp_path / "run" / "best" / "step-00000002"
    assert best_checkpoint(tmp_path / "run" / "best") == (best, 3.0)
    assert sorted(path.name for path in best.glob("rank*")) == ["rank0.safetensors", "rank1.safetensors"]
