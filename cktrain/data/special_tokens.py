"""Beginning, end and padding: which ids they have, and which of them a tokenizer's own rule puts around a text.

**Ids** are merged key by key: generation_config.json comes first, as in transformers, then config.json, then what a
prepared folder or a run has recorded, then the tokens that tokenizer_config.json names, or where it is silent
special_tokens_map.json of older versions. A file that is silent about a key, or says null, hides nothing. An id below 0 is a
way of saying "none".

**The rule** is tokenizer.json's post-processor, and `add_bos_token` and `add_eos_token` of tokenizer_config.json where they
stand: each decides about its token alone. (transformers 4 lets them decide for Llama's kin, 5 for nobody; files that
transformers saved agree.)

**A document's end** is one token: the one asked for, else the eos_token of these two files, else the first of the model's
eos ids, else a well-known name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktrain.data.tokenizer_backend import guarded, read_backend
from cktrain.foreign_file import shorten
from cktrain.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    SideFiles,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Names of the end token in well-known tokenizers, tried in this order when no file names it.
_KNOWN_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_PROBES = ("a", "0", ".", " ", "\n")

Ids = dict[str, int | list[int]]


def special_ids(side: SideFiles) -> Ids:
    """bos_token_id, pad_token_id (an id) and eos_token_id (an id, or the list that the file has), where known.

    Raises ValueError, naming file and key, for values that are no ids.
    """
    found = ids_in_files(side)
    if side.has_tokenizer and set(found) != set(KEYS):
        backend = read_backend(side)
        names = {f"{key}_token_id": configured_token(side, f"{key}_token") for key in ("bos", "pad")}
        names["eos_token_id"] = end_token(side, backend)
        for key, name in names.items():
            index = None if name is None else backend.token_to_id(name)
            if index is not None:
                found.setdefault(key, index)
    return {key: found[key] for key in KEYS if key in found}


def end_ids(ids: Mapping[str, int | list[int]]) -> list[int]:
    """All ids that end a text."""
    value = ids.get("eos_token_id", [])
    return list(value) if isinstance(value, list) else [value]


def with_ends(side: SideFiles, more: Sequence[int]) -> SideFiles:
    """The files, of which generation_config.json says that these ids end a text, too."""
    values = side.json(GENERATION_FILE)
    values["eos_token_id"] = list(dict.fromkeys([*end_ids(special_ids(side)), *more]))
    made = (json.dumps(values, indent=2) + "\n").encode()
    return replace(side, files={**side.files, GENERATION_FILE: made})


def end_token(side: SideFiles, backend: Backend, asked: str | None = None) -> str | None:
    """The token that ends a document, by the rule above. ValueError for a named one that the vocabulary has not."""
    for name, who in (
        (asked, "was asked for"),
        (configured_token(side, "eos_token"), f"is the eos_token of {_naming_file(side, 'eos_token')}"),
    ):
        if name is None:
            continue
        if backend.token_to_id(name) is None:
            where = Path(side.found_in) / TOKENIZER_FILE
            raise ValueError(
                f"[tokenizer] {where}: {shorten(name)} {who} and is not in the vocabulary. Name the end token with "
                "--eos-token."
            )
        return name
    for index in end_ids(ids_in_files(side)):
        name = backend.id_to_token(index)
        if name is not None:
            return name
    return next((name for name in _KNOWN_END_TOKENS if backend.token_to_id(name) is not None), None)


def configured_token(side: SideFiles, key: str) -> str | None:
    """What tokenizer_config.json says, or where it is silent special_tokens_map.json, which older versions wrote.

    Hugging Face writes the token's text, or an object that holds it.
    """
    token = side.json(_naming_file(side, key)).get(key)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _naming_file(side: SideFiles, key: str) -> str:
    silent = side.json(TOKENIZER_CONFIG_FILE).get(key) is None
    return SPECIAL_TOKENS_FILE if silent and SPECIAL_TOKENS_FILE in side.files else TOKENIZER_CONFIG_FILE


def added_around(side: SideFiles, backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's own rule puts before and after a text.

    Raises ValueError when tokenizer_config.json asks for a token that the vocabulary has not.
    """
    before, after = _added_by_post_processor(side, backend)
    bos, eos = (_asked_for(side, backend, key) for key in ("bos", "eos"))
    if bos is not None:
        index, wanted = bos
        before = [*([index] if wanted else []), *(other for other in before if other != index)]
    if eos is not None:
        index, wanted = eos
        after = [*(other for other in after if other != index), *([index] if wanted else [])]
    return before, after


