"""A thin layer over `tokenizers`: train a byte-level BPE, load any tokenizer.json, encode, decode.

How a text becomes ids, beyond the vocabulary, has two rules, which prepared data records (`Encoding`) and a prompt follows:
whether special tokens that are written out in a text are text or tokens, and what stands before a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cktrain.data.special_tokens import END_OF_TEXT, added_around, end_token, rule_conflict
from cktrain.data.tokenizer_backend import guarded, read_backend
from cktrain.side_files import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Encoding,
    SideFiles,
    SpecialTokens,
    read_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_SMALLEST_VOCABULARY = 257  # 256 bytes and the end token


class Tokenizer:
    """Text to ids and back."""

    def __init__(
        self,
        backend: Backend,
        eos_token: str,
        begin_ids: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        special_tokens: SpecialTokens = "text",
    ):
        """`begin_ids` and `end_ids` are what the tokenizer's own rule puts around a text."""
        self._backend = backend
        self._backend.encode_special_tokens = special_tokens == "text"
        self.eos_token = eos_token
        eos_id = backend.token_to_id(eos_token)
        assert eos_id is not None, eos_token
        self.eos_id: int = eos_id
        self._begin = list(begin_ids)
        self._end = [*(index for index in end_ids if index != eos_id), eos_id]
        self._special_tokens: SpecialTokens = special_tokens

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with <|endoftext|> as end token.

        The same documents give the same tokenizer. A small corpus may end with fewer than `vocab_size`
        tokens. Raises ValueError when `vocab_size` cannot hold the 256 bytes and the special token.
        """
        if vocab_size < _SMALLEST_VOCABULARY:
            raise ValueError(
                f"[data.tokenizer] vocab_size {vocab_size} is below {_SMALLEST_VOCABULARY}, the 256 bytes "
                "and "
                f"{END_OF_TEXT}. Give at least {_SMALLEST_VOCABULARY}."
            )
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, END_OF_TEXT)

    @classmethod
    def load(cls, path: str | Path, eos_token: str | None = None) -> Tokenizer:
        """Load a tokenizer.json, or the one in a folder. See `of`."""
        return cls.of(read_tokenizer(path), eos_token)

    @classmethod
    def of(
        cls, side: SideFiles, eos_token: str | None = None, special_tokens: SpecialTokens = "text"
    ) -> Tokenizer:
        """The tokenizer of these files, with `eos_token`, or the token that they name, as the end of a document.

        Raises ValueError when the file cannot be read or has no end token.
        """
        backend = read_backend(side)
        name = end_token(side, backend, eos_token)
        if name is None:
            raise ValueError(
                f"[data.tokenizer] {Path(side.found_in) / TOKENIZER_FILE}: nothing names its end token and its "
                "vocabulary has no well-known one. Name it with --eos-token, or in a "
                f"{TOKENIZER_CONFIG_FILE} beside it."
            )
        begin, end = added_around(side, backend)
        return cls(backend, name, begin, end, special_tokens)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (as Hugging Face reads them) into a folder."""
        self.side_files().write(Path(folder))

    def side_files(self) -> SideFiles:
        """The two files that `save` writes."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token}
        return SideFiles(
            {
                TOKENIZER_FILE: self._backend.to_str(pretty=True).encode(),
                TOKENIZER_CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
            }
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @property
    def encoding(self) -> Encoding:
        """How documents are encoded, to be recorded."""
        return Encoding(special_tokens=self._special_tokens, begin_ids=self._begin, eos_id=self.eos_id)

    @property
    def unknown_id(self) -> int | None:
        """The id of what is not in the vocabulary, where the model has one."""
        model = self._backend.model
        if hasattr(model, "unk_token"):
            return None if model.unk_token is None else self._backend.token_to_id(model.unk_token)
        index = json.loads(self._backend.to_str())["model"].get("unk_id")
        return index if isinstance(index, int) else None

    def rule_conflict(self, side: SideFiles) -> str | None:
        """What the files that it was made of disagree about, see `special_tokens`."""
        return rule_conflict(side, self._backend)

    def special_token_names(self) -> list[str]:
        """The special tokens as they may be written out in a text."""
        added = self._backend.get_added_tokens_decoder().values()
        return sorted(token.content for token in added if token.special and token.content)

    def id_of(self, token: str) -> int | None:
        """The id of a token, None for one that is not in the vocabulary."""
        index: int | None = self._backend.token_to_id(token)
        return index

    def token_of(self, index: int) -> str | None:
        """The token of an id, None beyond the vocabulary."""
        return self._backend.id_to_token(index)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; nothing is added before or after. Raises ValueError where the library fails."""
        return [ids for ids, _ in self.encode_with_offsets(texts)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of each text, and of each id the characters that it stands for. Raises ValueError as `encode_batch`."""
        encodings = guarded(
            lambda: self._backend.encode_batch(list(texts), add_special_tokens=False),
            f"the tokenizer fails on one of {len(texts)} texts",
            "Its tokenizer.json is damaged, or the text is more than it can take.",
        )
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode_inside(self, text: str) -> list[int]:
        """Ids of a piece of a longer text: without the space that some tokenizers put before the first word."""
        for before in ("a", ".", "\n"):
            ids, offsets = self.encode_with_offsets([before + text])[0]
            count = sum(end <= len(before) for _, end in offsets)
            if all(begin >= len(before) for begin, _ in offsets[count:]):
                return ids[count:]
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text])[0]

    def document(self, ids: Sequence[int]) -> list[int]:
        """A text's ids as a document: what begins one before them, and the end token after them."""
        return [*self.beginning(ids), *ids, *self._end]

    def beginning(self, ids: Sequence[int]) -> list[int]:
        """What stands before a text of these ids; nothing more where the text itself has it, written out."""
        count = len(self._begin)
        return [] if list(ids[:count]) == self._begin else self._begin

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        text: str = self._backend.decode(
            [int(index) for index in ids], skip_special_tokens=skip_special_tokens
        )
        return text

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """Bytes of text that each id stands for: int32 (vocab_size), 0 for special tokens.

        The sum over a document's ids is the length of its UTF-8 text when the tokenizer is a byte-level BPE,
        or a SentencePiece-like one with byte tokens <0xAB>, whose added leading space counts as a byte.
        """
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self._backend.to_str())["decoder"])
        special = {
            index for index, token in self._backend.get_added_tokens_decoder().items() if token.special
        }
        added = self._backend.get_added_tokens_decoder()
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index in special:
                continue
            if byte_level and index not in added:
                lengths[index] = len(token)  # the byte-level alphabet has one character per byte
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                lengths[index] = 1
            else:
                lengths[index] = len(token.replace("▁", " ").encode("utf-8"))
        return lengths
