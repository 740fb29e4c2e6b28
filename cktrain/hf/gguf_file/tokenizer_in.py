"""A GGUF's tokenizer as tokenizer.json and tokenizer_config.json.

Three kinds are read, by `tokenizer.ggml.model`:

    gpt2    byte-level BPE: tokens in the byte-level alphabet, merges, and a rule by name (`pre_tokenizers.py`)
    llama   SentencePiece's BPE: tokens with scores. A merge makes the token of the highest score first, so the merges of
            a tokenizer.json are all ways to make a token out of two, in the order of the tokens' scores
    t5      Unigram: tokens with scores, and SentencePiece's table of normalization

What a file does not say is as llama.cpp has it: whether a text begins with bos, with a space.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np

from cktrain.hf.gguf_file.pre_tokenizers import PRE_TOKENIZERS
from cktrain.hf.gguf_file.reader import GGUFFile
from cktrain.side_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
_PADDING = re.compile(r"\[PAD-?\d+\]")
"""Rows of the embedding that are no token; converters name them so."""
_ROLES = ("bos", "eos", "unknown", "padding")
_END_TOKENS = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "</s>",
    )
)
"""Control tokens that end a text by their name, in llama.cpp as here."""


def has_tokenizer(file: GGUFFile) -> bool:
    """Whether the file holds a tokenizer at all."""
    return file.get("tokenizer.ggml.model", str, "no_vocab") not in ("no_vocab", "none")


def tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json. Raises ValueError for a kind that is not known, and for parts that do not
    fit each other."""
    model = file.need("tokenizer.ggml.model", str)
    if model not in _KINDS:
        raise file.error(
            f"its tokenizer is of the kind {model[:40]!r}, and {', '.join(_KINDS)} are read. Give the Hugging Face folder."
        )
    tokens, types = _tokens(file)
    parts = _KINDS[model](file, tokens, types)
    ids = _ids(file, len(tokens))
    begin = [tokens[ids["bos"]]] if parts.pop("add_bos") and "bos" in ids else []
    end = (
        [tokens[ids["eos"]]] if file.get("tokenizer.ggml.add_eos_token", bool, False) and "eos" in ids else []
    )
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for index, kind in enumerate(types)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED) and tokens[index]
        ],
        **parts,
        "post_processor": _template(begin, end, tokens, parts["post_processor"]),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(begin),
        "add_eos_token": bool(end),
        **{
            f"{ {'unknown': 'unk', 'padding': 'pad'}.get(role, role) }_token": tokens[index]
            for role, index in ids.items()
        },
    }
    template = file.get("tokenizer.chat_template", str)
    if template is not None:
        config["chat_template"] = template
    return {
        TOKENIZER_FILE: json.dumps(whole, ensure_ascii=False).encode("utf-8", errors="strict"),
        TOKENIZER_CONFIG_FILE: json_bytes(config),
    }


def special_token_ids(file: GGUFFile) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id, where the file has them."""
    count = len(file.keys.get("tokenizer.ggml.tokens", []))
    ids = _ids(file, count) if count else {}
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {names[role]: index for role, index in ids.items() if role in names}


def end_ids(file: GGUFFile) -> list[int]:
    """All ids that end a text, the file's eos first."""
    if not has_tokenizer(file):
        return []
    tokens, types = _tokens(file)
    ids = _ids(file, len(tokens))
    named = (file.get(f"tokenizer.ggml.{role}_token_id", int) for role in ("eot", "eom"))
    by_name = (index for index, kind in enumerate(types) if kind == CONTROL and tokens[index] in _END_TOKENS)
    found = [*([ids["eos"]] if "eos" in ids else []), *named, *by_name]
    return list(dict.fromkeys(index for index in found if index is not None and 0 <= index < len(tokens)))