def rule_conflict(side: SideFiles, backend: Backend) -> str | None:
    """What tokenizer_config.json and tokenizer.json disagree about, in a sentence; None where they agree."""
    rule, processor = added_around(side, backend), _added_by_post_processor(side, backend)
    if rule == processor:
        return None
    return (
        f"add_bos_token and add_eos_token of {TOKENIZER_CONFIG_FILE} put {rule[0]} before and {rule[1]} after a text, the "
        f"post-processor of {TOKENIZER_FILE} {processor[0]} and {processor[1]}: the first holds here, and transformers 5 "
        "follows the second"
    )


def _asked_for(side: SideFiles, backend: Backend, key: str) -> tuple[int, bool] | None:
    """The id of a token and whether tokenizer_config.json wants it added; None where it does not say."""
    flag = side.json(TOKENIZER_CONFIG_FILE).get(f"add_{key}_token")
    where = str(Path(side.found_in) / TOKENIZER_CONFIG_FILE)
    if flag is not None and not isinstance(flag, bool):
        raise ValueError(
            f"[tokenizer] {where}: add_{key}_token is {shorten(flag)}, not true or false. Correct it."
        )
    name = configured_token(side, f"{key}_token")
    if flag is None or name is None:  # without a token there is nothing to add
        return None
    index = backend.token_to_id(name)
    if index is None:
        raise ValueError(
            f"[tokenizer] {where}: add_{key}_token is {str(flag).lower()} and {key}_token {shorten(name)} is not in the "
            "vocabulary. Correct one of them."
        )
    return index, flag


def _added_by_post_processor(side: SideFiles, backend: Backend) -> tuple[list[int], list[int]]:
    """Seen in what becomes of a text of one or two tokens."""
    for probe in _PROBES:
        encoding = guarded(
            lambda text=probe: backend.encode(text),  # type: ignore[misc]
            f"{Path(side.found_in) / TOKENIZER_FILE}: it cannot encode {probe!r}",
            "It is damaged: fetch it again.",
        )
        mask = encoding.special_tokens_mask
        if 0 in mask:
            first, last = mask.index(0), len(mask) - mask[::-1].index(0)
            return encoding.ids[:first], encoding.ids[last:]
    return [], []  # it knows none of the probes; what it adds cannot be told from what it reads


def ids_in_files(side: SideFiles) -> Ids:
    """What `special_ids` gives without looking at the tokenizer. Raises ValueError as it does."""
    found: Ids = {}
    for name in (GENERATION_FILE, CONFIG_FILE):
        found = _read_ids(side.json(name), str(Path(side.found_in) / name)) | found
    return _read_ids(side.special_ids, str(Path(side.found_in) / CONFIG_FILE)) | found


def _read_ids(values: Mapping[str, Any], where: str) -> Ids:
    found: Ids = {}
    for key in KEYS:
        value = values.get(key)
        if value is None:
            continue
        many = isinstance(value, list) and key == "eos_token_id"
        ids = value if many else [value]
        if any(isinstance(number, bool) or not isinstance(number, int) for number in ids):
            what = "an id or a list of ids" if key == "eos_token_id" else "an id"
            raise ValueError(f"[tokenizer] {where}: {key} is {shorten(value)}, not {what}. Correct it.")
        ids = [number for number in ids if number >= 0]
        if ids:
            found[key] = ids if many else ids[0]
    return found
