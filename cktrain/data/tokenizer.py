"""A thin layer over `tokenizers`: train a byte-level BPE, load any tokenizer.json, encode, decode.

The library is imported where it is first used: training, which reads ids, never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# Names of the end token in well-known tokenizers, tried in this order when no tokenizer_config.json names it.
_KNOWN_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_SMALLEST_VOCABULARY = 257  # 256 bytes and the end token


class Tokenizer:
    """Text to ids and back. Special tokens written out in a text are encoded as ordinary text."""

    def __init__(self, backend: Backend, eos_token: str):
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_token = eos_token
        eos_id = backend.token_to_id(eos_token)
        assert eos_id is not None, eos_token
        self.eos_id: int = eos_id

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
        return cls(backend, END_OF_TEXT)

    @classmethod
    def load(cls, path: str | Path, eos_token: str | None = None) -> Tokenizer:
        """Load a tokenizer.json, or the one in a folder.

        The end token is `eos_token`, or what a tokenizer_config.json beside it says, or a well-known name.
        Raises ValueError when the file cannot be read or has no end token.
        """
        from tokenizers import Tokenizer as Backend

        path = tokenizer_file(path)
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"[data.tokenizer] {path}: not a tokenizer.json ({error}). Give one that `tokenizers` saved."
            ) from error
        names = [eos_token] if eos_token else [_configured_end_token(path), *_KNOWN_END_TOKENS]
        for name in names:
            if name is not None and backend.token_to_id(name) is not None:
                return cls(backend, name)
        raise ValueError(
            f"[data.tokenizer] {path}: none of {', '.join(name for name in names if name)} is in its "
            "vocabulary. "
            f"Name the end token in a {CONFIG_FILE} beside it."
        )

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (as Hugging Face reads them) into a folder."""
        folder = Path(folder)
        self._backend.save(str(folder / TOKENIZER_FILE))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; nothing is added before or after."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        text: str = self._backend.decode([int(index) for index in ids], skip_special_tokens=True)
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


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer.json that a path names. Raises ValueError when there is none."""
    path = Path(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"[data.tokenizer] {file}: no such file. Give a tokenizer.json or a folder that holds one."
        )
    return file


def _configured_end_token(path: Path) -> str | None:
    config = path.with_name(CONFIG_FILE)
    if not config.is_file():
        return None
    try:
        token = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"[data.tokenizer] {config}: not a JSON object ({error}). Correct or remove it."
        ) from error
    # Hugging Face writes the token's text, or an object that holds it.
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