def json_bytes(values: dict[str, Any]) -> bytes:
    """A small JSON file."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------- the three kinds


def _byte_level(file: GGUFFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    name = file.get("tokenizer.ggml.pre", str, "")
    if name not in PRE_TOKENIZERS:
        what = f"tokenizer.ggml.pre is {name[:40]!r}" if name else "tokenizer.ggml.pre is missing"
        raise file.error(
            f"{what}, so how its texts are cut is not known; {', '.join(sorted(PRE_TOKENIZERS))} are. Give the Hugging Face "
            "folder, or convert the model with a newer llama.cpp."
        )
    pre = PRE_TOKENIZERS[name]
    vocabulary = _vocabulary(tokens, types)
    merges = file.get("tokenizer.ggml.merges", list)
    if merges is None and not any(len(token) > 1 and types[i] == NORMAL for token, i in vocabulary.items()):
        merges = []  # an array of nothing is not written, and its tokens are single bytes
    if not isinstance(merges, list):
        raise file.error(
            "tokenizer.ggml.merges is missing, and its kind of tokenizer needs it. Convert the model again."
        )
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise file.error(
                f"tokenizer.ggml.merges has {merge[:60]!r}, which makes no token of two. Fetch the file again."
            )
        pairs.append([left, right])
    return {
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.pre_tokenizer,
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, pairs, ignore_merges=pre.ignore_merges),
        "add_bos": file.get("tokenizer.ggml.add_bos_token", bool, pre.add_bos),
    }


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = _scores(file, len(tokens))
    vocabulary = _vocabulary(tokens, types)
    ranked = []
    for token, index in vocabulary.items():
        if types[index] not in (NORMAL, USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right, token[:cut], token[cut:]))
    ranked.sort(key=lambda merge: merge[:3])
    unknown = _unknown(file, types)
    normalizers, decoders = _spaces(file)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            [[left, right] for *_, left, right in ranked],
            unknown=None if unknown is None else tokens[unknown],
            byte_fallback=BYTE in types,
        ),
        "add_bos": file.get("tokenizer.ggml.add_bos_token", bool, True),
    }


def _unigram(file: GGUFFile, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = _scores(file, len(tokens))
    unknown = _unknown(file, types)
    table = file.get("tokenizer.ggml.precompiled_charsmap", list)
    normalizers: list[dict[str, Any]] = []
    if table is not None and len(table):
        data = base64.b64encode(np.asarray(table).astype(np.uint8).tobytes()).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": data})
    if file.get("tokenizer.ggml.remove_extra_whitespaces", bool, True):
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    prepend = "always" if file.get("tokenizer.ggml.add_space_prefix", bool, True) else "never"
    spaces = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prepend, "split": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": spaces,
        "post_processor": None,
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [[token, score] for token, score in zip(tokens, scores, strict=True)],
            "byte_fallback": BYTE in types,
        },
        "add_bos": file.get("tokenizer.ggml.add_bos_token", bool, False),
    }


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}


# ---------------------------------------------------------------------------------------------------------- parts


def _bpe(
    vocabulary: dict[str, int],
    merges: list[list[str]],
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


def _unknown(file: GGUFFile, types: list[int]) -> int | None:
    """The id of the token for what has none: by its type, or, as in Gemma's files, by its key alone."""
    by_type = next((index for index, kind in enumerate(types) if kind == UNKNOWN), None)
    return _ids(file, len(types)).get("unknown") if by_type is None else by_type


def _spaces(file: GGUFFile) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How SentencePiece's spaces come in and go out."""
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if file.get("tokenizer.ggml.add_space_prefix", bool, True):
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return normalizers, decoders


def _template(begin: list[str], end: list[str], tokens: list[str], plain: Any) -> Any:
    """A post-processor that puts these tokens around a text; `plain` where there are none."""
    if not begin and not end:
        return plain
    around = [[{"SpecialToken": {"id": token, "type_id": 0}} for token in part] for part in (begin, end)]
    pieces = {kind: [*around[0], {"Sequence": {"id": kind, "type_id": 0}}, *around[1]] for kind in ("A", "B")}
    special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in begin + end}
    return {
        "type": "TemplateProcessing",
        "single": pieces["A"],
        "pair": pieces["A"] + pieces["B"],
        "special_tokens": special,
    }


def _tokens(file: GGUFFile) -> tuple[list[str], list[int]]:
    """All tokens and their types. ValueError where the counts differ."""
    tokens = file.need("tokenizer.ggml.tokens", list)
    if not isinstance(tokens, list) or not tokens:
        raise file.error("tokenizer.ggml.tokens is no list of strings. Convert the model again.")
    types = file.get("tokenizer.ggml.token_type", list)
    found = [NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
    if len(found) != len(tokens):
        raise file.error(
            f"it has {len(tokens):,} tokens and {len(found):,} token types. Fetch the file again."
        )
    table = file.tensors.get("token_embd.weight")
    if table is not None and len(tokens) > table.shape[0]:
        raise file.error(
            f"it has {len(tokens):,} tokens and an embedding of {table.shape[0]:,} rows. Fetch the file again."
        )
    return tokens, found


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Token to id, without rows that are no token; of two that are written alike the first."""
    found: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if types[index] != UNUSED or not _PADDING.fullmatch(token):
            found.setdefault(token, index)
    return found


def _scores(file: GGUFFile, count: int) -> list[float]:
    scores = file.get("tokenizer.ggml.scores", list)
    if scores is None or len(scores) != count:
        have = "none" if scores is None else f"{len(scores):,}"
        raise file.error(f"it has {count:,} tokens and {have} scores. Fetch the file again.")
    found = np.asarray(scores)
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise file.error("tokenizer.ggml.scores are not all finite numbers. Fetch the file again.")
    return [float(score) for score in found]


def _ids(file: GGUFFile, count: int) -> dict[str, int]:
    """The ids of special tokens by role. ValueError for one that is no token."""
    found = {}
    for role in _ROLES:
        index = file.get(f"tokenizer.ggml.{role}_token_id", int)
        if index is None or index == 2**32 - 1:  # "none" in older files
            continue
        if not 0 <= index < count:
            raise file.error(
                f"tokenizer.ggml.{role}_token_id is {index:,}, and there are {count:,} tokens. Fetch the file again."
            )
        found[role] = index
    return found
