r"""What `tokenizer.ggml.pre` stands for: how a byte-level BPE cuts a text into words, before it merges within them.

llama.cpp knows each tokenizer by a name and has a rule for each; here a name is the parts of a tokenizer.json: the
normalizer and the pre-tokenizer of the model family that the name was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = {**_BYTES, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_NFC = {"type": "NFC"}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = r"\p{L}", others: str = r"\p{L}\p{N}") -> str:
    """The cut of GPT-4's and Llama 3's kin, which differ in how many digits stay together."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{others}]+[\r\n]*|{_TAIL}"


_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _sequence(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [dict(part) for part in parts]}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(split, _BYTES)


@dataclass(frozen=True)
class PreTokenizer:
    """The parts of a tokenizer.json that a name stands for."""

    pre_tokenizer: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    """Whether a word that is a token is taken whole, whatever the merges say."""
    add_bos: bool = False
    """Whether a text begins with the beginning token where the file does not say."""


_LLAMA3 = PreTokenizer(_split(_words(r"\p{N}{1,3}")), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer(_split(_words(r"\p{N}")), _NFC)
_DIGIT_BY_DIGIT = PreTokenizer(_sequence(_DIGITS, _GPT2))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(_GPT2),
    "smollm": _DIGIT_BY_DIGIT,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "dbrx": PreTokenizer(_split(_words(r"\p{N}{1,3}"))),
    "tekken": PreTokenizer(_split(_CASED % ("", "", r"\p{N}")), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer(_split(_CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", r"\p{N}{1,3}"))),
    "qwen35": PreTokenizer(_split(_words(r"\p{N}", letters=r"[\p{L}\p{M}]", others=r"\p{L}\p{M}\p{N}"))),
    "command-r": PreTokenizer(_sequence(_DIGITS, _GPT2), _NFC),
    "mpt": PreTokenizer(_GPT2, _NFC),
    **dict.fromkeys(("starcoder", "refact"), _DIGIT_BY_DIGIT),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), _QWEN2),
    "olmo": PreTokenizer(_GPT2, _NFC),
    "smaug-bpe": PreTokenizer(_split(_words(r"\p{N}{1,3}"))),
}
"""By name. The first that fits is written, so those that newer files have stand first."""
