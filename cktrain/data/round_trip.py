"""What a tokenizer does to a corpus that nobody asked for: text that does not come back, unknown tokens, special tokens.

A sample of the documents is decoded again and compared: a normalizer that writes lower case or composes characters, or a
vocabulary without some of them, changes what the model learns, without any error. Unknown tokens, and special tokens that
are written out in the text, are counted in all documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cktrain.data.tokenizer import Tokenizer

_FIRST = 64
"""So many documents at the beginning are all looked at, then every _EACH-th."""
_EACH = 997
_CHARACTERS = 20_000
"""So much of a document at most."""
_SHOWN = 30


class RoundTrip:
    """Looks at documents as they are encoded; `report` says what was found."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unknown = tokenizer.unknown_id
        names = sorted(tokenizer.special_token_names(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names))) if names else None
        self._seen = 0
        self._tokens = 0
        self._unknown_tokens = 0
        self._written: Counter[str] = Counter()
        self._sampled = 0
        self._changed = 0
        self._example = ""

    def add(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Documents and their ids, without what begins and ends them."""
        for text, encoded in zip(texts, ids, strict=True):
            self._tokens += len(encoded)
            if self._unknown is not None:
                self._unknown_tokens += list(encoded).count(self._unknown)
            if self._special is not None:
                self._written.update(self._special.findall(text))
            if self._seen < _FIRST or self._seen % _EACH == 0:
                self._compare(text, encoded)
            self._seen += 1

    def report(self, source: str, say: Callable[[str], None]) -> dict[str, Any]:
        """What dataset.json records; `say` hears of what loses something, and of special tokens in the text."""
        where = f"[data.prepare] {source}"
        if self._changed:
            say(
                f"{where}: warning: {self._changed} of {self._sampled} sampled documents do not come back from the "
                f"tokenizer as they were: {self._example}. The model learns the changed text."
            )
        if self._unknown_tokens:
            assert self._unknown is not None
            say(
                f"{where}: warning: {self._unknown_tokens:,} of {self._tokens:,} tokens "
                f"({100 * self._unknown_tokens / self._tokens:.2g} %) are {self._tokenizer.token_of(self._unknown)}, the "
                "unknown token: the tokenizer does not know all of this text."
            )
        if self._written:
            names = ", ".join(f"{name} ({count:,})" for name, count in self._written.most_common(5))
            more = f" and {len(self._written) - 5} more" if len(self._written) > 5 else ""
            parsed = self._tokenizer.encoding.special_tokens == "parse"
            became = "the tokens" if parsed else "ordinary text (--special-tokens parse makes tokens of them)"
            say(f"{where}: special tokens are written out in the text: {names}{more}. They became {became}.")
        return {
            "special_tokens_in_text": dict(self._written),
            "unknown_tokens": self._unknown_tokens,
            "round_trip": {"documents": self._sampled, "changed": self._changed},
        }

    def _compare(self, text: str, ids: Sequence[int]) -> None:
        if len(text) > _CHARACTERS:
            text = text[:_CHARACTERS]
            ids = self._tokenizer.encode(text)
        back = self._tokenizer.decode(ids, skip_special_tokens=False)
        self._sampled += 1
        if back == text:
            return
        self._changed += 1
        if not self._example:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b),
                min(len(text), len(back)),
            )
            start = max(0, at - _SHOWN // 3)
            part = slice(start, start + _SHOWN)
            self._example = f"{text[part]!r} comes back as {back[part]!r}"
