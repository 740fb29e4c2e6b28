"""Which checkpoint is the newest, what a new run does with those of others, and what is never deleted."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cktrain import checkpoint_folder
from cktrain.checkpoint import CheckpointError, complete_checkpoints
from cktrain.checkpoint_folder import LINEAGE_FILE, find_candidates
from cktrain.saved_model import find_saved_model

FP64 = {"precision": "fp64", "checkpoint.keep": 3, "run.steps": 6, "checkpoint.every": 2}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def used(tiny, composed, tmp_path):
    """`used(**overrides)` -> a composed run in a folder in which one has saved steps 2, 4 and 6."""
    first = composed(tiny(**FP64))
    assert first.trainer.run()
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000002", "step-00000004", "step-00000006"]

    def again(**overrides):
        return composed(tiny(**{**FP64, "run.steps": 12, **overrides})).trainer

    return again


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    return tmp_path / "run" / "checkpoints"


def aside(checkpoints: Path) -> list[str]:
    """What stands in the one folder of things set aside, without the metrics."""
    (folder,) = checkpoints.glob("set-aside-*")
    return [name for name in names(folder) if name != "metrics.jsonl"]


def steps(checkpoints: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete_checkpoints(checkpoints)]


def test_a_fresh_run_in_a_used_folder_moves_the_older_aside(used, checkpoints, said):
    trainer = used(**{"checkpoint.resume": "none", "checkpoint.keep": 1, "run.steps": 4})
    assert trainer.progress.step == 0
    assert aside(checkpoints) == ["step-00000002", "step-00000004", "step-00000006"]
    assert "step-00000006 did not lead to this run, which begins at step 0" in "".join(said)
    metrics = next(checkpoints.glob("set-aside-*")) / "metrics.jsonl"
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 6
    trainer.run()
    assert steps(checkpoints) == [4]
    trainer = used(**{"run.steps": 5})
    assert trainer.progress.step == 4
    again = used(**{"checkpoint.resume": str(next(checkpoints.glob("set-aside-*")) / "step-00000006")})
    assert again.progress.step == 6
    assert len(list(checkpoints.glob("set-aside-*"))) == 2


def test_an_older_one_that_is_resumed_is_not_rotated_for_the_later(used, checkpoints):
    trainer = used(**{"checkpoint.resume": str(checkpoints / "step-00000002") + "/", "checkpoint.keep": 1})
    assert trainer.progress.step == 2
    assert aside(checkpoints) == ["step-00000004", "step-00000006"]
    trainer.step()
    trainer.save()
    assert steps(checkpoints) == [3]
    assert [parent.step for parent in used().progress.parents] == [2, 3]


def test_a_chain_of_resumes_stays_one_lineage(used, checkpoints):
    for step in (7, 8, 9):
        trainer = used()
        assert trainer.progress.step == step - 1
        trainer.step()
        trainer.save()
    assert steps(checkpoints) == [7, 8, 9]
    assert not list(checkpoints.glob("set-aside-*"))


def test_the_users_own_copies_are_left_alone(used, checkpoints):
    newest = checkpoints / "step-00000006"
    own = ["step-00000006-best", "step-6.bak", "my-copy", "step-6", "old-step-00000099", "step-000000099"]
    for name in own:
        shutil.copytree(newest, checkpoints / name)
    (checkpoints / ".step-mine").mkdir()
    (checkpoints / "step-00000777").write_text("a file")
    (checkpoints / "notes.txt").write_text("lr was too high")
    trainer = used(**{"checkpoint.keep": 1})
    assert trainer.progress.step == 6
    trainer.run()
    left = names(checkpoints)
    assert steps(checkpoints) == [12]
    assert {*own, ".step-mine", "step-00000777", "notes.txt"} <= set(left)
    assert used(**{"checkpoint.resume": str(checkpoints / "my-copy")}).progress.step == 6


def test_a_copy_under_a_name_that_a_run_writes_is_told_by_its_state(used, checkpoints, said):
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000999")
    assert used().progress.step == 6
    assert "passed over step-00000999: it holds step 2, a copy under another name; taken instead" in "".join(
        said
    )
    assert (checkpoints / "step-00000999").exists()


def test_a_foreign_checkpoint_is_not_the_newest(used, tiny, composed, checkpoints, tmp_path, said):
    other = composed(tiny(**{**FP64, "run.dir": str(tmp_path / "other"), "run.steps": 8})).trainer
    other.run()
    shutil.copytree(other.checkpoint_folder / "step-00000008", checkpoints / "step-00000008")
    assert used().progress.step == 6
    assert "passed over step-00000008: another run wrote it" in "".join(said)
    shutil.rmtree(checkpoints)
    shutil.copytree(other.checkpoint_folder, checkpoints)
    assert used().progress.step == 8  # nothing of its own is left


def test_what_appears_under_a_name_while_a_run_goes_on_is_kept(
    used, tiny, composed, checkpoints, tmp_path, said
):
    other = composed(tiny(**{**FP64, "run.dir": str(tmp_path / "other"), "run.steps": 8})).trainer
    other.run()
    trainer = used(**{"checkpoint.keep": 1})
    for _ in range(2):
        trainer.step()
    shutil.copytree(other.checkpoint_folder / "step-00000008", checkpoints / "step-00000008")
    shutil.copytree(other.checkpoint_folder / "step-00000006", checkpoints / "step-00000005")
    trainer.save()
    assert steps(checkpoints) == [8] and aside(checkpoints) == ["step-00000008"]
    assert (checkpoints / "step-00000005").exists()
    assert any("was not written by this run: moved into set-aside-" in line for line in said)


def test_skipped_ones_are_named(used, checkpoints, said):
    (checkpoints / "step-00000006" / "COMPLETE").unlink()
    assert used().progress.step == 4
    text = "".join(said)
    assert "passed over step-00000006: no COMPLETE marker" in text
    assert f"taken instead: {checkpoints / 'step-00000004'}" in text
    assert (checkpoints / "step-00000006").exists()


def test_a_folder_that_takes_no_checkpoint_is_found_before_the_first_step(used, checkpoints, monkeypatch):
    """The run's folder may be written, that of its checkpoints is another user's."""
    make = os.mkdir

    def refuse(path, *mode):
        if Path(path).parent == checkpoints:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"run/checkpoints/.*Permission denied"):
        used()


def test_whoever_opens_a_run_hears_what_is_passed_over(used, checkpoints, said):
    """Generate, export and report."""
    (checkpoints / "step-00000006" / "COMPLETE").unlink()
    assert find_saved_model(checkpoints.parent).path == checkpoints / "step-00000004"
    text = "".join(said)
    assert (
        f"passed over step-00000006: no COMPLETE marker, so it was not written to its end; taken instead: {checkpoints}"
        in text
    )
    for path in checkpoints.glob("step-*"):
        (path / "COMPLETE").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has no complete checkpoint \(step-00000006: no COMPLETE marker"):
        find_saved_model(checkpoints.parent)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(used, checkpoints):
    for path in checkpoints.iterdir():
        (path / "state.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoints there is whole \(step-00000006: state.json"
    ):
        used()
    assert len(names(checkpoints)) == 3
    assert used(**{"checkpoint.resume": "none"}).progress.step == 0
    assert len(aside(checkpoints)) == 3


STATES = {
    "empty": "",
    "no json": "{",
    "a list": "[]",
    "null": "null",
    "keys missing": '{"format": 3}',
    "another type": '{"format": 3, "cktrain": "1", "step": "6", "updates": 6, "tokens": 1, "precision": "fp64"}',
    "a precision that is none": '{"format": 3, "cktrain": "1", "step": 6, "updates": 6, "tokens": 1, "precision": "x"}',
    "no format": '{"format": null}',
    "too deep": "[" * 100_000,
    "binary": "\0\1\2",
}
MARKERS = {
    **{name: text for name, text in STATES.items() if not text.startswith('{"format": 3, ')},
    "outside": '{"../../metrics.jsonl": 5, "state.json": 1, "config.yaml": 1}',
    "absolute": '{"/etc/hostname": 5}',
    "a negative size": '{"state.json": -1}',
    "a digest that is none": '{"state.json": {"bytes": 1, "sha256": "x"}}',
    "a file's size is true": '{"state.json": true}',
    "nothing": "{}",
    "no weights": None,
}


@pytest.mark.parametrize(
    "file, damage", [*(("state.json", d) for d in STATES), *(("COMPLETE", d) for d in MARKERS)]
)
def test_a_damaged_record_is_named_and_passed_over(used, checkpoints, said, file, damage):
    newest = checkpoints / "step-00000006"
    marker = json.loads((newest / "COMPLETE").read_text())
    text = (STATES if file == "state.json" else MARKERS)[damage]
    if text is None:
        text = json.dumps({name: record for name, record in marker.items() if "rank" not in name})
    (newest / file).write_text(text)
    if file == "state.json":
        marker["state.json"] = len(text)
        (newest / "COMPLETE").write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match=rf"step-00000006: .*({file}|weights)"):
        used(**{"checkpoint.resume": str(newest)})
    assert used().progress.step == 4
    assert any("passed over step-00000006" in line and file in line for line in said)


def test_a_newer_format_is_not_passed_over(used, checkpoints):
    state = checkpoints / "step-00000006" / "state.json"
    values = json.loads(state.read_text())
    text = json.dumps({**values, "format": 99})
    state.write_text(text)
    marker = checkpoints / "step-00000006" / "COMPLETE"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "state.json": len(text)}))
    with pytest.raises(
        CheckpointError, match=r"format 99, and cktrain .* reads 2 and 3\. Use the version that wrote it"
    ):
        used()


@pytest.mark.parametrize("half", [".step-00000006.tmp", ".step-00000006.old", ".step-00000006.old.1"])
def test_a_whole_one_between_two_names_is_recovered(used, checkpoints, said, half):
    (checkpoints / "step-00000006").rename(checkpoints / half)
    assert used().progress.step == 6
    assert f"[checkpoint] recovered {checkpoints / 'step-00000006'}: it was whole" in "".join(said)


def test_of_two_halves_the_newer_is_recovered(used, checkpoints):
    shutil.copytree(checkpoints / "step-00000006", checkpoints / ".step-00000006.old")
    (checkpoints / "step-00000006").rename(checkpoints / ".step-00000006.tmp")
    (checkpoints / ".step-00000006.tmp" / "new").write_text("")
    trainer = used()
    assert (checkpoints / "step-00000006" / "new").exists()
    trainer.step()
    trainer.save()
    assert not list(checkpoints.glob(".step-*"))


def test_an_unfinished_half_is_no_checkpoint(used, checkpoints):
    shutil.copytree(checkpoints / "step-00000006", checkpoints / ".step-00000008.tmp")
    shutil.copytree(checkpoints / "step-00000006", checkpoints / ".step-00000007.tmp")
    (checkpoints / ".step-00000007.tmp" / "COMPLETE").unlink()
    assert used().progress.step == 6
    assert not (checkpoints / "step-00000007").exists() and not (checkpoints / "step-00000008").exists()


def test_a_damaged_one_makes_room_for_its_whole_half(used, checkpoints):
    shutil.copytree(checkpoints / "step-00000006", checkpoints / ".step-00000006.tmp")
    (checkpoints / "step-00000006" / "COMPLETE").write_text("")
    assert used().progress.step == 6
    assert aside(checkpoints) == ["step-00000006"]


def test_a_run_or_its_folder_may_be_named_instead_of_a_checkpoint(used, checkpoints, tmp_path):
    for path in (checkpoints.parent, checkpoints):
        trainer = used(**{"checkpoint.resume": str(path), "run.dir": str(tmp_path / "next")})
        assert trainer.progress.step == 6
    (tmp_path / "empty").mkdir()
    for path, words in {
        tmp_path / "empty": "no COMPLETE marker",
        tmp_path / "tokens.bin": "is not a folder",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            used(**{"checkpoint.resume": str(path)})


def test_another_runs_checkpoint_in_a_used_folder_moves_all_aside(
    used, tiny, composed, checkpoints, tmp_path
):
    other = composed(tiny(**{**FP64, "run.dir": str(tmp_path / "other"), "run.steps": 4})).trainer
    other.run()
    trainer = used(**{"checkpoint.resume": str(other.checkpoint_folder / "step-00000004")})
    assert trainer.progress.step == 4
    assert aside(checkpoints) == ["step-00000002", "step-00000004", "step-00000006"]
    assert len(names(other.checkpoint_folder)) == 2


def test_a_folder_that_is_linked_to_is_the_same_folder(used, checkpoints, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    trainer = used(
        **{"run.dir": str(tmp_path / "link"), "checkpoint.resume": str(checkpoints / "step-00000006")}
    )
    assert trainer.progress.step == 6 and not list(checkpoints.glob("set-aside-*"))


def test_a_linked_checkpoint_is_resumed_and_never_deleted(used, checkpoints, tmp_path):
    (checkpoints / "step-00000006").rename(tmp_path / "elsewhere")
    (checkpoints / "step-00000006").symlink_to(tmp_path / "elsewhere")
    trainer = used(**{"checkpoint.keep": 1})
    assert trainer.progress.step == 6
    trainer.run()
    assert (tmp_path / "elsewhere" / "COMPLETE").exists() and (checkpoints / "step-00000006").is_symlink()


def test_a_clock_that_goes_backwards_changes_nothing(used, checkpoints):
    for number, name in enumerate(("step-00000006", "step-00000004", "step-00000002")):
        os.utime(checkpoints / name, (number, number))
        os.utime(checkpoints / name / "COMPLETE", (number, number))
    assert used().progress.step == 6


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1}', None])
def test_without_its_lineage_the_newest_is_the_highest_step(used, checkpoints, text):
    file = checkpoints.parent / LINEAGE_FILE
    file.unlink() if text is None else file.write_text(text)
    assert used().progress.step == 6
    assert find_candidates(checkpoints).found[0].state.step == 6


def test_a_checkpoints_folder_that_is_none_is_an_error(used, checkpoints):
    checkpoints.rename(checkpoints.with_name("moved"))
    checkpoints.write_text("")
    for resume in ("auto", "none"):
        with pytest.raises(ValueError, match=r"checkpoints.*Not a directory"):
            used(**{"checkpoint.resume": resume})


def test_what_cannot_be_moved_aside_ends_the_start_and_loses_nothing(used, checkpoints, monkeypatch):
    before = names(checkpoints)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(checkpoints))

    for broken in ("rename", "mkdir", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_folder.os, broken, refuse)
            with pytest.raises(ValueError, match="Read-only file system"):
                used(**{"checkpoint.resume": "none"})
    found = {name for path in (checkpoints, *checkpoints.glob("set-aside-*")) for name in names(path)}
    assert set(before) <= found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_save_that_fails_leaves_the_last_one(used, checkpoints, monkeypatch, broken, number):
    trainer = used()
    trainer.step()
    real, calls, passed = getattr(os, broken), 0, 0

    def fail(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls > passed:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    failed = True
    while failed:
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            failed = False
            try:
                trainer.save()
            except CheckpointError as error:
                failed = True
                assert "the last good checkpoint is untouched" in str(error)
        assert steps(checkpoints)[-1] in (6, 7)
        passed += 1
    assert passed > 1
    assert steps(checkpoints) == [4, 6, 7]
    again = used()
    assert again.progress.step == 7
    np.testing.assert_array_equal(again.params.data, trainer.params.data)


def test_a_folder_copied_but_for_its_lineage_goes_on_from_the_newest(used, checkpoints):
    """The copy's lineage.json is of an earlier run; what went on from that run is newer all the same."""
    before = (checkpoints.parent / LINEAGE_FILE).read_text()
    trainer = used()
    trainer.step()
    trainer.save()
    (checkpoints.parent / LINEAGE_FILE).write_text(before)
    assert used().progress.step == 7
    assert not list(checkpoints.glob("set-aside-*"))


