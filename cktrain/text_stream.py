"""Text into a model and out of it: prompts to ids, ids to text as soon as characters are whole."""

from __future__ import annotations

from collections.abc import Sequence

from cktrain.data.special_tokens import added_around, configured_token, end_ids, special_ids
from cktrain.data.tokenizer_backend import guarded, read_backend
from cktrain.side_files import SideFiles, SpecialTokens, check_tokenizer

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not (yet) a character


class Codec:
    """The tokenizer of a saved model.

    A prompt is encoded as the documents were that the model was trained on: what stands before it, and whether special
    tokens written out in it are tokens. Where that is not recorded, as in a Hugging Face folder, the tokenizer's own rule
    holds, as in transformers, except that nothing ends a prompt, which is to be continued.
    """

    def __init__(self, side: SideFiles, special_tokens: SpecialTokens | None = None) -> None:
        """`special_tokens`: other than recorded. Raises ValueError when there is no tokenizer.json that can be read."""
        check_tokenizer(side)
        self._backend = read_backend(side)
        known = side.encoding
        mode = special_tokens or ("parse" if known is None else known.special_tokens)
        self._backend.encode_special_tokens = mode == "text"
        self._begin = added_around(side, self._backend)[0] if known is None else known.begin_ids
        ids = special_ids(side)
        name = configured_token(side, "eos_token")
        own = None if name is None else self._backend.token_to_id(name)
        ends = [own, None if known is None else known.eos_id]
        self.stop_ids = frozenset([*end_ids(ids), *(end for end in ends if end is not None)])
        self._start = list(self._begin)
        if not self._start and known is not None:
            self._start = [known.eos_id]
        elif not self._start:
            bos = ids.get("bos_token_id")
            self._start = [bos] if isinstance(bos, int) else sorted(self.stop_ids)[:1]

    @property
    def begin(self) -> list[int]:
        """The ids that stand before every text."""
        return list(self._begin)

    def encode(self, prompt: str) -> list[int]:
        """The prompt's ids; an empty prompt is the start of a document."""
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"[generate] the prompt is not UTF-8 text at character {error.start}. Correct it."
            ) from None
        ids = guarded(
            lambda: self._backend.encode(prompt, add_special_tokens=False).ids,
            "the tokenizer fails on the prompt",
            "Its tokenizer.json is damaged: fetch it again.",
        )
        if not ids:
            return list(self._start)
        return ids if ids[: len(self._begin)] == self._begin else [*self._begin, *ids]

    def check(self, ids: Sequence[int], vocab_size: int) -> None:
        """Raise ValueError, naming the token, when an id is beyond the model's vocabulary; unused ones do no harm."""
        for index in ids:
            if not 0 <= index < vocab_size:
                raise ValueError(
                    f"[generate] the prompt has the token {self._backend.id_to_token(index)!r}, id {index}, and the model's "
                    f"vocabulary has {vocab_size:,} ids. Use the tokenizer that it was trained with."
                )

    def decode(self, ids: Sequence[int]) -> str:
        """The ids' text, without special tokens; bytes that are no character are U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Text of ids that come one by one; a character of several tokens is given out with its last one."""

    def __init__(self, codec: Codec, prompt: Sequence[int]) -> None:
        """The prompt's text is not given out; it is context: decoders treat a text's first token apart."""
        self._codec = codec
        self._ids = list(prompt)
        self._context = 0
        self._given = len(self._ids)

    def push(self, token: int) -> str:
        """The text that is certain now; empty within a character."""
        self._ids.append(token)
        text = self._rest()
        if text.endswith(_INCOMPLETE):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return text

    def finish(self) -> str:
        """What is left when no token follows."""
        return self._rest()

    def _rest(self) -> str:
        known = self._codec.decode(self._ids[self._context : self._given])
        return self._codec.decode(self._ids[self._context :])[len(known) :]
