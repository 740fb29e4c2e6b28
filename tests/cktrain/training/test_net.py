"""Whatever ends a run between two steps, on one rank or on all: what was trained is saved, and the error says so."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cktrain.agreed import AgreedFault, AgreedInputError, Trouble, agree
from cktrain.comm.solo_group import SoloGroup
from cktrain.training import stop
from cktrain.training.divergence import TrainingDiverged

sys.path.insert(0, str(Path(__file__).parents[2] / "comm"))
from crew import Crew

TINY = {"precision": "fp64", "log.every": 1}


@pytest.fixture
def crew():
    ranks = Crew("shm", 2)
    yield ranks
    if not ranks.broken:
        ranks.close()


def saved(config):
    return sorted(path.parent.name for path in Path(config.run.dir).glob("checkpoints/step-*/COMPLETE"))


def validated(tiny, tokens_file, tmp_path, **validation):
    held_out = tmp_path / "held_out.bin"
    np.fromfile(tokens_file, np.uint16)[:600].tofile(held_out)
    validation = {"every": 4, "path": str(held_out), **validation}
    return tiny(**TINY, **{"data.validation": validation}), held_out


def stopped_in_validation(trainer, ask=signal.raise_signal):
    """Its run, of which the first batch of a validation asks for an end; and the step at each batch that was evaluated."""
    evaluate, steps = trainer.stage.evaluate, []

    def stop(*arguments):
        steps.append(trainer.progress.step)
        ask(signal.SIGTERM)
        return evaluate(*arguments)

    trainer.stage.evaluate = stop
    return trainer.run(), steps


def fail(*_args, **_kwargs):
    raise MemoryError("4096 bytes")


def test_agree_names_the_ranks_that_have_it():
    told = agree(SoloGroup(), Trouble("it", True))
    assert isinstance(told, AgreedInputError) and str(told) == "it" and agree(SoloGroup(), None) is None


def test_a_bad_id_in_the_validation_split(tiny, composed, tokens_file, tmp_path):
    """The file and the position are named, not the kernel's range alone; four steps are saved."""
    config, held_out = validated(tiny, tokens_file, tmp_path)
    ids = np.fromfile(held_out, np.uint16)
    ids[70] = 999
    ids.tofile(held_out)
    with pytest.raises(
        AgreedInputError, match=r"held_out.bin: token id 999 at position 70 .* 4 steps are saved in"
    ):
        composed(config).trainer.run()
    assert saved(config) == ["step-00000004"]


def test_a_stopped_run_saves_before_it_validates(tiny, composed, tokens_file, tmp_path, monkeypatch):
    """Validation may take longer than what is left until it is killed."""
    config, _ = validated(tiny, tokens_file, tmp_path)
    trainer = composed(config).trainer
    step, validate, seen = trainer.step, trainer.validator.run, []
    monkeypatch.setattr(trainer, "step", lambda stop=False: step(stop=trainer.progress.step == 3))
    monkeypatch.setattr(trainer.validator, "run", lambda: seen.append(saved(config)) or validate())
    assert trainer.run() is False
    assert seen == [["step-00000004"]]


def test_a_run_alone_leaves_its_validation_when_it_is_to_stop(tiny, composed, tokens_file, tmp_path):
    """One step more ends it, and no other batch of the validation."""
    config, _ = validated(tiny, tokens_file, tmp_path, batches=5)
    done, steps = stopped_in_validation(composed(config).trainer)
    assert done is False
    assert len(steps) == 1 and saved(config) == [f"step-{steps[0] + 1:08d}"]


def test_two_ranks_leave_their_validation_when_one_is_to_stop(
    tiny, composed, tokens_file, tmp_path, monkeypatch, crew
):
    """They hear of it after the global batch, and end after one step more."""
    config, _ = validated(tiny, tokens_file, tmp_path, batches=5)
    share = config.batch.global_batch_size // (2 * config.batch.micro_batch_size)

    def train(group):
        trainer = composed(config, None, group).trainer
        evaluated = []
        if group.rank == 1:
            return stopped_in_validation(trainer, lambda name: setattr(trainer.flag, "signal", name))
        evaluate = trainer.stage.evaluate
        trainer.stage.evaluate = lambda *of: evaluated.append(trainer.progress.step) or evaluate(*of)
        return trainer.run(), evaluated

    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    for done, steps in crew.do(train):
        assert done is False and steps == [4] * share
    assert saved(config) == ["step-00000005"]


def test_a_long_step_of_a_run_alone_is_left_and_computed_again(
    tiny, composed, tokens_file, tmp_path, monkeypatch, caplog
):
    """Slurm kills 30 s after its SIGTERM, however long a step takes; what goes on has the same losses."""
    config, _ = validated(tiny, tokens_file, tmp_path)
    elsewhere = config.run.model_copy(update={"dir": str(tmp_path / "whole")})
    whole = composed(config.model_copy(update={"run": elsewhere})).trainer
    whole.run()
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 0.05)
    monkeypatch.setattr(stop, "SAY_AFTER_S", 0.01)
    trainer = composed(config).trainer
    train = trainer.stage.train

    def stopped(*arguments):
        if trainer.progress.step == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        return train(*arguments)

    monkeypatch.setattr(trainer.stage, "train", stopped)
    with caplog.at_level("INFO", "cktrain"):
        assert trainer.run() is False
    assert saved(config) == ["step-00000002"]
    assert (
        "[stop] SIGTERM: step 3 is finished and saved, then the run ends; after 5 s it is left" in caplog.text
    )
    assert "stopped by SIGTERM: step 3 is left" in caplog.text
    resumed = composed(config).trainer
    assert resumed.run() is True
    assert np.array_equal(resumed.params.data, whole.params.data)


