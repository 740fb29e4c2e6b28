"""Checkpoints: everything a run needs to go on exactly, or an error that says what is wrong with them.

    RUN/checkpoints/step-00000100/
        state.json            step, sequences, tokens, versions, run and ancestors, what the tensors must be
        config.yaml           the resolved configuration
        rank0.safetensors …   what each rank holds and counts: blocks of param.NAME, exp_avg.NAME, exp_avg_sq.NAME, f32
        adapter_config.json   with an adapter: PEFT's folder, adapter_model.safetensors beside it
        model_files/          tokenizer, templates, generation settings (`cktrain.side_files`)
        COMPLETE              written last: size and SHA-256 of every file

All ranks write at the same time. A file's tensors are blocks of whole parameters, named by their place
(`param.lm_head.weight[0:512,0:64]`), so a checkpoint doesn't depend on the layout it was saved under: a rank of any
other layout reads the blocks that it holds something of.

The folder, on a file system that all hosts share, is written under a temporary name, each file fsynced, then renamed: a
crash or a full disk leaves the last good checkpoint and never something that looks like one. Each rank digests what it
writes while it writes it. Data order, schedule and initial weights are pure functions of (config, step, sequences
consumed), so these are their whole state. `checkpoint_record.py` reads what a checkpoint says of itself,
`checkpoint_folder.py` knows which of several is the newest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cktrain import __version__
from cktrain.agreed import AgreedError
from cktrain.best_effort import BestEffort
from cktrain.checkpoint_folder import (
    complete_checkpoints,
    delete_halves,
    free_name,
    make_room,
    rotate,
    step_name,
)
from cktrain.checkpoint_record import (
    CONFIG_FILE,
    FORMAT,
    MARKER,
    STATE_FILE,
    Ancestor,
    Checkpoint,
    CheckpointError,
    FrozenBase,
    State,
    damaged_file,
    other_model_error,
    read_checkpoint,
)
from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.config_file import save_config
from cktrain.durable import sync
from cktrain.file_identity import sha256_of_file
from cktrain.folder_lock import FolderInUse, refuse_if_taken_over
from cktrain.hf.peft_folder import PeftAdapter
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.optim.optimizer import Optimizer
from cktrain.parallel.blocks import Block, blocks_of, read_label
from cktrain.safetensors_file import Rows, StoredTensor, read_header, write_safetensors
from cktrain.shared_folder import PATIENCE
from cktrain.side_files import FOLDER, SideFiles

__all__ = [
    "MARKER",
    "Checkpoint",
    "CheckpointError",
    "NotSavedError",
    "Progress",
    "complete_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
]

Shapes = Mapping[str, tuple[int, ...]]


class NotSavedError(CheckpointError, AgreedError):
    """A checkpoint that could not be written, as all ranks know.

    `may_pass`: what was in the way, a full disk for one, may be gone at the next save.
    """

    def __init__(self, text: str, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


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
    examples: int = 0
    """Sequences of the training data consumed: where in its order the next step begins."""
    run: str = ""
    """The run's name for itself, drawn at its start."""
    parents: tuple[Ancestor, ...] = ()
    """The runs that led to it, oldest first."""
    data: str = ""
    """The fingerprint of the training tokens."""
    steps: int | None = None
    """Steps of the whole run, as it is configured."""
    seconds: float = 0.0
    """Since the run began to train, of its resumed parts the training alone; all ranks have rank 0's."""
    validation_loss: float | None = None
    """Of a checkpoint that is kept because it is the best, nats per token."""
    validation_data: str = ""
    """The fingerprint of the tokens that it was measured on."""
    base: FrozenBase | None = None
    """The frozen weights that are not saved."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """Ranks along each axis of the mesh."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    config: Config,
    params: ParamStore,
    optimizer: Optimizer,
    owned: Sequence[tuple[int, int]],
    group: Group,
    keep: int,
    side: SideFiles | None = None,
    adapter: PeftAdapter | None = None,
) -> None:
    """Write `folder/step-N`, then delete all but the newest `keep`. Collective over `group`, all ranks of the run.

    `owned` are the spans of the flat parameters that this rank writes; `side` is what stands beside the weights, on rank
    0, which writes it. Raises NotSavedError, on all ranks, when the disk is full, the folder can't be written or a rank
    does not see it; older checkpoints stay. What is deleted is deleted after all ranks know that the new one is whole,
    and what cannot be deleted is a warning.
    """
    final = folder / step_name(progress.step)
    temporary = folder / f".{final.name}.tmp"
    _together(group, final, temporary, [_make_folder] if group.rank == 0 else [])
    file = temporary / f"rank{group.rank}.safetensors"
    mine: dict[str, Any] = {
        "shapes": {param.name: param.global_shape for param in params.trainable},
        "files": {},
    }

    def write_part(_final: Path, _temporary: Path) -> None:
        if not temporary.is_dir():
            raise OSError(
                errno.ENOENT,
                f"rank {group.rank} does not see the folder; run.dir must be on a shared file system",
            )
        tensors = _owned_blocks(params, optimizer, owned)
        if tensors:
            dtype = "F64" if params.numerics.master_dtype.itemsize == 8 else "F32"
            digest = hashlib.sha256()
            size = write_safetensors(file, tensors, dtype, digest)
            mine["files"][file.name] = {"bytes": size, "sha256": digest.hexdigest()}

    _together(group, final, temporary, [write_part])
    everyone = [json.loads(text) for text in group.all_gather_bytes(json.dumps(mine).encode())]
    whole = {name: shape for part in everyone for name, shape in part["shapes"].items()}
    files = {name: record for part in everyone for name, record in part["files"].items()}

    def finish(final: Path, temporary: Path) -> None:
        if side is not None:
            side.write_with_record(temporary / FOLDER)
        for name, record in files.items():
            _wait_for(temporary / name, record["bytes"])
        if adapter is not None:
            adapter.write(temporary, [temporary / name for name in files])
        _write_state(temporary, progress, config, whole, optimizer.moments, files)
        refuse_if_taken_over(folder.parent)
        earlier = make_room(folder, final) if os.path.lexists(final) else None
        try:
            os.rename(temporary, final)
        except OSError:
            if earlier is not None:
                os.rename(earlier, final)
            raise
        sync(folder)

    _together(group, final, temporary, [finish] if group.rank == 0 else [])
    if group.rank == 0:
        with BestEffort("[checkpoint] older checkpoints cannot be looked at", "Delete them by hand."):
            rotate(folder, keep)
    group.barrier()  # an error after this save is rank 0's to say, before another rank's end ends the job


