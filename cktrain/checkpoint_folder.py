"""RUN/checkpoints: which of the things in it are this run's, which is the newest of them, and what makes room.

    RUN/lineage.json                   the run that writes here now, and the runs that led to it
    RUN/checkpoints/
        step-00000100/                 what a run writes; other names are the user's own, and are left alone
        set-aside-20261130-052011/     what another run had written under such names, moved here when this one began
        .step-00000100.tmp .old        half of a save; a whole one that a crash left so is recovered

Newest is what this run, or one of those that led to it, wrote last: the step number alone would let an older run's
checkpoints stand above those of a run that was started afresh, or from before them. So a run that begins moves aside what
is not its ancestors', and what it rotates away (`checkpoint.keep`) is only its own lineage's. Nothing is deleted that
another run wrote.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cktrain.best_effort import BestEffort, warn
from cktrain.checkpoint_record import (
    Ancestor,
    Checkpoint,
    CheckpointError,
    OtherFormatError,
    State,
    read_checkpoint,
    reason_of,
    try_checkpoint,
)
from cktrain.durable import sync
from cktrain.foreign_file import read_json

LINEAGE_FILE = "lineage.json"
BEST_FOLDER = "best"
"""Beside checkpoints/ in a run's folder, and of the same form: the checkpoint with the lowest validation loss."""
METRICS_FILE = "metrics.jsonl"
_NAME = re.compile(r"step-(\d{8,})")
_HALF = re.compile(r"\.(step-\d{8,})\.(tmp|old)(\.\d+)?")


class Lineage(BaseModel):
    """A run and those that led to it."""

    model_config = ConfigDict(frozen=True, strict=True)
    run: str
    parents: list[Ancestor] = []
    """Oldest first."""

    def holds(self, state: State) -> bool:
        """Whether a checkpoint was written by this run, or by one that led to it before it was left."""
        if state.run == self.run:
            return True
        return any(parent.run == state.run and state.step <= parent.step for parent in self.parents)

    def led_to(self, state: State) -> bool:
        """Whether a later run, which went on from this one, wrote a checkpoint: of a folder copied but for its lineage."""
        return any(parent.run == self.run for parent in state.parents)


@dataclass(frozen=True)
class Candidates:
    """Checkpoints to go on from, the best one first, and why newer ones are not among them."""

    found: list[Checkpoint]
    passed_over: list[str]


def step_folders(folder: Path) -> list[Path]:
    """What stands in `folder` under a name that a run writes, complete or not, in the order of their steps."""
    if not folder.exists():
        return []
    named = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for step, path in sorted(named) if path.name == step_name(step) and path.is_dir()]


