"""What belongs to a model besides its weights: the tokenizer's files, chat templates, generation settings, config.json.

They are read once, whole, and written to wherever the model is used from: a prepared folder holds its tokenizer's, a run
and each of its checkpoints hold all of them in `model_files/`. So each of these is enough alone, wherever it is moved, and
whatever becomes of the folder that the files came from: no path is followed later.

    model_files/
        tokenizer.json …      as they were found, byte for byte
        config.json           of the Hugging Face folder that the weights came from
        record.json           the SHA-256 of each of these, how documents were encoded, and where the files were found
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cktrain.file_identity import changed_files, sha256_of_files
from cktrain.foreign_file import checked, parse_json, read_json
from cktrain.hf.gguf_file import is_gguf

FOLDER = "model_files"
RECORD_FILE = "record.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
GENERATION_FILE = "generation_config.json"
CONFIG_FILE = "config.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    TEMPLATE_FILE,
    "chat_template.json",
)
"""What may stand beside weights for the tokenizer; with them all of TEMPLATE_FOLDER/*.jinja."""

_OTHER_KINDS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)

SpecialTokens = Literal["text", "parse"]


class Encoding(BaseModel):
    """How text became documents of ids; a prompt is encoded the same way."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)

    special_tokens: SpecialTokens = "text"
    """Whether special tokens that are written out in a text are ordinary text or become the tokens."""
    begin_ids: list[int] = []
    """What stands before each document: mostly nothing, or the beginning token."""
    eos_id: int
    """What ends each document."""


class _Record(BaseModel):
    files: dict[str, str]
    encoding: Encoding | None = None
    special_ids: dict[str, Any] = {}
    found_in: str = ""


@dataclass(frozen=True)
class SideFiles:
    """The files' contents by name, and what is known of how they were used."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    encoding: Encoding | None = None
    """Of the data that the model was trained on; None: the tokenizer's own rule."""
    special_ids: Mapping[str, Any] = field(default_factory=dict)
    """Ids that no file here names any more, see `cktrain.data.special_tokens`."""
    found_in: str = ""
    """Where the tokenizer was found, for messages; a path that may be gone."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer.json."""
        return TOKENIZER_FILE in self.files

    def tokenizer_files(self) -> dict[str, bytes]:
        """Without generation settings and the model's config."""
        return {name: data for name, data in self.files.items() if name not in (GENERATION_FILE, CONFIG_FILE)}

    def json(self, name: str) -> dict[str, Any]:
        """A file's JSON object; empty where there is no such file. Raises ValueError when it holds none."""
        if name not in self.files:
            return {}
        where = str(Path(self.found_in) / name) if self.found_in else name
        return parse_json(
            self.files[name],
            dict[str, Any],
            name=where,
            area="tokenizer",
            remedy="Fetch the file again or correct it.",
        )

    def write(self, folder: Path) -> None:
        """Write the files into a folder, each synced to disk. Raises OSError."""
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def write_with_record(self, folder: Path) -> None:
        """Write the files and their record as `folder`, whole or not at all; one that is there is replaced. OSError."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.write(temporary)
        record = _Record(
            files=sha256_of_files(temporary, self.files),
            encoding=self.encoding,
            special_ids=dict(self.special_ids),
            found_in=self.found_in,
        )
        text = json.dumps(record.model_dump(), indent=1) + "\n"
        replace(self, files={RECORD_FILE: text.encode()}).write(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)


def read_side_files(folder: str | Path) -> SideFiles:
    """All that a Hugging Face folder, or one with a tokenizer, has of these files; of a GGUF file what they would be.

    Raises ValueError for one that is there and cannot be read, a link to nothing among them.
    """
    folder = Path(folder)
    if is_gguf(folder):
        from cktrain.hf.gguf_file.source import read_side

        return read_side(folder)
    names = [*TOKENIZER_FILES, GENERATION_FILE, CONFIG_FILE]
    templates = folder / TEMPLATE_FOLDER
    if templates.is_dir():
        names += sorted(f"{TEMPLATE_FOLDER}/{path.name}" for path in templates.glob("*.jinja"))
    return SideFiles(
        {name: _read(folder / name) for name in names if os.path.lexists(folder / name)}, found_in=str(folder)
    )


def read_tokenizer(path: str | Path) -> SideFiles:
    """The files of the tokenizer that a path names: a folder, or a tokenizer.json (its config is read beside it).

    An id of a Hugging Face Hub is looked up (`cktrain/hf/hub.py`).
    config.json is left out, since it is a model's, except for the ids that it names. Raises ValueError when there is no
    tokenizer.json, saying how to make one out of what is there.
    """
    from cktrain.hf.hub import TOKENIZER, local_path

    path = local_path(path, TOKENIZER)
    folder = path.parent if path.name == TOKENIZER_FILE else path
    if path.is_file() and path.name != TOKENIZER_FILE and not is_gguf(path):
        found = {TOKENIZER_FILE: _read(path)}
        beside = path.with_name(TOKENIZER_CONFIG_FILE)
        if os.path.lexists(beside):
            found[TOKENIZER_CONFIG_FILE] = _read(beside)
        return SideFiles(found, found_in=str(path.parent))
    side = read_side_files(folder)
    check_tokenizer(side)
    named = {key: value for key, value in side.json(CONFIG_FILE).items() if key.endswith("_token_id")}
    files = {name: data for name, data in side.files.items() if name != CONFIG_FILE}
    return replace(side, files=files, special_ids=named)


def check_tokenizer(side: SideFiles) -> None:
    """Raises ValueError where there is no tokenizer.json, saying how to make one out of what is there."""
    if side.has_tokenizer:
        return
    folder = Path(side.found_in)
    other = [name for name in _OTHER_KINDS if name in side.files]
    if not other:
        raise ValueError(f"[tokenizer] {folder / TOKENIZER_FILE}: no such file. {where_to_find_one(folder)}")
    code = f"from transformers import AutoTokenizer as A; A.from_pretrained({str(folder)!r}).save_pretrained('converted')"
    raise ValueError(
        f"[tokenizer] {folder} has {' and '.join(other)} and no {TOKENIZER_FILE}. Make one with transformers: "
        f"python -c {shlex.quote(code)}"
    )


def where_to_find_one(folder: Path) -> str:
    """What to do where a folder has no tokenizer."""
    from cktrain.hf.hub import what_fetches_the_rest

    if (command := what_fetches_the_rest(folder)) is not None:
        return f"The hub's cache has the model without its tokenizer: {command}"
    return (
        "Give a tokenizer.json or a folder that holds one, or put it there. Rows can be prepared with it beforehand: "
        "cktrain data prepare ROWS OUT --tokenizer TOKENIZER, and OUT given as DATA (data.path)."
    )


def read_record(folder: Path) -> SideFiles | None:
    """What `write_with_record` wrote, compared with its record. None when there is no such folder.

    Raises ValueError that names what is missing, changed or damaged.
    """
    if not os.path.lexists(folder):
        return None
    record = read_json(
        folder / RECORD_FILE,
        _Record,
        area="model files",
        remedy="Copy the folder again from where it is whole.",
    )
    names = record.files
    problems = changed_files(folder, names)
    if problems:
        raise ValueError(
            f"[model files] {folder}: {'; '.join(problems)}. Put back what the run wrote: another checkpoint of the run "
            "has the same files."
        )
    return SideFiles(
        {name: _read(folder / name) for name in names}, record.encoding, record.special_ids, record.found_in
    )


def encoding_of(values: Mapping[str, Any], path: Path) -> Encoding:
    """An encoding out of dataset.json's values; older ones name the end token alone. Raises ValueError for others."""
    return checked(values, Encoding, name=str(path), area="data", remedy="Prepare the data again.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"[tokenizer] {path}: a link to {os.readlink(path)}, which is not there. Fetch the folder again, or remove "
            "the link."
        ) from None
    except OSError as error:
        raise ValueError(
            f"[tokenizer] {path}: cannot be read ({error.strerror}). Correct its permissions, or remove it."
        ) from None
