"""Where a run goes on from: rank 0 chooses the checkpoint, all ranks see the same one, and each verifies a part of it.

A network file system may show ranks on other hosts an older folder for a while. So rank 0 tells path and digest, the others
wait until they see that, and none loads before all do.
"""

from __future__ import annotations

import json
import logging
import platform
import secrets
import time
from functools import partial
from pathlib import Path

from cktrain.checkpoint_folder import (
    BEST_FOLDER,
    Candidates,
    Lineage,
    begin_lineage,
    find_candidates,
    recover,
    step_folders,
)
from cktrain.checkpoint_record import (
    MARKER,
    Ancestor,
    Checkpoint,
    CheckpointError,
    damaged_file,
    read_checkpoint,
)
from cktrain.comm.group import Group
from cktrain.consistency_check import together
from cktrain.shared_folder import PATIENCE

log = logging.getLogger("cktrain")


def agree_on_checkpoint(
    folder: Path, resume: str, group: Group, patience: float = PATIENCE
) -> Checkpoint | None:
    """The checkpoint that `checkpoint.resume` means for a run in `folder`, verified; None: start afresh. Collective.

    Raises CheckpointError, on all ranks, when there is none to go on from although there should be, when a given one is
    damaged, and when a rank does not see within `patience` seconds what rank 0 sees.
    """
    candidates = together(group, lambda: _choose(folder, resume) if group.rank == 0 else Candidates([], []))
    passed_over = list(candidates.passed_over)
    several = len(candidates.found) > 1 or resume == "auto"
    for number in range(10**9):
        words = b"{}"
        if group.rank == 0 and number < len(candidates.found):
            found = candidates.found[number]
            words = json.dumps({"path": str(found.path), "digest": found.digest, "several": several}).encode()
        told = json.loads(group.broadcast_bytes(words))
        if not told:
            together(group, lambda: _refuse_to_lose(folder, passed_over))
            return None
        path = Path(told["path"])
        checkpoint = together(group, partial(_see, path, told["digest"], group, patience))
        share = sorted(checkpoint.files)[group.rank :: group.size]
        damages = group.all_gather_bytes(damaged_file(checkpoint, share).encode())
        damage = "; ".join(sorted({text.decode() for text in damages} - {""}))
        if not damage:
            break
        if not told["several"]:
            raise CheckpointError(f"[checkpoint] {path}: {damage}. Resume from another one.")
        passed_over.append(f"{path.name}: {damage}")
    if group.rank == 0:
        for text in passed_over:
            log.warning("[checkpoint] warning: passed over %s; taken instead: %s", text, checkpoint.path)
        if checkpoint.unknown():
            log.warning(checkpoint.unknown())
    return checkpoint


def begin_run(folder: Path, source: Checkpoint | None, group: Group) -> Lineage:
    """Make `folder` that of a new run which goes on from `source`, or from nothing. Collective.

    What stands there and did not lead to `source` is moved aside, and said. Raises CheckpointError when that fails.
    """
    run = group.broadcast_bytes(secrets.token_hex(8).encode()).decode()
    parents = (
        []
        if source is None
        else [*source.state.parents, Ancestor(run=source.state.run, step=source.state.step)]
    )
    lineage = Lineage(run=run, parents=parents)
    for place in (folder, folder.parent / BEST_FOLDER):
        _begin_in(place, lineage, source, group)
    return lineage


def _begin_in(folder: Path, lineage: Lineage, source: Checkpoint | None, group: Group) -> None:
    aside = together(group, lambda: begin_lineage(folder, lineage, source) if group.rank == 0 else None)
    if aside is not None:
        names = ", ".join(sorted(path.name for path in step_folders(aside)))
        log.warning(
            "[checkpoint] warning: %s did not lead to this run, which begins at step %d: moved into %s. "
            "Delete it when you need none of them.",
            names,
            source.state.step if source is not None else 0,
            aside,
        )


def _choose(folder: Path, resume: str) -> Candidates:
    for words in recover(folder):
        log.warning(words)
    if resume == "none":
        return Candidates([], [])
    if resume == "auto":
        return find_candidates(folder)
    path = Path(resume)
    if not path.is_dir():
        remedy = "checkpoint.resume takes auto, none or a checkpoint"
        if (path.parent / MARKER).is_file():
            remedy = f"Give the checkpoint that it belongs to, {path.parent}"
        raise CheckpointError(f"[checkpoint] {path} is not a folder. {remedy}.")
    for run in (path / "checkpoints", path):
        if not (path / MARKER).exists() and step_folders(run):
            candidates = find_candidates(run)
            _refuse_to_lose(run, candidates.passed_over if not candidates.found else [])
            return candidates
    return Candidates([read_checkpoint(path)], [])


def _refuse_to_lose(folder: Path, passed_over: list[str]) -> None:
    """A run that had checkpoints is not started afresh because none of them can be read."""
    if passed_over:
        more = f" and {len(passed_over) - 3} more" if len(passed_over) > 3 else ""
        raise CheckpointError(
            f"[checkpoint] {folder}: none of the checkpoints there is whole ({'; '.join(passed_over[:3])}{more}). "
            "Mend one, or set checkpoint.resume: none, which moves them aside and starts afresh."
        )


def _see(path: Path, digest: str, group: Group, patience: float) -> Checkpoint:
    """The checkpoint as this rank sees it, the same one as rank 0's."""
    deadline = time.monotonic() + patience
    while True:
        try:
            checkpoint = read_checkpoint(path)
            problem = "" if checkpoint.digest == digest else f"it sees another {MARKER} there"
        except CheckpointError as error:
            problem = str(error).removeprefix("[checkpoint] ")
        if not problem:
            return checkpoint
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"[checkpoint] rank {group.rank} ({platform.node()}) does not see {path} as rank 0 does: {problem} "
                "Put run.dir on a file system that all hosts share, or try again when it has caught up."
            )
        time.sleep(0.05)