def step_name(step: int) -> str:
    """A checkpoint's name: step-00000100."""
    return f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of the run that writes in `folder`, oldest first."""
    return [checkpoint.path for checkpoint in reversed(find_candidates(folder).found)]


def find_candidates(folder: Path) -> Candidates:
    """What a run in `folder` may go on from, newest first. Reads only.

    Of the lineage that writes there; when nothing of it is left, or nothing is known of it, all that are complete.
    Raises CheckpointError when `folder` can't be read.
    """
    try:
        folders = step_folders(folder)
    except OSError as error:
        raise CheckpointError(
            f"[checkpoint] {folder} cannot be read ({error.strerror}). Make it a folder that can be."
        ) from None
    lineage = read_lineage(folder)
    found: list[Checkpoint] = []
    foreign: list[Checkpoint] = []
    passed_over: list[str] = []
    for path in reversed(folders):
        checkpoint = try_checkpoint(path)
        problem = ""
        if isinstance(checkpoint, OtherFormatError) and not found:
            raise checkpoint
        if isinstance(checkpoint, CheckpointError):
            problem = reason_of(path, checkpoint)
        elif not _is_named_right(checkpoint):
            problem = f"it holds step {checkpoint.state.step}, a copy under another name"
        elif lineage is None or lineage.holds(checkpoint.state) or lineage.led_to(checkpoint.state):
            found.append(checkpoint)
        else:
            foreign.append(checkpoint)
        if problem and not found:
            passed_over.append(f"{path.name}: {problem}")
    if not found:
        return Candidates(foreign, passed_over)
    newer = [checkpoint for checkpoint in foreign if checkpoint.state.step > found[0].state.step]
    passed_over += [f"{checkpoint.path.name}: another run wrote it" for checkpoint in newer]
    return Candidates(found, passed_over)


def _is_named_right(checkpoint: Checkpoint) -> bool:
    return checkpoint.path.name == step_name(checkpoint.state.step)


def read_lineage(folder: Path) -> Lineage | None:
    """Whose folder it is; None where that is not known."""
    try:
        return read_json(folder.parent / LINEAGE_FILE, Lineage, area="checkpoint", remedy="")
    except ValueError:  # missing, or damaged: the checkpoints themselves say the same
        return None


def recover(folder: Path) -> list[str]:
    """Give whole checkpoints that a crash left between two names their own back; returns what was done, in words."""
    try:
        halves = sorted(path for path in folder.iterdir() if _HALF.fullmatch(path.name))
    except OSError:
        return []
    done = []
    for half in sorted(halves, key=lambda path: ".tmp" not in path.name):  # the newer of two before the older
        match = _HALF.fullmatch(half.name)
        assert match is not None
        final = folder / match[1]
        whole = try_checkpoint(half)
        if isinstance(whole, CheckpointError) or step_name(whole.state.step) != final.name:
            continue
        if isinstance(try_checkpoint(final), Checkpoint):
            continue
        with BestEffort(
            f"[checkpoint] {half} is whole and cannot be renamed to {final.name}", "Rename it by hand."
        ):
            if final.exists():
                move_aside(folder, [final])
            os.rename(half, final)
            sync(folder)
            done.append(
                f"[checkpoint] recovered {final}: it was whole, and the save ended before its last step"
            )
    return done


def begin_lineage(folder: Path, lineage: Lineage, source: Checkpoint | None) -> Path | None:
    """Make `folder` the lineage's: what is not, or comes after `source`, is moved aside; returns where to, if anything is.

    What is incomplete is moved too when a run starts afresh. Raises OSError when that fails; nothing is lost then.
    """
    if folder.exists():  # another user's, or read-only: found now, not when there is something to save
        probe = free_name(folder / f".{step_name(0)}.tmp")
        os.mkdir(probe)
        os.rmdir(probe)
    foreign = []
    for path in step_folders(folder):
        found = try_checkpoint(path)
        if isinstance(found, CheckpointError):
            moves = source is None  # else it has been named, and stays where it is
        else:
            own = source is not None and os.path.samefile(path, source.path)
            moves = not own and not lineage.holds(found.state) and _is_named_right(found)
        if moves:
            foreign.append(path)
    aside = move_aside(folder, foreign) if foreign else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{LINEAGE_FILE}.tmp"
    temporary.write_text(json.dumps(lineage.model_dump()))
    sync(temporary)
    os.replace(temporary, folder.parent / LINEAGE_FILE)
    sync(folder.parent)
    return aside


def make_room(folder: Path, final: Path) -> Path:
    """Move away what stands under the name of a checkpoint that is about to get it, and return where it is now.

    The run's own earlier self becomes a half, to be deleted later; what somebody else put there is moved aside.
    """
    found, lineage = try_checkpoint(final), read_lineage(folder)
    if (
        isinstance(found, Checkpoint)
        and _is_named_right(found)
        and (lineage is None or lineage.holds(found.state))
        and not final.is_symlink()
    ):
        half = free_name(folder / f".{final.name}.old")
        os.rename(final, half)
        return half
    aside = move_aside(folder, [final])
    whose = "is not whole" if isinstance(found, CheckpointError) else "was not written by this run"
    warn(f"[checkpoint] {final} {whose}: moved into {aside.name}")
    return aside / final.name


def move_aside(folder: Path, paths: list[Path]) -> Path:
    """Move checkpoints into a new folder beside them, with a copy of the metrics of the run that wrote them."""
    aside = free_name(folder / time.strftime("set-aside-%Y%m%d-%H%M%S", time.gmtime()))
    aside.mkdir()
    metrics = folder.parent / METRICS_FILE
    if metrics.is_file():
        shutil.copy2(metrics, aside / METRICS_FILE)
    for path in paths:
        os.rename(path, aside / path.name)
    sync(aside)
    sync(folder)
    return aside


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` of the lineage's checkpoints, and what saves left behind; failures are warnings.

    A symbolic link is somebody's own arrangement: neither it nor its target is deleted.
    """
    for path in folder.iterdir():
        match = _HALF.fullmatch(path.name)
        if match and match[2] == "old" and (folder / match[1]).exists():
            delete(path)
    lineage = read_lineage(folder)
    own = [path for path in complete_checkpoints(folder) if not path.is_symlink()]
    if lineage is not None:
        own = [path for path in own if lineage.holds(read_checkpoint(path).state)]
    for path in own[:-keep]:
        delete(path)


def delete_halves(folder: Path) -> None:
    """Delete what killed saves left; `recover` has taken from them what was whole."""
    for path in folder.iterdir():
        if _HALF.fullmatch(path.name):
            delete(path)


def delete(path: Path) -> None:
    """Delete a folder that is no longer needed; a failure is a warning."""
    with BestEffort(f"[checkpoint] {path} is no longer needed and cannot be deleted", "Delete it by hand."):
        shutil.rmtree(path)


def free_name(path: Path) -> Path:
    """`path`, or with a number behind it, so that nothing stands there."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 1000)))
    return next((name for name in names if not os.path.lexists(name)), path)
