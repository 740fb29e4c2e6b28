"""tokenizer.json and what stands beside it as a GGUF's keys, as llama.cpp's own converter writes them.

How a byte-level tokenizer cuts words is told to llama.cpp by a name alone (`pre_tokenizers.py`): it is found by cutting a
text in which the rules differ. A tokenizer whose rule has no name is refused, since llama.cpp would read other tokens.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktrain.data.chat.template import stock_template, without_generation
from cktrain.data.special_tokens import added_around, configured_token, end_ids, end_token, special_ids
from cktrain.data.tokenizer_backend import read_backend
from cktrain.foreign_file import shorten
from cktrain.hf.gguf_file.pre_tokenizers import PRE_TOKENIZERS
from cktrain.hf.gguf_file.tokenizer_in import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from cktrain.side_files import TOKENIZER_FILE, SideFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

log = logging.getLogger("cktrain")

_PROBE = (
    "Hello, it's 12345 o'clock; IT'S 3.14!  CamelCase camelHTTPServer café cafe\u0301 नमस्ते देवनागरी 東京都2024年 "
    "x=y/z//w \n\n\t  tabs\t\tand   spaces \r\n end//\n/ ½ ²³ ١٢٣٤ …?!\n \n  trailing   "
)
"""Digits, contractions, cases, marks, scripts, blanks and ends of lines: where the rules differ."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_keys(side: SideFiles, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.…` for an embedding of `vocab_size` rows; no tokenizer: the kind no_vocab.

    Raises ValueError for a tokenizer that llama.cpp has no kind or no name for.
    """
    if not side.has_tokenizer:
        return {"tokenizer.ggml.model": "no_vocab"}
    backend = read_backend(side)
    values = json.loads(backend.to_str())
    where = str(Path(side.found_in) / TOKENIZER_FILE)
    model = values["model"]
    if model["type"] == "Unigram":
        kind, keys = "t5", _unigram(values, backend, where)
    elif model["type"] == "BPE" and model.get("byte_fallback"):
        kind, keys = "llama", _sentencepiece(values, backend, where)
    elif model["type"] == "BPE":
        kind, keys = "gpt2", _byte_level(values, backend, where)
    else:
        raise ValueError(
            f"[gguf] {where}: llama.cpp has no tokenizer like its {model['type']}. Give another tokenizer."
        )
    tokens, types = _tokens(values, backend, vocab_size, where)
    found = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **keys,
        **_special(side, backend, vocab_size, where),
    }
    if "tokenizer.ggml.scores" in found:
        scores = found["tokenizer.ggml.scores"]
        found["tokenizer.ggml.scores"] = [scores.get(token, -1e6) for token in tokens]
    template = stock_template(side)
    return found if template is None else {**found, "tokenizer.chat_template": without_generation(template)}


def find_pre(backend: Backend) -> str | None:
    """The name under which llama.cpp knows how a byte-level tokenizer cuts words; None where it has none."""
    import tokenizers

    values = json.loads(backend.to_str())
    normalizer = values["normalizer"]
    if normalizer not in (None, {"type": "NFC"}) or backend.pre_tokenizer is None:
        return None
    text = tokenizers.normalizers.NFC().normalize_str(_PROBE)
    cut = backend.pre_tokenizer.pre_tokenize_str(text)
    fitting = []
    for name, pre in PRE_TOKENIZERS.items():
        other = tokenizers.Tokenizer.from_str(json.dumps({**_EMPTY, "pre_tokenizer": pre.pre_tokenizer}))
        assert other.pre_tokenizer is not None
        merges_alike = bool(values["model"].get("ignore_merges")) == pre.ignore_merges
        if merges_alike and other.pre_tokenizer.pre_tokenize_str(text) == cut:
            fitting.append((pre.normalizer != normalizer, name))
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


_EMPTY: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}


def _byte_level(values: dict[str, Any], backend: Backend, where: str) -> dict[str, Any]:
    pre = find_pre(backend)
    if pre is None:
        raise ValueError(
            f"[gguf] {where}: it cuts words, or normalizes, in a way that has no name in llama.cpp (known are "
            f"{', '.join(PRE_TOKENIZERS)}), and would read other tokens there. Use the tokenizer of one of these models."
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    return {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}


def _sentencepiece(values: dict[str, Any], backend: Backend, where: str) -> dict[str, Any]:
    """A token's score is its place among the merges: the sooner it is made, the higher."""
    cut = _spelled(backend, "a b")
    if cut not in (f"a{SPACE}b", f"{SPACE}a{SPACE}b"):
        raise ValueError(
            f"[gguf] {where}: 'a b' becomes {shorten(cut)}, not as SentencePiece has it. Give another tokenizer."
        )
    scores: dict[str, float] = {}
    for rank, merge in enumerate(values["model"]["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault("".join(pair), -float(rank))
    return {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": cut.startswith(SPACE),
    }


def _unigram(values: dict[str, Any], backend: Backend, where: str) -> dict[str, Any]:
    normalizer = values["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    found: dict[str, Any] = {"tokenizer.ggml.pre": "default"}
    for step in steps:
        if step["type"] == "Precompiled":
            data = base64.b64decode(step["precompiled_charsmap"])
            found["tokenizer.ggml.precompiled_charsmap"] = data
        elif step["type"] != "Replace" or step["pattern"] != {"Regex": " {2,}"}:
            raise ValueError(
                f"[gguf] {where}: llama.cpp has no normalizer {step['type']}. Give another tokenizer."
            )
    return found | {
        "tokenizer.ggml.scores": dict(values["model"]["vocab"]),
        "tokenizer.ggml.add_space_prefix": _spelled(backend, "a b").startswith(SPACE),
        "tokenizer.ggml.remove_extra_whitespaces": any(step["type"] == "Replace" for step in steps),
    }


def _spelled(backend: Backend, text: str) -> str:
    """The text as the model sees it."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return text
    return "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))


def _tokens(
    values: dict[str, Any], backend: Backend, vocab_size: int, where: str
) -> tuple[list[str], list[int]]:
    """A token and its type for each row of the embedding; rows that are no token are called [PADn].

    Tokens that were added beyond the embedding (a padding token of fine-tuning) are left out, and told; a vocabulary that is
    larger is another model's, and a ValueError.
    """
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    model = values["model"]
    unknown = model.get("unk_token")
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    added_ids = {added["id"] for added in values["added_tokens"]}
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size and index in added_ids:
            log.warning(
                "[gguf] %s: %s is left out: its id is %s, and the model's embedding has %s rows",
                where,
                shorten(token),
                f"{index:,}",
                f"{vocab_size:,}",
            )
            continue
        if index >= vocab_size:
            raise ValueError(
                f"[gguf] {where}: {shorten(token)} has the id {index:,}, and the model's embedding {vocab_size:,} rows. "
                "Give the tokenizer that the model was trained with."
            )
        is_byte = bool(model.get("byte_fallback")) and _BYTE_TOKEN.fullmatch(token) is not None
        tokens[index], types[index] = token, BYTE if is_byte else NORMAL
    for added in values["added_tokens"]:
        index = added["id"]
        if index >= vocab_size:
            continue
        special = added["special"] or re.fullmatch(r"<\|.*\|>", added["content"]) is not None
        types[index] = UNKNOWN if added["content"] == unknown else CONTROL if special else USER_DEFINED
        if types[index] == USER_DEFINED:
            tokens[index] = tokens[index].replace(SPACE, " ")
    return tokens, types


def _special(side: SideFiles, backend: Backend, vocab_size: int, where: str) -> dict[str, Any]:
    """The ids of special tokens, and which stand around a text."""
    ids = special_ids(side)
    eos_token = end_token(side, backend)
    ends = end_ids(ids)
    if eos_token is not None and (index := backend.token_to_id(eos_token)) is not None:
        ends = [index, *(other for other in ends if other != index)]
    found: dict[str, Any] = {}
    if isinstance(ids.get("bos_token_id"), int):
        found["tokenizer.ggml.bos_token_id"] = ids["bos_token_id"]
    for name, index in zip(("eos", "eot"), (end for end in ends if end < vocab_size), strict=False):
        found[f"tokenizer.ggml.{name}_token_id"] = index
    pad = ids.get("pad_token_id")
    if isinstance(pad, int) and pad < vocab_size:
        found["tokenizer.ggml.padding_token_id"] = pad
    unknown = configured_token(side, "unk_token")
    if unknown is not None and (index := backend.token_to_id(unknown)) is not None:
        found["tokenizer.ggml.unknown_token_id"] = index
    before, after = added_around(side, backend)
    for name, around, role in (("before", before, "bos"), ("after", after, "eos")):
        if around and around != [found.get(f"tokenizer.ggml.{role}_token_id")]:
            raise ValueError(
                f"[gguf] {where}: it puts the ids {around} {name} a text, and llama.cpp can only put its {role} there. "
                "Give another tokenizer."
            )
        found[f"tokenizer.ggml.add_{role}_token"] = bool(around)
    return found