def test_a_second_interrupt_says_what_is_not_saved(tiny, composed, monkeypatch):
    trainer = composed(tiny(**TINY)).trainer

    def interrupted(*_arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr(trainer.stage, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.fate == "Not saved: what was trained after step 0."


@pytest.mark.parametrize("broken", ["validator", "evaluate", "forward", "update", "loader"])
def test_alone(tiny, composed, tokens_file, tmp_path, monkeypatch, broken):
    """A run alone saves wherever it fails, but in the middle of an update."""
    config, _ = validated(tiny, tokens_file, tmp_path)
    trainer = composed(config).trainer
    step = trainer.step

    def break_at_5(*, stop=False):
        if trainer.progress.step == 4:
            if broken == "forward":
                monkeypatch.setattr(trainer.stage, "train", fail)
            elif broken == "update":
                monkeypatch.setattr(trainer.part.data, "update", fail)
            else:
                monkeypatch.setattr(trainer.loader, "batch", fail)
        return step(stop=stop)

    if broken == "validator":
        monkeypatch.setattr(trainer.validator, "run", fail)
    elif broken == "evaluate":
        monkeypatch.setattr(trainer.stage, "evaluate", fail)
    else:
        monkeypatch.setattr(trainer, "step", break_at_5)
    with pytest.raises((MemoryError, AgreedFault)) as error:
        trainer.run()
    said = f"{error.value} {trainer.fate}"
    if broken == "update":
        assert "Not saved: what was trained after step 0, since step 5 was half applied." in said
        assert saved(config) == []
    else:
        assert "4 steps are saved in" in said and saved(config) == ["step-00000004"]


@pytest.mark.parametrize("broken", ["validator", "evaluate", "data", "bad id", "last step"])
def test_one_rank_of_two(tiny, composed, tokens_file, tmp_path, monkeypatch, crew, broken):
    """Rank 1 alone fails; both save what was trained and raise the same error, which names it."""
    config, _ = validated(tiny, tokens_file, tmp_path)

    def train(group):
        trainer = composed(config, None, group).trainer
        if group.rank == 1:
            if broken == "validator":
                inner = trainer.validator.run

                def run_then_fail():
                    inner()
                    fail()

                trainer.validator.run = run_then_fail
            elif broken == "evaluate":
                trainer.stage.evaluate = fail
            elif broken == "data":
                batch = trainer.loader.batch
                trainer.loader.batch = lambda consumed: fail() if consumed == 4 * 8 else batch(consumed)
            elif broken == "bad id":
                (source,) = trainer.validator.sources.values()
                check = source.check_ids
                source.check_ids = lambda ids, at, _size: check(ids, at, 3)
            else:
                inner = trainer.validator.run
                trainer.validator.run = lambda: (inner(), fail() if trainer.progress.step == 20 else None)[0]
        return trainer.run()

    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    outcomes, _ = crew.outcomes(train)
    steps = 20 if broken == "last step" else 4
    for outcome in outcomes:
        assert isinstance(outcome, AgreedInputError if broken == "bad id" else AgreedFault), outcome
    assert str(outcomes[0]) == str(outcomes[1])
    fate = "were saved before" if broken == "last step" else "are saved in"
    assert f"(rank 1) {steps} steps {fate}" in str(outcomes[0])
    if broken == "bad id":
        assert "held_out.bin: token id" in str(outcomes[0])
    assert saved(config) == [f"step-{steps:08d}"]


def test_a_rank_that_fails_inside_a_step_says_why_nothing_is_saved(tiny, composed, monkeypatch, crew):
    config = tiny(precision="fp64")
    trainers = {}
    monkeypatch.setenv("CKTRAIN_ISA", "reference")

    # Rank 0 would wait for its peer: only rank 1 runs to its error.
    def only_one(group):
        trainer = composed(config, None, group).trainer
        trainers[group.rank] = trainer
        if group.rank == 1:
            trainer.stage.train = fail
            with pytest.raises(MemoryError):
                trainer.run()

    crew.do(only_one)
    assert "since the other ranks wait for this one inside of what it began after step 0" in trainers[1].fate
    assert saved(config) == []


def test_a_run_that_diverges_saves_and_deletes_nothing(tiny, composed, monkeypatch):
    """The weights are those from before the skipped steps; older checkpoints stay, however few are to be kept."""
    config = tiny(precision="fp64", **{"checkpoint.every": 2, "checkpoint.keep": 1})
    trainer = composed(config).trainer
    step = trainer.step

    def poisoned(*, stop=False):
        if trainer.progress.step == 3:
            backward = trainer.model.backward_loss

            def bad(tokens, slot):
                backward(tokens, slot)
                trainer.params.grad[5] = np.inf

            trainer.model.backward_loss = bad
        return step(stop=stop)

    monkeypatch.setattr(trainer, "step", poisoned)
    with pytest.raises(TrainingDiverged, match=r"6 steps are saved in .*\. Older checkpoints are untouched"):
        trainer.run()
    assert saved(config) == ["step-00000004", "step-00000006"]
