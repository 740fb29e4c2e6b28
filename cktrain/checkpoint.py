"""Checkpoints: everything a run needs to go on exactly, or an error that says what is wrong with them.

    RUN/checkpoints/step-00000100/
        state.json            step, tokens, versions, resolved precision, layout, what the tensors must be
        config.yaml           the resolved configuration
        rank0.safetensors …   what each rank holds and counts: blocks of param.NAME, exp_avg.NAME, exp_avg_sq.NAME, f32
        model_files/          tokenizer, templates, generation settings (`cktrain.side_files`)
        COMPLETE              written last: name and size of every file

All ranks write at the same time. A file's tensors are blocks of whole parameters, named by their place
(`param.lm_head.weight[0:512,0:64]`), so a checkpoint doesn't depend on the layout it was saved under: a rank of any
other layout reads the blocks that it holds something of.

The folder, on a file system that all hosts share, is written under a temporary name, each file fsynced, then renamed: a
crash or a full disk leaves the last good checkpoint and never something that looks like one. Data order, schedule and
initial weights are pure functions of (config, step), so the step is their whole state.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cktrain import __version__
from cktrain.agreed import AgreedError
from cktrain.best_effort import BestEffort
from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.config_file import save_config
from cktrain.nn.params import FlatParams, Param
from cktrain.optim.optimizer import Optimizer
from cktrain.parallel.blocks import blocks_of, read_label
from cktrain.safetensors_file import StoredTensor, read_header, write_safetensors
from cktrain.side_files import FOLDER, SideFiles

FORMAT = 2
MARKER = "COMPLETE"

Shapes = Mapping[str, tuple[int, ...]]


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read; the message names the file and what to do."""


class NotSavedError(CheckpointError, AgreedError):
    """A checkpoint that could not be written, as all ranks know."""


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
    folder: Path,
    progress: Progress,
    config: Config,
    params: FlatParams,
    optimizer: Optimizer,
    owned: Sequence[tuple[int, int]],
    group: Group,
    keep: int,
    side: SideFiles | None = None,
) -> None:
    """Write `folder/step-N`, then delete all but the newest `keep`. Collective over `group`, all ranks of the run.

    `owned` are the spans of the flat parameters that this rank writes; `side` is what stands beside the weights, on rank
    0, which writes it. Raises NotSavedError, on all ranks, when the disk is full, the folder can't be written or a rank
    does not see it; older checkpoints stay. What is deleted is deleted after all ranks know that the new one is whole,
    and what cannot be deleted is a warning.
    """
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    _together(group, final, temporary, [_make_folder] if group.rank == 0 else [])
    file = temporary / f"rank{group.rank}.safetensors"
    shapes = {param.name: param.whole_shape for param in params.params}

    def write_part(_final: Path, _temporary: Path) -> None:
        if not temporary.is_dir():
            raise OSError(
                errno.ENOENT,
                f"rank {group.rank} does not see the folder; run.dir must be on a shared file system",
            )
        tensors = _owned_blocks(params, optimizer, owned)
        if tensors:
            dtype = "F64" if params.numerics.f32.itemsize == 8 else "F32"
            write_safetensors(file, tensors, dtype)

    _together(group, final, temporary, [write_part])
    everyone = [json.loads(text) for text in group.all_gather_bytes(json.dumps(shapes).encode())]
    whole = {name: shape for part in everyone for name, shape in part.items()}

    def finish(final: Path, temporary: Path) -> None:
        if side is not None:
            side.write_with_record(temporary / FOLDER)
        _write_state(temporary, progress, config, whole, list(optimizer.state))
        if final.exists():  # a run that was resumed from before it: never a moment without a good one
            os.rename(final, _free_name(folder / f".{final.name}.old"))
        os.rename(temporary, final)
        _sync(folder)

    _together(group, final, temporary, [finish] if group.rank == 0 else [])
    if group.rank == 0:
        for old in [*folder.glob(".step-*.old*"), *complete_checkpoints(folder)[:-keep]]:
            _delete(old)


def load_checkpoint(
    path: Path, params: FlatParams, optimizer: Optimizer | None, shapes: Shapes | None = None
) -> Progress:
    """Read weights and optimizer state into their arrays; without an optimizer only the weights.

    `shapes` are the whole model's parameters, when this rank has a stage of it. Raises CheckpointError when the
    checkpoint is incomplete, truncated or of another model; nothing is changed then.
    """
    problem = _incomplete(path)
    if problem:
        raise CheckpointError(f"[checkpoint] {path}: {problem}. Give a complete one, or delete it.")
    state = read_state(path)
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"[checkpoint] {path}: format {state['format']}, and cktrain {__version__} reads {FORMAT}. "
            "Use the version that wrote it."
        )
    if shapes is None:
        shapes = {param.name: param.whole_shape for param in params.params}
    moments = [] if optimizer is None else list(optimizer.state)
    _check_same_model(path, state, shapes, moments)
    try:
        stored = _stored_blocks(path, state)
    except ValueError as error:
        raise CheckpointError(f"[checkpoint] {path}: {error} Resume from another checkpoint.") from None
    for param in params.params:
        _read(param, param.data, stored[f"param.{param.name}"])
        for moment in moments:
            assert optimizer is not None
            whole = np.zeros(param.shape, params.numerics.f32)
            _read(param, whole, stored[f"{moment}.{param.name}"])
            for start, stop in _within(param, optimizer.spans):
                optimizer.state_at(moment, start, stop)[...] = whole.reshape(-1)[
                    start - param.start : stop - param.start
                ]
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


