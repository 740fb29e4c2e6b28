"""Whether two tokenizers are the same: not by path, nor byte by byte, but in what makes ids of text and text of ids.

The rule: equal files are the same. Otherwise both are read and written again by the `tokenizers` library, which gives one
spelling to what may be spelled in several ways (order of keys, spaces, merges as pairs or as strings, defaults), and
compared part by part: vocabulary, merges, added tokens, the model's settings, normalizer, pre-tokenizer, post-processor,
decoder. Truncation and padding do not count, since cktrain uses neither; nor does the version of the format.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cktrain.data.special_tokens import end_ids, ids_in_files
from cktrain.data.tokenizer_backend import read_backend
from cktrain.side_files import CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE, SideFiles

_PARTS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "post_processor": "post-processor",
    "decoder": "decoder",
}


def tokenizer_differences(one: SideFiles, other: SideFiles) -> list[str]:
    """In what two tokenizers differ, with numbers; empty when they are the same. ValueError if one cannot be read."""
    if one.files[TOKENIZER_FILE] == other.files[TOKENIZER_FILE]:
        return []
    a, b = _parts(one), _parts(other)
    found = []
    for part in a:
        if a[part] == b[part]:
            continue
        if part in ("vocabulary", "added tokens"):
            differing = {
                key for key in a[part].keys() | b[part].keys() if a[part].get(key) != b[part].get(key)
            }
            example = min(differing, key=str)
            found.append(
                f"{part} ({len(differing):,} differ, {len(a[part]):,} and {len(b[part]):,} tokens; {example!r}: "
                f"{a[part].get(example, 'none')} and {b[part].get(example, 'none')})"
            )
        elif part == "merges":
            found.append(f"merges ({len(a[part]):,} and {len(b[part]):,})")
        else:
            found.append(part)
    return found


def with_other_tokenizer(side: SideFiles, other: SideFiles) -> tuple[SideFiles, list[str]]:
    """The model's files with another's tokenizer; and which special ids are another token there, and so are dropped."""
    mine, theirs = (read_backend(files) if files.has_tokenizer else None for files in (side, other))
    lost = []
    for key, value in ids_in_files(replace(side, special_ids={})).items():
        for index in value if isinstance(value, list) else [value]:
            had = None if mine is None else mine.id_to_token(index)
            has = None if theirs is None else theirs.id_to_token(index)
            if had != has:
                lost.append(f"{key} {index} was {had!r} and is {has!r}")
    kept: dict[str, bytes] = {}
    for name in (GENERATION_FILE, CONFIG_FILE):
        if name in side.files:
            values = side.json(name)
            if lost:
                values = {
                    key: item for key, item in values.items() if not key.endswith(("_token_id", "_token_ids"))
                }
            kept[name] = (json.dumps(values, indent=2) + "\n").encode() if lost else side.files[name]
    return replace(other, files={**other.files, **kept}), lost


def other_tokenizer_error(asked: str, recorded: str, differences: list[str], remedy: str) -> ValueError:
    """One text for every place where the tokenizer is not the one that belongs there."""
    return ValueError(f"[tokenizer] {asked} is not {recorded}: other {', '.join(differences)}. {remedy}")


def _parts(side: SideFiles) -> dict[str, Any]:
    values = json.loads(read_backend(side).to_str())
    model = values["model"]
    vocabulary = model.pop("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, an id is the place
        vocabulary = {token: (index, score) for index, (token, score) in enumerate(vocabulary)}
    found = {
        "vocabulary": vocabulary,
        "merges": model.pop("merges", []),
        "added tokens": {token["content"]: token for token in values.get("added_tokens") or []},
        "settings of the model": model,
    }
    return found | {name: values.get(key) for key, name in _PARTS.items()}


def all_end_ids(side: SideFiles) -> list[int]:
    """The ids that a model's files end texts with, without reading its tokenizer."""
    return end_ids(ids_in_files(side))


def where_of(side: SideFiles) -> str:
    """A tokenizer's file, for messages."""
    return str(Path(side.found_in) / TOKENIZER_FILE)
