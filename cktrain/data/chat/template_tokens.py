"""Rendered conversations to ids: special tokens that a template writes are tokens, those that its users wrote are text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cktrain.data.chat.template import Rendered, Span
from cktrain.data.special_tokens import end_ids, special_ids
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import SideFiles, SpecialTokens

# Ends of turns in well-known templates; a model's files do not always count them among its end tokens.
_ENDS_OF_TURNS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
)


class TemplateTokens:
    """One tokenizer for what templates write, and the ids that end a turn."""

    def __init__(
        self, side: SideFiles, eos_token: str | None = None, special_tokens: SpecialTokens = "text"
    ) -> None:
        """`special_tokens` "parse": also those that users wrote are tokens. ValueError: no tokenizer that can be read."""
        self._parsing = Tokenizer.of(side, eos_token, "parse")
        self._literal_ids = Tokenizer.of(side, eos_token, "text")
        names = self._parsing.special_token_names()
        self._special_ids = {self._parsing.id_of(name) for name in names}
        ends = {self._parsing.id_of(name) for name in _ENDS_OF_TURNS} & self._special_ids
        known = {*end_ids(special_ids(side)), self._parsing.eos_id}
        self.ends: frozenset[int] = frozenset(known | {i for i in ends if i is not None})
        """Ids that end a turn."""
        self.end_names = tuple(name for i in self.ends if (name := self._parsing.token_of(i)))
        longest_first = sorted(names, key=len, reverse=True)
        self.literal: re.Pattern[str] | None = None
        """Matches what is text in messages, for `ChatTemplate.render`."""
        if names and special_tokens == "text":
            self.literal = re.compile("|".join(map(re.escape, longest_first)))

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Ids of each text, and the characters of each id; special tokens are tokens wherever they stand."""
        return self._parsing.encode_with_offsets(texts)

    def ids(self, rendered: Rendered) -> list[int]:
        """Ids of a rendered conversation."""
        ((ids, offsets),) = self.encode([rendered.text])
        return self.as_text(rendered.text, rendered.literal, ids, offsets, [False] * len(ids))[0]

    def as_text(
        self, text: str, literal: Sequence[Span], ids: list[int], offsets: list[Span], learned: list[bool]
    ) -> tuple[list[int], list[bool]]:
        """Ids and whether each is learned, with special tokens that users wrote as the text that they are."""
        if not literal:
            return ids, learned
        new_ids: list[int] = []
        new_learned: list[bool] = []
        for token, (begin, end), is_learned in zip(ids, offsets, learned, strict=True):
            inside = any(a < end and begin < z for a, z in literal)
            pieces = [token]
            if inside and token in self._special_ids:
                pieces = self._literal_ids.encode_inside(text[begin:end])
            new_ids += pieces
            new_learned += [is_learned] * len(pieces)
        return new_ids, new_learned