def load_checkpoint(
    path: Path | Checkpoint,
    params: ParamStore,
    optimizer: Optimizer | None,
    shapes: Shapes | None = None,
    differences: Sequence[str] = (),
    verify: bool = True,
) -> Progress:
    """Read weights and optimizer state into their arrays; without an optimizer only the weights.

    Parameters of the checkpoint's frozen base are left alone: they are read from its folder (`cktrain/frozen_base.py`).

    `shapes` are the whole model's parameters, when this rank has a stage of it, and `differences` what its config has
    other than the checkpoint's; without `verify` the files' digests have been checked already. Raises CheckpointError when
    the checkpoint is incomplete, damaged or of another model; nothing is changed then, unless a weight is found not to be
    finite.
    """
    checkpoint = path if isinstance(path, Checkpoint) else read_checkpoint(path)
    path = checkpoint.path
    problem = damaged_file(checkpoint) if verify else ""
    if problem:
        raise CheckpointError(
            f"[checkpoint] {path}: {problem}. Take another checkpoint, or a copy of this one."
        )
    state = checkpoint.state
    if shapes is None:
        shapes = {param.name: param.global_shape for param in params.params}
    moments = () if optimizer is None else optimizer.moments
    _check_same_model(path, state, shapes, moments, differences)
    try:
        stored = _stored_blocks(checkpoint)
        for param in params.params:
            if param.name not in state.tensors:  # of the frozen base
                continue
            _read(param, 0, param.data.reshape(-1), stored[f"param.{param.name}"])
            if optimizer is not None:
                _read_moments(param, optimizer, stored)
    except (ValueError, OSError) as error:
        words = str(error).rstrip(".")
        raise CheckpointError(f"[checkpoint] {path}: {words}. Resume from another checkpoint.") from None
    params.refresh()
    return Progress(
        step=state.step,
        updates=state.updates,
        tokens=state.tokens,
        precision=state.precision,
        examples=state.examples or 0,
        seconds=state.seconds,
        run=state.run,
        parents=tuple(state.parents),
        data=state.data,
        base=state.base,
        layout=state.layout,
    )


