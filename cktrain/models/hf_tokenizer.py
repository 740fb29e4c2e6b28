"""A Hugging Face folder's tokenizer: its files, and the ids of its special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cktrain.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer

GENERATION_FILE = "generation_config.json"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_FILES = (
    TOKENIZER_FILE,
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that `source` has; a tokenizer.json alone gets its tokenizer_config.json.

    Raises ValueError when there is no tokenizer.
    """
    found = [name for name in _FILES if (source / name).is_file()]
    if not {TOKENIZER_FILE, "tokenizer.model", "vocab.json"} & set(found):
        raise ValueError(
            f"[hugging_face] {source} has no {TOKENIZER_FILE}. Give a folder that holds a tokenizer."
        )
    for name in found:
        shutil.copyfile(source / name, target / name)
    if CONFIG_FILE not in found and TOKENIZER_FILE in found:
        Tokenizer.load(source).save(target)
        shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)  # byte for byte


def special_ids(folder: Path) -> dict[str, Any]:
    """The bos_token_id, eos_token_id (an id or a list) and pad_token_id that a folder names.

    A Hugging Face model's are in generation_config.json or config.json; beside a tokenizer alone its end
    token is known.
    """
    for name in (GENERATION_FILE, "config.json"):
        if (folder / name).is_file():
            values = _read_object(folder / name)
            found = {key: values[key] for key in SPECIAL_IDS if values.get(key) is not None}
            if found:
                return found
    if (folder / TOKENIZER_FILE).is_file():
        return {"eos_token_id": Tokenizer.load(folder).eos_id}
    return {}


def generation_config(folder: Path | None, ids: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json's content: that of `folder` where it has one, else the special ids."""
    if folder is not None and (folder / GENERATION_FILE).is_file():
        return _read_object(folder / GENERATION_FILE)
    return dict(ids)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"[hugging_face] {path}: not valid JSON ({error}). Correct or remove it.") from None
    if not isinstance(values, dict):
        raise ValueError(f"[hugging_face] {path}: holds no JSON object. Correct or remove it.")
    return values
