"""Checkpoints: everything a run needs to go on exactly, or an error that says what is wrong with them.

    RUN/checkpoints/step-00000100/
        state.json            step, tokens, versions, resolved precision, what the tensors must be
        config.yaml           the resolved configuration
        rank0.safetensors     param.NAME, exp_avg.NAME, exp_avg_sq.NAME, f32
        COMPLETE              written last: name and size of every file

The folder is written under a temporary name, each file fsynced, then renamed: a crash or a full disk leaves the last
good checkpoint and never something that looks like one. Data order, schedule and initial weights are pure functions of
(config, step), so the step is their whole state.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cktrain import __version__
from cktrain.config import Config
from cktrain.config_file import save_config
from cktrain.nn.params import FlatParams
from cktrain.optim.optimizer import Optimizer
from cktrain.safetensors_file import read_header, write_safetensors

FORMAT = 1
MARKER = "COMPLETE"


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read; the message names the file and what to do."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int
    """Steps done."""
    updates: int
    """Optimizer updates done: steps less the skipped ones."""
    tokens: int
    """Valid tokens seen."""
    precision: str
    """The precision that `auto` was resolved to; kept on resume."""


def save_checkpoint(
    folder: Path, progress: Progress, config: Config, params: FlatParams, optimizer: Optimizer, keep: int
) -> None:
    """Write `folder/step-N`, then delete all but the newest `keep`.

    Raises CheckpointError when the disk is full or the folder can't be written; older checkpoints stay.
    """
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover)
        temporary.mkdir()
        _write_files(temporary, progress, config, params, optimizer)
        if final.exists():  # a run that was resumed from before it: never a moment without a good one
            os.rename(final, folder / f".{final.name}.old")
        os.rename(temporary, final)
        _sync(folder)
        shutil.rmtree(folder / f".{final.name}.old", ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        remedy = "Free some space, or lower checkpoint.keep" if full else "Check the folder's permissions"
        raise CheckpointError(
            f"[checkpoint] cannot write {final}: {reason}. {remedy}; the last good checkpoint is untouched."
        ) from None
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(path: Path, params: FlatParams, optimizer: Optimizer | None) -> Progress:
    """Read weights and optimizer state into their arrays; without an optimizer only the weights.

    Raises CheckpointError when the checkpoint is incomplete, truncated or of another model; nothing is changed then.
    """
    problem = _incomplete(path)
    if problem:
        raise CheckpointError(f"[checkpoint] {path}: {problem}. Give a complete one, or delete it.")
    state = json.loads((path / "state.json").read_text())
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"[checkpoint] {path}: format {state['format']}, and cktrain {__version__} reads up to {FORMAT}. "
            "Update cktrain."
        )
    try:
        stored = {tensor.name: tensor for tensor in read_header(path / "rank0.safetensors")}
    except ValueError as error:
        raise CheckpointError(f"[checkpoint] {path}: {error} Resume from another checkpoint.") from None
    wanted = dict(_tensors(params, optimizer))
    if optimizer is None:  # only the weights are wanted
        stored = {name: tensor for name, tensor in stored.items() if name.startswith("param.")}
    _check_same_model(path, {name: tensor.shape for name, tensor in stored.items()}, wanted)
    for name, array in wanted.items():
        for rows, values in stored[name].pieces():
            array[rows] = values
    params.refresh()
    return Progress(**{name: state[name] for name in Progress.__dataclass_fields__})


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint that `checkpoint.resume` means: None, the newest complete one, or the given path."""
    if resume == "none":
        return None
    if resume == "auto":
        found = complete_checkpoints(folder)
        return found[-1] if found else None
    path = Path(resume)
    if not path.is_dir():
        raise CheckpointError(
            f"[checkpoint] {path} is not a folder. checkpoint.resume takes auto, none or a checkpoint."
        )
    return path


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints under `folder`, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if not _incomplete(path)]


def read_state(path: Path) -> dict:
    """state.json of a complete checkpoint."""
    return json.loads((path / "state.json").read_text())


def _write_files(
    folder: Path, progress: Progress, config: Config, params: FlatParams, optimizer: Optimizer
) -> None:
    dtype = "F64" if params.numerics.f32.itemsize == 8 else "F32"
    write_safetensors(folder / "rank0.safetensors", _tensors(params, optimizer), dtype)
    save_config(config, folder / "config.yaml")
    state = {"format": FORMAT, "cktrain": __version__, **asdict(progress)}
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    files = sorted(path for path in folder.iterdir())
    for path in files:
        _sync(path)
    (folder / MARKER).write_text(json.dumps({path.name: path.stat().st_size for path in files}))
    _sync(folder / MARKER)
    _sync(folder)


def _tensors(params: FlatParams, optimizer: Optimizer | None) -> list[tuple[str, np.ndarray]]:
    found = []
    state = {} if optimizer is None else optimizer.state
    for param in params.params:
        found.append((f"param.{param.name}", param.data))
        for moment, flat in state.items():
            found.append(
                (f"{moment}.{param.name}", flat[param.start : param.start + param.size].reshape(param.shape))
            )
    return found


def _check_same_model(path: Path, have: dict[str, tuple], wanted: dict[str, np.ndarray]) -> None:
    problems = [f"{key} is missing" for key in wanted if key not in have]
    problems += [f"{key} is not in this model" for key in have if key not in wanted]
    problems += [
        f"{key} has shape {have[key]}, this model's has {wanted[key].shape}"
        for key in wanted
        if key in have and have[key] != wanted[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"[checkpoint] {path} is of another model or optimizer: {'; '.join(problems[:3])}{more}. "
            "Use the config it was made with, another run.dir, or checkpoint.resume: none."
        )


def _incomplete(path: Path) -> str | None:
    marker = path / MARKER
    try:
        sizes = json.loads(marker.read_text())
    except (OSError, ValueError):
        return f"no {MARKER} marker, so it was not written to its end"
    for name, size in sizes.items():
        try:
            have = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if have != size:
            return f"{name} is truncated: {have:,} of {size:,} bytes"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
