"""What a checkpoint says of itself, read with distrust: COMPLETE, state.json and the files that they name.

    COMPLETE      {"rank0.safetensors": {"bytes": 4096, "sha256": "ab…"}, …}: every file but itself
    state.json    a `State`: where the run stood, which run it was and what led there, what the tensors must be

A checkpoint of format 2 has sizes only, and does not know its run: `Checkpoint.unknown` says what that means.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cktrain import __version__
from cktrain.file_identity import sha256_of_file
from cktrain.foreign_file import parse_json, read_text

FORMAT = 3
READABLE = (2, 3)
MARKER = "COMPLETE"
STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read; the message names the file and what to do."""


class OtherFormatError(CheckpointError):
    """A checkpoint of a version of cktrain that is not read: not damaged, so nothing else is taken for it."""


def other_model_error(path: Path, differences: list[str]) -> CheckpointError:
    """Of a checkpoint whose run computes something else than this one."""
    return CheckpointError(
        f"[checkpoint] {path} is of another model or optimizer: {'; '.join(differences)}. "
        "Use the config it was made with, another run.dir, or checkpoint.resume: none."
    )


class Ancestor(BaseModel):
    """A run that led to this one, and the step at which it was left."""

    model_config = ConfigDict(frozen=True, strict=True)
    run: str
    step: Count


class FrozenBase(BaseModel):
    """The pretrained weights that a run leaves as they are (`cktrain/frozen_base.py`)."""

    model_config = ConfigDict(frozen=True, strict=True)
    path: str
    """The Hugging Face folder that holds them."""
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    """SHA-256 of each of its weight files, by name."""
    stamps: dict[str, list[int]] = {}
    """Their stamps on the host of rank 0 (`cktrain/file_identity.py`): files that still have them are not read again."""
    tensors: dict[str, list[Size]]
    """Shapes of the parameters that are frozen, by our names."""
    quantize: str = "none"
    """As `model.quantize`: in which blocks they were held."""


class State(BaseModel):
    """state.json."""

    model_config = ConfigDict(frozen=True, strict=True)
    format: int
    cktrain: str
    step: Count
    updates: Count
    tokens: Count
    precision: Literal["fp32", "bf16", "fp64"]
    moments: list[str]
    tensors: dict[str, list[Size]]
    """Shapes of the parameters that the checkpoint holds."""
    base: FrozenBase | None = None
    """Where the others are; None: it holds all of them."""
    layout: dict[str, Size] = {}
    """Ranks along each axis of the mesh that wrote it; any other layout reads it."""
    examples: Count | None = None
    """Sequences of the training data that were consumed; None in format 2."""
    run: str = ""
    """The run that wrote it; empty in format 2."""
    parents: list[Ancestor] = []
    """What led there, oldest first."""
    data: str = ""
    """The fingerprint of the training tokens; empty in format 2."""
    steps: Count | None = None
    """Of the whole run, as it was configured; None: not recorded."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Of training, before it was written; 0: not recorded."""
    validation_loss: float | None = None
    """Of a run's best checkpoint, nats per token."""
    validation_data: str = ""
    """The fingerprint of the tokens that it was measured on; empty: not recorded."""


class _FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of a file; format 2 has no digest."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is complete as far as names and sizes tell."""

    path: Path
    files: Mapping[str, FileRecord]
    state: State
    digest: str
    """The SHA-256 of COMPLETE, which names the digests of all others: the checkpoint's identity."""

    @property
    def rank_files(self) -> list[Path]:
        """The files of weights that it names; others in the folder are not its own."""
        return [self.path / name for name in sorted(self.files) if is_rank_file(name)]

    def unknown(self) -> str:
        """What an older format does not tell; empty for the newest."""
        if self.state.format == FORMAT:
            return ""
        return (
            f"[checkpoint] {self.path} has format {self.state.format}: it has no digests, so damage that keeps the sizes "
            "is not found, and the sequences that it has consumed are taken to be its steps times its global batch."
        )


def is_rank_file(name: str) -> bool:
    """Whether a file of a checkpoint is what a rank held; an adapter's PEFT folder has one of another name."""
    return re.fullmatch(r"rank\d+\.safetensors", name) is not None