def _together(group: Group, final: Path, temporary: Path, work: Sequence) -> None:
    """Do this rank's part of the work, if any; all ranks raise when it fails on one."""
    problem = ""
    try:
        for do in work:
            do(final, temporary)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        remedy = "Free some space, or lower checkpoint.keep" if full else "Check the folder"
        problem = f"{reason}. {remedy}"
    except ValueError as error:  # a weight that is not finite
        problem = str(error).rstrip(".")
    except Exception as error:  # the other ranks wait for this one's word, whatever it is
        problem = f"{type(error).__name__}: {error}".rstrip(".: ")
    problems = [text.decode() for text in group.all_gather_bytes(problem.encode())]
    found = [text for text in problems if text]
    if found:
        if group.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise NotSavedError(
            f"[checkpoint] cannot write {final}: {found[0]}; the last good checkpoint is untouched."
        )


def _make_folder(final: Path, temporary: Path) -> None:
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):
        _delete(leftover)
    if temporary.exists():  # it could not be deleted, but it can be put aside
        os.rename(temporary, _free_name(temporary))
    temporary.mkdir()


def _delete(folder: Path) -> None:
    with BestEffort(f"[checkpoint] {folder} is no longer needed and cannot be deleted", "Delete it by hand."):
        shutil.rmtree(folder)


def _free_name(path: Path) -> Path:
    """`path`, or with a number behind it, so that nothing stands there."""
    names = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, 1000)))
    return next((name for name in names if not name.exists()), path)


def _write_state(
    folder: Path, progress: Progress, config: Config, shapes: Shapes, moments: Sequence[str]
) -> None:
    save_config(config, folder / "config.yaml")
    state = {"format": FORMAT, "cktrain": __version__, **asdict(progress)}
    state |= {"moments": moments, "tensors": shapes}
    (folder / "state.json").write_text(json.dumps(state, indent=1))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    (folder / MARKER).write_text(
        json.dumps({path.relative_to(folder).as_posix(): path.stat().st_size for path in files})
    )
    _sync(folder / MARKER)
    _sync(folder)


def _owned_blocks(
    params: FlatParams, optimizer: Optimizer, owned: Sequence[tuple[int, int]]
) -> list[tuple[str, np.ndarray]]:
    found = []
    for param in params.params:
        for start, stop in _within(param, owned):
            runs = {"param": params.data[start:stop]}
            runs |= {moment: optimizer.state_at(moment, start, stop) for moment in optimizer.state}
            for block, run in blocks_of(param, start - param.start, stop - param.start):
                for kind, elements in runs.items():
                    found.append((block.label(f"{kind}.{param.name}"), elements[run].reshape(block.shape)))
    return found


def _within(param: Param, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans' parts that lie in a param."""
    low, high = param.start, param.start + param.size
    cut = [(max(start, low), min(stop, high)) for start, stop in spans]
    return [(start, stop) for start, stop in cut if start < stop]


StoredBlock = tuple[int, int, StoredTensor]


def _stored_blocks(path: Path, state: dict) -> dict[str, list[StoredBlock]]:
    """(row, column, tensor) of each tensor's blocks. ValueError for damaged headers, or where blocks are missing."""
    stored: dict[str, list[StoredBlock]] = {
        f"{kind}.{name}": [] for kind in ("param", *state["moments"]) for name in state["tensors"]
    }
    for file in sorted(path.glob("rank*.safetensors")):
        for tensor in read_header(file):
            name, row, column = read_label(tensor.name)
            if name not in stored:
                raise ValueError(f"{file.name} holds {tensor.name}, which state.json does not name.")
            stored[name].append((row, column, tensor))
    for key, blocks in stored.items():
        have = sum(math.prod(tensor.shape) for _, _, tensor in blocks)
        want = math.prod(state["tensors"][key.partition(".")[2]])
        if have != want:
            raise ValueError(f"{key} has {have:,} of {want:,} elements.")
    return stored


def _read(param: Param, array: np.ndarray, blocks: Sequence[StoredBlock]) -> None:
    """What the param holds of these blocks, into an array of its shape."""
    for row, column, tensor in blocks:
        if any(True for _ in param.overlaps(tensor.shape, row, column)):
            for rows, values in tensor.pieces():
                param.put(array, values, row + rows.start, column)


def _check_same_model(path: Path, state: dict, shapes: Shapes, moments: Sequence[str]) -> None:
    have = {name: tuple(shape) for name, shape in state["tensors"].items()}
    problems = [f"param.{name} is missing" for name in shapes if name not in have]
    problems += [f"param.{name} is not in this model" for name in have if name not in shapes]
    problems += [
        f"param.{name} has shape {have[name]}, this model's has {shape}"
        for name, shape in shapes.items()
        if name in have and have[name] != shape
    ]
    problems += [
        f"the optimizer's {moment} is missing" for moment in moments if moment not in state["moments"]
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
