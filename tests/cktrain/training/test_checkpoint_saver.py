"""A periodic save that fails: the run goes on, says it once, tries again, and fails only if its last save does too."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from cktrain.agreed import AgreedError
from cktrain.checkpoint import NotSavedError
from cktrain.training.observer import Observer

sys.path.insert(0, str(Path(__file__).parents[2] / "comm"))
from crew import Crew

EVERY_2 = {"precision": "fp64", "run.steps": 10, "checkpoint.every": 2, "checkpoint.keep": 9}


@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True`: nothing can be written durably any more."""

    class Disk:
        full = False

    fsync = os.fsync

    def may_fail(descriptor):
        if Disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", may_fail)
    return Disk


class Between(Observer):
    """The disk is full from before the save of one step until before that of another."""

    def __init__(self, disk, first, last):
        self.disk, self.first, self.last = disk, first, last

    def stepped(self, step):
        self.disk.full = self.first <= step.number < self.last


def saved(trainer) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in trainer.checkpoint_folder.glob("step-*/COMPLETE"))


def test_a_run_outlives_a_full_disk(tiny, composed, disk, said):
    trainer = composed(tiny(**EVERY_2)).trainer
    trainer.observers.append(Between(disk, 4, 7))
    assert trainer.run()
    assert saved(trainer) == [2, 8, 10]
    loud = [
        line
        for line in said
        if "disk is full" in line and "The run goes on and tries again at step 6" in line
    ]
    assert len(loud) == 1 and "what was trained after step 2 is in memory alone" in loud[0]
    assert sum("step 6 is not saved either: cannot write" in line for line in said) == 1
    assert any("written again; 2 before this one failed" in line for line in said)
    assert not list(trainer.checkpoint_folder.glob(".step-*"))


def test_a_run_whose_last_save_fails_ends_with_an_error(tiny, composed, disk):
    trainer = composed(tiny(**EVERY_2)).trainer
    trainer.observers.append(Between(disk, 5, 99))
    with pytest.raises(
        NotSavedError, match=r"the disk is full.* What was trained after step 4 is not saved\."
    ):
        trainer.run()
    assert saved(trainer) == [2, 4] and trainer.progress.step == 10


def test_a_stop_while_the_disk_is_full_is_an_error(tiny, composed, disk, monkeypatch):
    trainer = composed(tiny(**EVERY_2)).trainer
    step = trainer.step
    monkeypatch.setattr(trainer, "step", lambda stop=False: step(stop=trainer.progress.step == 6))
    trainer.observers.append(Between(disk, 5, 99))
    with pytest.raises(NotSavedError, match="What was trained after step 4 is not saved"):
        trainer.run()
    assert trainer.progress.step == 7


def test_a_folder_that_another_run_has_taken_over_ends_the_run(tiny, composed, monkeypatch):
    """Going on would write into what is another run's now."""
    from cktrain.folder_lock import FolderInUse

    def taken(_folder):
        raise FolderInUse("[lock] another run has taken it over")

    trainer = composed(tiny(**EVERY_2)).trainer
    monkeypatch.setattr("cktrain.checkpoint.refuse_if_taken_over", taken)
    with pytest.raises(NotSavedError, match="another run has taken it over"):
        trainer.run()
    assert trainer.progress.step == 2


def test_weights_that_are_not_finite_end_the_run(tiny, composed):
    trainer = composed(tiny(**EVERY_2)).trainer

    class Spoil(Observer):
        def stepped(self, step):
            if step.number == 4:
                trainer.params.data[3] = float("inf")

    trainer.observers.append(Spoil())
    with pytest.raises(NotSavedError, match="What was trained after step 2 is not saved"):
        trainer.run()
    assert trainer.progress.step == 4 and saved(trainer) == [2]


def test_all_ranks_go_on_when_one_cannot_write(tiny, composed, monkeypatch):
    """Rank 1 alone has a full disk; both hear of it and go on to the next save."""
    config = tiny(**EVERY_2)
    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    crew = Crew("shm", 2)

    def train(group):
        trainer = composed(config, None, group).trainer
        if group.rank == 1:
            owned = trainer.saver._shard.owned

            class Full(list):
                def __iter__(self):
                    if trainer.progress.step == 4:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return super().__iter__()

            trainer.part.owned = Full(owned)
        trainer.run()
        return trainer.saver.saved_step

    outcomes, _ = crew.outcomes(train)
    if not crew.broken:
        crew.close()
    assert outcomes == [10, 10], outcomes
    found = sorted(path.parent.name for path in Path(config.run.dir).glob("checkpoints/step-*/COMPLETE"))
    assert found == ["step-00000002", "step-00000006", "step-00000008", "step-00000010"]


def test_what_only_watches_is_told_in_order_and_ends_nothing(tiny, composed, tmp_path):
    told = []

    class Watcher(Observer):
        def begun(self, done, steps):
            told.append(("begun", done, steps))

        def measured(self, record, seconds_per_step, steps_left):
            told.append(("measured", record.step, steps_left))

        def stepped(self, step):
            told.append(("stepped", step.number, step.last))
            raise RuntimeError("only a watcher")

        def validated(self, step, result):
            told.append(("validated", step))

        def ended(self):
            told.append("ended")

    held_out = {"data.validation": {"every": 3, "path": str(tmp_path / "tokens.bin")}}
    trainer = composed(tiny(**{"precision": "fp64", "run.steps": 3, "log.every": 2, **held_out})).trainer
    trainer.observers.append(Watcher())
    assert trainer.run()
    assert told == [
        ("begun", 0, 3),
        *[("measured", 1, 2), ("stepped", 1, False)],
        *[("measured", 2, 1), ("stepped", 2, False)],
        *[("measured", 3, 0), ("stepped", 3, True), ("validated", 3)],
        "ended",
    ]


def test_an_error_that_all_know_is_no_watchers_matter(tiny, composed):
    class Part(Observer):
        watches = False

        def stepped(self, step):
            raise AgreedError("all of us")

    trainer = composed(tiny(**EVERY_2)).trainer
    trainer.observers.append(Part())
    with pytest.raises(AgreedError, match="all of us"):
        trainer.run()
