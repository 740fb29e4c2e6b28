"""The command that a stopped run prints really goes on."""

from __future__ import annotations

import argparse
import contextlib

import pytest

from cktrain.comm.solo_group import SoloGroup
from cktrain.folder_lock import FolderInUse, lock_folder
from cktrain.launch.commands.train import _command_line
from cktrain.session import owned_folders


@pytest.mark.parametrize(
    "given, saved, printed",
    [
        (["run.steps=9"], False, ["run.steps=9"]),
        (["checkpoint.resume=none", "run.steps=9"], True, ["run.steps=9", "checkpoint.resume=auto"]),
        ([], True, ["checkpoint.resume=auto"]),  # none, or a path, stands in the file
        ([" checkpoint.resume =old/step-00000002"], True, ["checkpoint.resume=auto"]),
        (["checkpoint.resume=none"], False, ["checkpoint.resume=none"]),  # nothing to go on from yet
    ],
)
def test_the_printed_command_goes_on_from_what_was_saved(monkeypatch, given, saved, printed):
    for name in ("CKTRAIN_LAUNCHER", "CKTRAIN_RANK"):
        monkeypatch.delenv(name, raising=False)
    options = argparse.Namespace(config="a b.yaml", overrides=given)
    words = "".join(f" --set {text}" for text in printed)
    assert _command_line(options, SoloGroup(), saved) == f"cktrain train 'a b.yaml'{words}"


def test_checkpoints_that_are_linked_to_are_owned_too(tmp_path):
    """Two runs with folders of their own may share the disk that their checkpoints are linked to."""
    (tmp_path / "disk").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "disk")
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        for folder in owned_folders(tmp_path / "a"):
            first.enter_context(lock_folder(folder, "cktrain train"))
        with pytest.raises(FolderInUse, match="disk is in use by"):
            for folder in owned_folders(tmp_path / "b"):
                second.enter_context(lock_folder(folder, "cktrain train"))
    assert owned_folders(tmp_path) == [tmp_path]