def test_steps_beyond_eight_digits_are_in_order(tmp_path):
    for name in ("step-100000000", "step-99999999", "step-00000002", "step-0000000003"):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoint_folder.step_folders(tmp_path)]
    assert found == ["step-00000002", "step-99999999", "step-100000000"]


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_a_run_killed_at_any_point_of_a_save_goes_on(used, checkpoints, monkeypatch, again):
    """At each rename, fsync, deletion and write: the next start finds the last checkpoint or the new one."""
    trainer = used(**{"checkpoint.keep": 1})
    if not again:
        trainer.step()
    reached = 7 - again
    calls = passed = 0

    def stops(real):
        def call(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls > passed:
                raise Killed
            return real(*arguments, **named)

        return call

    killed = True
    while killed:
        calls, killed = 0, False
        with monkeypatch.context() as patch:
            for where, name in (
                (os, "rename"),
                (os, "fsync"),
                (os, "replace"),
                (shutil, "rmtree"),
                (os, "mkdir"),
            ):
                patch.setattr(where, name, stops(getattr(where, name)))
            patch.setattr(Path, "write_text", stops(Path.write_text))
            try:
                trainer.save()
            except Killed:
                killed = True
        kept = tmp_copy(checkpoints.parent)
        checkpoint_folder.recover(kept / "checkpoints")
        found = find_candidates(kept / "checkpoints").found
        assert found and found[0].state.step in (6, reached), (passed, names(kept / "checkpoints"))
        passed += 1
    assert passed > 8
    assert steps(checkpoints) == [reached]


def tmp_copy(folder: Path) -> Path:
    """The folder as it stands, to look into without mending it."""
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))