def read_checkpoint(path: Path) -> Checkpoint:
    """What is at `path`. Raises CheckpointError, naming the file, when it is incomplete, damaged or of another format."""
    try:
        return _read(path)
    except OSError as error:
        raise CheckpointError(f"[checkpoint] {path}: it cannot be read ({error.strerror}).{_ELSE}") from None


def try_checkpoint(path: Path) -> Checkpoint | CheckpointError:
    """The checkpoint, or what `read_checkpoint` raises."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        return error


def reason_of(path: Path, error: CheckpointError) -> str:
    """Why a checkpoint is refused, without its path and the remedy."""
    return str(error).removeprefix(f"[checkpoint] {path}").lstrip(":/ ").removesuffix(_ELSE).rstrip(".")


def damaged_file(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> str:
    """What is wrong with the contents of the named files (all of them), held against their digests; empty: nothing.

    Reads the files once, several at a time where this process has several cores.
    """
    chosen = [
        name for name in (checkpoint.files if names is None else names) if checkpoint.files[name].sha256
    ]

    def look(name: str) -> str:
        wanted = checkpoint.files[name].sha256 or ""
        try:
            found = sha256_of_file(checkpoint.path / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found == wanted:
            return ""
        return f"{name} is damaged: its SHA-256 is {found[:12]}…, and {MARKER} says {wanted[:12]}…"

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        return next((text for text in pool.map(look, chosen) if text), "")


_ELSE = " Give another checkpoint, or delete this one."


def _read(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"[checkpoint] {path} is not a folder. Give a checkpoint.")
    if not (path / MARKER).is_file():
        raise _refuse(path, f"no {MARKER} marker, so it was not written to its end")
    text = _text(path, MARKER)
    values = _parsed(text, dict[str, Any], path, MARKER)
    files = {name: _record(path, name, value) for name, value in values.items()}
    for name in (STATE_FILE, CONFIG_FILE):
        if name not in files:
            raise _refuse(path, f"{MARKER} does not name {name}")
    if not any(is_rank_file(name) for name in files):
        raise _refuse(path, f"{MARKER} names no weights")
    for name, record in files.items():
        file = path / name
        if not file.is_file():
            raise _refuse(path, f"{name} is missing")
        have = file.stat().st_size
        if have != record.bytes:
            what = "truncated" if have < record.bytes else "too long"
            raise _refuse(path, f"{name} is {what}: {have:,} of {record.bytes:,} bytes")
    state = _state(path)
    return Checkpoint(path, files, state, hashlib.sha256(text.encode()).hexdigest())


def _state(path: Path) -> State:
    text = _text(path, STATE_FILE)
    number = _parsed(text, dict[str, Any], path, STATE_FILE).get("format")
    if isinstance(number, int) and number not in READABLE:
        raise OtherFormatError(
            f"[checkpoint] {path}: format {number}, and cktrain {__version__} reads "
            f"{' and '.join(map(str, READABLE))}. Use the version that wrote it."
        )
    return _parsed(text, State, path, STATE_FILE)


def _record(path: Path, name: str, value: Any) -> FileRecord:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise _refuse(path, f"{MARKER} names {name!r}, which is not inside the checkpoint")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:  # as format 2 has it
        return FileRecord(value, None)
    try:
        record = _FileRecord.model_validate(value)
    except ValueError:
        raise _refuse(path, f"{MARKER} is damaged: what it says of {name} is no size with a digest") from None
    return FileRecord(record.bytes, record.sha256)


def _text(path: Path, name: str) -> str:
    try:
        return read_text(path / name, area="checkpoint", remedy="")
    except ValueError as error:
        raise _refuse(path, _words(error, path / name, name)) from None


def _parsed(text: str, shape: Any, path: Path, name: str) -> Any:
    try:
        return parse_json(text, shape, name=name, area="checkpoint", remedy="")
    except ValueError as error:
        raise _refuse(path, f"{name} is damaged: {_words(error, name, '').lstrip(': ')}") from None


def _words(error: ValueError, where: Any, instead: str) -> str:
    return instead + str(error).removeprefix(f"[checkpoint] {where}").rstrip(". ")


def _refuse(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"[checkpoint] {path}: {reason}.{_ELSE}")
