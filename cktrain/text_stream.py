"""Text into a model and out of it: prompts to ids, ids to text as soon as characters are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from cktrain.data.tokenizer import Tokenizer, tokenizer_file
from cktrain.models.hf_tokenizer import special_ids

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not (yet) a character


class Codec:
    """The tokenizer of a saved model.

    For a run a prompt is encoded as its data was: nothing is added, and special tokens written out are
    ordinary text. For a Hugging Face folder it is encoded as its own tokenizer does, which may add a
    beginning token.
    """

    def __init__(self, folder: Path, hugging_face: bool) -> None:
        """Raises ValueError when the folder has no tokenizer.json."""
        if hugging_face:
            self._tokenizer: Tokenizer | None = None
            self._backend = _read_backend(tokenizer_file(folder))
            self._backend.no_truncation()
            self._backend.no_padding()
            ids = special_ids(folder)
            stop = ids.get("eos_token_id", [])
            self.stop_ids = frozenset(stop if isinstance(stop, list) else [stop])
            self._start = [ids["bos_token_id"]] if "bos_token_id" in ids else sorted(self.stop_ids)[:1]
        else:
            self._tokenizer = Tokenizer.load(folder)
            self.stop_ids = frozenset([self._tokenizer.eos_id])
            self._start = [self._tokenizer.eos_id]

    def encode(self, prompt: str) -> list[int]:
        """The prompt's ids; an empty prompt is the start of a document."""
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"[generate] the prompt is not UTF-8 text at character {error.start}. Correct it."
            ) from None
        if self._tokenizer is not None:
            return self._tokenizer.encode(prompt) or self._start
        return self._backend.encode(prompt).ids or self._start

    def decode(self, ids: Sequence[int]) -> str:
        """The ids' text, without special tokens; bytes that are no character are U+FFFD."""
        if self._tokenizer is not None:
            return self._tokenizer.decode(ids)
        return str(self._backend.decode(list(ids), skip_special_tokens=True))


def _read_backend(file: Path) -> Backend:
    try:
        return Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"[generate] {file}: not a tokenizer.json ({error}). Fetch it again.") from error


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