def _together(group: Group, final: Path, temporary: Path, work: Sequence) -> None:
    """Do this rank's part of the work, if any; all ranks raise when it fails on one."""
    problem, taken_over, may_pass = "", False, True
    try:
        for do in work:
            do(final, temporary)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        remedy = "Free some space, or lower checkpoint.keep" if full else "Check the folder"
        problem = f"{reason}. {remedy}"
    except FolderInUse as error:
        problem, taken_over, may_pass = str(error).rstrip("."), True, False
    except ValueError as error:  # a weight that is not finite
        problem, may_pass = str(error).rstrip("."), False
    except Exception as error:  # the other ranks wait for this one's word, whatever it is
        problem = f"{type(error).__name__}: {error}".rstrip(".: ")
    problems = [json.loads(text) for text in group.all_gather_bytes(json.dumps([problem, may_pass]).encode())]
    found = [(text, passing) for text, passing in problems if text]
    if found:
        if group.rank == 0 and not taken_over:
            shutil.rmtree(temporary, ignore_errors=True)
        raise NotSavedError(
            f"[checkpoint] cannot write {final}: {found[0][0]}; the last good checkpoint is untouched.",
            may_pass=all(passing for _, passing in found),
        )


def _make_folder(final: Path, temporary: Path) -> None:
    folder = final.parent
    refuse_if_taken_over(folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    delete_halves(folder)
    if temporary.exists():  # it could not be deleted, but it can be put aside
        os.rename(temporary, free_name(temporary))
    temporary.mkdir()


def _write_state(
    folder: Path,
    progress: Progress,
    config: Config,
    shapes: Shapes,
    moments: Sequence[str],
    files: Mapping[str, Mapping[str, Any]],
) -> None:
    """Everything that is not the ranks' own; `files` are theirs, as they wrote them."""
    save_config(config, folder / CONFIG_FILE)
    state = {"format": FORMAT, "cktrain": __version__, **asdict(progress)}
    state |= {"parents": [parent.model_dump() for parent in progress.parents]}
    state |= {"base": None if progress.base is None else progress.base.model_dump()}
    state |= {"moments": moments, "tensors": shapes}
    (folder / STATE_FILE).write_text(json.dumps(state, indent=1))
    record = dict(files)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        sync(path)
        if name not in record:
            record[name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folder / MARKER).write_text(json.dumps(record, indent=1))
    sync(folder / MARKER)
    sync(folder)


def _wait_for(file: Path, size: int) -> None:
    """Until this host sees the file whole; a network file system may show another host's late. OSError when it doesn't."""
    deadline = time.monotonic() + PATIENCE
    while not file.is_file() or file.stat().st_size != size:
        if time.monotonic() > deadline:
            have = f"{file.stat().st_size:,}" if file.is_file() else "none"
            raise OSError(errno.EIO, f"{file.name} has {size:,} bytes, and this host sees {have}")
        time.sleep(0.05)


def _owned_blocks(
    params: ParamStore, optimizer: Optimizer, owned: Sequence[tuple[int, int]]
) -> list[tuple[str, Rows]]:
    found: list[tuple[str, Rows]] = []
    for param in params.trainable:
        for start, stop in _within(param, owned):
            for block, run in blocks_of(param, start - param.start, stop - param.start):
                rows: dict[str, Rows] = {"param": params.data[start:stop][run].reshape(block.shape)}
                for moment in optimizer.moments_for(param):
                    rows[moment] = optimizer.moment_rows(moment, start + run.start, block.shape)
                found += [(block.label(f"{kind}.{param.name}"), each) for kind, each in rows.items()]
    return found


def _within(param: Param, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans' parts that lie in a param."""
    low, high = param.start, param.start + param.size
    cut = [(max(start, low), min(stop, high)) for start, stop in spans]
    return [(start, stop) for start, stop in cut if start < stop]


StoredBlock = tuple[Block, StoredTensor]


def _stored_blocks(checkpoint: Checkpoint) -> dict[str, list[StoredBlock]]:
    """Each tensor's blocks: of all parameters, and of the moments that an optimizer kept of them.

    ValueError for damaged headers, or where blocks are missing.
    """
    state = checkpoint.state
    stored: dict[str, list[StoredBlock]] = {
        f"{kind}.{name}": [] for kind in ("param", *state.moments) for name in state.tensors
    }
    for file in checkpoint.rank_files:
        for tensor in read_header(file):
            name, block = read_label(tensor.name, tensor.shape)
            if name not in stored:
                raise ValueError(f"{file.name} holds {tensor.name}, which state.json does not name.")
            stored[name].append((block, tensor))
    for key, blocks in stored.items():
        have = sum(math.prod(tensor.shape) for _, tensor in blocks)
        want = math.prod(state.tensors[key.partition(".")[2]])
        if have != want and (blocks or key.startswith("param.")):
            raise ValueError(f"{key} has {have:,} of {want:,} elements.")
    return stored


def _read(param: Param, start: int, elements: np.ndarray, blocks: Sequence[StoredBlock]) -> None:
    """Fill the param's elements from `start` on, a flat array, from what these blocks hold of them.

    No more of a file is read than the rows that are wanted. ValueError for values that are not finite.
    """
    for wanted, run in blocks_of(param, start, start + elements.size):
        target = elements[run].reshape(wanted.shape)
        for block, tensor in blocks:
            if (met := wanted.meet(block)) is None:
                continue
            here, there = met
            for rows, values in tensor.pieces(there[0].start, there[0].stop):
                bad = int(values.size - np.count_nonzero(np.isfinite(values)))
                if bad:
                    raise ValueError(
                        f"{tensor.file.name}: {bad:,} numbers of {tensor.name} are NaN or infinite"
                    )
                shift = here[0].start - there[0].start
                target[(slice(rows.start + shift, rows.stop + shift), *here[1:])] = values[
                    (slice(None), *there[1:])
                ]


def _read_moments(param: Param, optimizer: Optimizer, stored: Mapping[str, Sequence[StoredBlock]]) -> None:
    """What this rank's optimizer keeps of a param. ValueError for a moment that the checkpoint has not."""
    for moment in optimizer.moments_for(param):
        blocks = stored[f"{moment}.{param.name}"]
        if not blocks:
            raise ValueError(f"the optimizer's {moment} of {param.name} is missing")
        for start, stop in _within(param, optimizer.spans):
            optimizer.fill_moment(moment, start, stop, partial(_read_at, param, blocks))


def _read_at(param: Param, blocks: Sequence[StoredBlock], first: int, elements: np.ndarray) -> None:
    """`_read` of the param's elements from the flat element `first` on."""
    _read(param, first - param.start, elements, blocks)


def _check_same_model(
    path: Path, state: State, shapes: Shapes, moments: Sequence[str], differences: Sequence[str]
) -> None:
    frozen = {} if state.base is None else state.base.tensors
    have = {name: tuple(shape) for name, shape in (*state.tensors.items(), *frozen.items())}
    problems = [f"param.{name} is missing" for name in shapes if name not in have]
    problems += [f"param.{name} is not in this model" for name in have if name not in shapes]
    problems += [
        f"param.{name} has shape {have[name]}, this model's has {shape}"
        for name, shape in shapes.items()
        if name in have and have[name] != shape
    ]
    problems += [f"the optimizer's {moment} is missing" for moment in moments if moment not in state.moments]
    if problems or differences:
        more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
        raise other_model_error(path, [*differences, *problems[:3], *more])
