"""Token shard files, and a split of them read as one stream of ids.

A shard is a header of 64 bytes, then the ids, then the loss mask if it has one, all little-endian:

    offset  size  field
    0       8     magic, b"CKTOKENS"
    8       4     format version: 1, or 2 for a shard with a loss mask
    12      4     bytes of the header (the ids start here)
    16      4     bytes of one id: 2 = uint16, 4 = uint32
    20      4     bytes of the loss mask per token: 0 = there is none, every token is learned; 1 (format version 2)
    24      8     number of ids
    32      8     vocabulary size: every id is below it
    40      8     id of the end-of-document token, or -1 (signed)
    48      8     bytes of UTF-8 text that the ids encode (for bits per byte)
    56      8     tokens of a packed row (format version 2), or 0: the ids are one stream

The loss mask has a byte per token, in the order of the ids. Its lowest bit is 1 where the token is a label, which the model
is to learn, and 0 where it is only read (a prompt, another speaker's turn). The second bit is 1 where a row of the data
begins (a conversation), which sees nothing of what is before it; a row's first token is never a label.

A shard of packed rows is cut in sequences of the length that the header says, each of which holds whole rows and, up to its
end, padding: rows of their own, in which nothing is a label.

The writer works on a temporary name, syncs and renames, so a file under its final name is a whole one.
Readers keep the file open and read what they are asked for (`token_file.py`). A raw file of ids without a header is
looked at and read as it is (`raw_tokens.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import struct
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from cktrain.data.id_folder import id_files, is_prefix
from cktrain.data.megatron import DocumentStarts, index_of, open_megatron
from cktrain.data.raw_tokens import look_at_ids, open_raw
from cktrain.data.saved_dataset import saved_parts
from cktrain.data.token_file import TokenFile
from cktrain.durable import sync
from cktrain.foreign_file import checked, read_json

MAGIC = b"CKTOKENS"
VERSION = 2
DATASET_VERSION = 1
SUFFIX = ".cktok"
DATASET_FILE = "dataset.json"

_HEADER = struct.Struct("<8sIIIIQQqQQ")
_LEARNED, _BEGINS = 1, 2  # bits of the loss mask
_DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_CHECKED_AT_ONCE = 1 << 22

Split = Literal["train", "validation"]


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The narrowest dtype of a shard that holds every id below `vocab_size`: uint16 or uint32."""
    return _DTYPES[2] if vocab_size <= 65536 else _DTYPES[4]


@dataclass(frozen=True)
class Shard:
    """One open file. `vocab_size`, `eos_id` and `text_bytes` are None where the file does not say.

    `loss_mask` is uint8 per token, its bits as in the file; None: all are learned. `row_length` is the tokens of a packed
    row; None: the ids are one stream.
    """

    path: Path
    tokens: TokenFile | npt.NDArray[Any]
    vocab_size: int | None = None
    eos_id: int | None = None
    text_bytes: int | None = None
    loss_mask: TokenFile | npt.NDArray[Any] | None = None
    row_length: int | None = None
    documents: DocumentStarts | None = None
    """Where documents begin, where a file beside the ids says it; elsewhere after each `eos_id`."""


class _Version(BaseModel):
    version: int


class _Entry(BaseModel):
    file: str


class _SplitEntry(BaseModel):
    shards: list[_Entry]


class _Splits(BaseModel):
    train: _SplitEntry
    validation: _SplitEntry


class _Dataset(BaseModel):
    """What is read of dataset.json."""

    splits: _Splits


class ShardWriter:
    """Writes one shard; the file appears under its name when `close` has ended, or not at all.

    Used as a context manager it closes on success and removes what it wrote on an exception.
    """

    def __init__(
        self,
        path: str | Path,
        vocab_size: int,
        eos_id: int | None = None,
        *,
        loss_mask: bool = False,
        row_length: int | None = None,
    ):
        """`loss_mask`: the shard says of each token whether it is learned. `row_length`: it is one of packed rows, with a
        loss mask, and `append` gets whole ones.
        """
        assert row_length is None or loss_mask, "packed rows have a loss mask"
        self.row_length = row_length
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.dtype = dtype_for(vocab_size)
        self.tokens = 0
        self.text_bytes = 0
        self._temporary = self.path.with_name(self.path.name + ".tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115  (closed by close or abort)
        self._file.write(bytes(_HEADER.size))
        # It stands behind the ids, whose number is not known before the end.
        self._mask = tempfile.TemporaryFile(dir=self.path.parent) if loss_mask else None  # noqa: SIM115

    def append(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        text_bytes: int,
        learned: Sequence[bool] | npt.NDArray[Any] | None = None,
        begins: Sequence[bool] | npt.NDArray[Any] | None = None,
    ) -> None:
        """Add ids, 0 <= id < vocab_size, that encode `text_bytes` bytes of UTF-8 text.

        `learned`, where the shard has a loss mask: whether each of them is a label; None: all are. `begins`, where it has
        packed rows: whether a row begins with it. Raises ValueError for an id beyond the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise ValueError(
                f"[data.shards] {self.path}: token id {wrong} does not fit a vocabulary of "
                f"{self.vocab_size}. "
                "Use the tokenizer that the vocabulary size was taken from."
            )
        self._file.write(array.astype(self.dtype).tobytes())
        if self._mask is not None:
            mask = np.ones(array.size, bool) if learned is None else np.asarray(learned, dtype=bool)
            assert mask.shape == array.shape, (mask.shape, array.shape)
            bits = mask.astype(np.uint8) * _LEARNED
            if begins is not None:
                first = np.asarray(begins, dtype=bool)
                assert first.shape == array.shape and not (first & mask).any(), (
                    "a row's first token is no label"
                )
                bits |= first.astype(np.uint8) * _BEGINS
            self._mask.write(bits.tobytes())
        else:
            assert learned is None and begins is None, "a shard without a loss mask"
        self.tokens += array.size
        self.text_bytes += text_bytes

    def close(self) -> None:
        """Write the header, sync to disk and rename to the final name."""
        eos_id = -1 if self.eos_id is None else self.eos_id
        assert self.row_length is None or self.tokens % self.row_length == 0, (self.tokens, self.row_length)
        if self._mask is not None:
            self._mask.seek(0)
            shutil.copyfileobj(self._mask, self._file)
            self._mask.close()
        self._file.seek(0)
        self._file.write(
            _HEADER.pack(
                MAGIC,
                1 if self._mask is None else VERSION,
                _HEADER.size,
                self.dtype.itemsize,
                0 if self._mask is None else 1,
                self.tokens,
                self.vocab_size,
                eos_id,
                self.text_bytes,
                self.row_length or 0,
            )
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        sync(self.path.parent)

    def abort(self) -> None:
        """Drop what was written."""
        for file in (self._file, self._mask):
            with contextlib.suppress(
                OSError
            ):  # on a full disk the last flush fails again; the file goes anyway
                if file is not None:
                    file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


def read_shard(path: str | Path) -> Shard:
    """Open one shard file. Raises ValueError when it is empty, truncated, or not a shard of this version."""
    path = Path(path)
    size = _file_size(path)
    if size < _HEADER.size:
        raise ValueError(
            f"[data.shards] {path}: truncated, it holds {size} bytes and a header alone has {_HEADER.size}. "
            "Prepare the data again."
        )
    with open(path, "rb") as file:
        magic, version, header_bytes, item, mask_item, count, vocab_size, eos_id, text_bytes, row_length = (
            _HEADER.unpack(file.read(_HEADER.size))
        )
    if magic != MAGIC:
        raise ValueError(
            f"[data.shards] {path}: starts with {magic!r}, a shard starts with {MAGIC!r}. "
            "Make shards with `cktrain data prepare`, or name a raw file of ids .bin."
        )
    if version > VERSION:
        raise ValueError(
            f"[data.shards] {path}: format version {version}, this cktrain reads up to {VERSION}. Upgrade "
            "cktrain."
        )
    if item not in _DTYPES or header_bytes < _HEADER.size or vocab_size < 1 or mask_item != version - 1:
        raise ValueError(
            f"[data.shards] {path}: damaged header (id size {item} bytes, loss mask {mask_item} bytes, header "
            f"{header_bytes} bytes, vocabulary {vocab_size}). Prepare the data again."
        )
    if row_length and (version == 1 or count % row_length):
        raise ValueError(
            f"[data.shards] {path}: damaged header ({count:,} tokens are no packed rows of {row_length:,}). Prepare the "
            "data again."
        )
    held = max(0, size - header_bytes) / (item + mask_item)
    if held != count:
        what = "truncated" if held < count else "too long"
        raise ValueError(
            f"[data.shards] {path}: {what}, the header says {count:,} tokens and the file holds "
            f"{held:,.10g}. "
            "Prepare the data again."
        )
    if count == 0:
        raise ValueError(f"[data.shards] {path}: empty, it holds 0 tokens. Prepare the data again.")
    tokens = TokenFile(path, _DTYPES[item], header_bytes, count)
    mask = None
    if mask_item:
        mask = TokenFile(path, np.dtype(np.uint8), header_bytes + count * item, count)
    return Shard(
        path, tokens, vocab_size, None if eos_id < 0 else eos_id, text_bytes, mask, row_length or None
    )


def read_raw(
    path: str | Path,
    dtype: npt.DTypeLike | None = None,
    vocab_size: int | None = None,
    eos_id: int | None = None,
) -> Shard:
    """Open a file of ids without a header of ours, of `dtype` or else of what `vocab_size` needs. `eos_id` ends documents.

    Raises ValueError when it is empty, something else, no whole number of ids, or ids of another type or vocabulary.
    """
    path = Path(path)
    size = _file_size(path)
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return read_shard(path)
    if (index := index_of(path)) is not None:
        tokens, documents = open_megatron(path, index, size)
        if dtype is not None and np.dtype(dtype).itemsize != tokens.dtype.itemsize:
            raise ValueError(
                f"[data.shards] {path}: Megatron's {index.name} says that the ids are {tokens.dtype.name}, and data.dtype "
                f"says {np.dtype(dtype).name}. Leave data.dtype out."
            )
        look_at_ids(path, tokens, vocab_size, told=True)
        return Shard(path, tokens, eos_id=eos_id, documents=documents)
    default = None if vocab_size is None else dtype_for(vocab_size)
    return Shard(path, open_raw(path, size, vocab_size, dtype, default), eos_id=eos_id)


def _file_size(path: Path) -> int:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb"):
                pass
    except FileNotFoundError:
        raise ValueError(
            f"[data.shards] {path}: no such file. Prepare the data again or correct data.path."
        ) from None
    except OSError as error:
        raise ValueError(
            f"[data.shards] {path}: cannot be read ({error.strerror}). Correct its permissions or data.path."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"[data.shards] {path}: no file of ids, but a folder, pipe or device. Correct data.path."
        )
    if status.st_size == 0:
        raise ValueError(f"[data.shards] {path}: the file is empty. Prepare the data again.")
    return status.st_size


class TokenSource:
    """The shards of one split, in order, as one stream of ids.

    `vocab_size`, `eos_id` and `text_bytes` (UTF-8 bytes that the whole stream encodes) are None when the
    files are raw. `has_loss_mask`: some tokens may not be learned. `row_length`: tokens of each packed row; None: the ids
    are one stream of documents. `has_documents`: all files say where documents begin.
    """

    def __init__(self, shards: Sequence[Shard]):
        assert shards, "a source has at least one shard"
        first = shards[0]
        for shard in shards:
            if (shard.vocab_size, shard.eos_id) != (first.vocab_size, first.eos_id):
                raise ValueError(
                    f"[data.shards] {shard.path}: vocabulary {shard.vocab_size} and eos id {shard.eos_id}, "
                    "but "
                    f"{first.path} has {first.vocab_size} and {first.eos_id}. Prepare all shards with one "
                    "tokenizer."
                )
            if shard.row_length != first.row_length:
                raise ValueError(
                    f"[data.shards] {shard.path}: {_rows_of(shard)}, but {first.path} has {_rows_of(first)}. Prepare all "
                    "shards alike."
                )
        self.shards = tuple(shards)
        self.row_length = first.row_length
        self.vocab_size = first.vocab_size
        self.eos_id = first.eos_id
        sizes = [shard.text_bytes for shard in shards]
        self.text_bytes = None if None in sizes else sum(size for size in sizes if size is not None)
        self.has_loss_mask = any(shard.loss_mask is not None for shard in shards)
        self.has_documents = all(shard.documents is not None for shard in shards)
        self._starts = [0]
        for shard in shards:
            self._starts.append(self._starts[-1] + len(shard.tokens))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, count: int) -> npt.NDArray[np.int32]:
        """Ids [start, start + count) of the stream, int32 (count); ids from 2**31 on come out negative."""
        out = np.empty(count, dtype=np.int32)
        for shard, there, here in self._pieces(start, count):
            ids = shard.tokens[there]
            if ids.dtype.itemsize == 8 and ((ids < 0) | (ids >= 2**31)).any():
                place = int(np.argmax((ids < 0) | (ids >= 2**31)))
                raise ValueError(
                    f"[data.shards] {shard.path}: token id {ids[place]} at position {there.start + place:,} is none: "
                    "ids are below 2^31. Write the file again."
                )
            out[here] = ids
        return out

    def learned(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Whether each of the tokens [start, start + count) is a label: bool (count)."""
        return self._bits(start, count, _LEARNED, absent=True)

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Whether a row begins with each of the tokens [start, start + count): bool (count)."""
        return self._bits(start, count, _BEGINS, absent=False)

    def document_begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Whether a document begins with each of the tokens [start, start + count), where `has_documents`: bool (count)."""
        out = np.zeros(count, dtype=bool)
        for shard, there, here in self._pieces(start, count):
            assert shard.documents is not None
            out[here] = shard.documents.begins(there.start, there.stop - there.start)
        return out

    def _bits(self, start: int, count: int, bit: int, absent: bool) -> npt.NDArray[np.bool_]:
        out = np.full(count, absent)
        for shard, there, here in self._pieces(start, count):
            if shard.loss_mask is not None:
                out[here] = (shard.loss_mask[there] & bit) != 0
        return out

    def _pieces(self, start: int, count: int) -> Iterator[tuple[Shard, slice, slice]]:
        """(shard, the part of it, where it lies in the result) for the tokens [start, start + count)."""
        assert 0 <= start <= start + count <= len(self), (start, count, len(self))
        index = bisect_right(self._starts, start) - 1
        done = 0
        while done < count:
            begin = start + done - self._starts[index]
            size = min(count - done, len(self.shards[index].tokens) - begin)
            yield self.shards[index], slice(begin, begin + size), slice(done, done + size)
            done += size
            index += 1

    def check_ids(self, ids: npt.NDArray[np.int32], start: int, vocab_size: int) -> None:
        """Raise ValueError (file, position) when an id that was read at `start` is not below `vocab_size`."""
        unsigned = ids.view(np.uint32)  # so that one comparison finds negative ids too
        if unsigned.size == 0 or unsigned.max() < vocab_size:
            return
        position = start + int(np.argmax(unsigned >= vocab_size))
        index = bisect_right(self._starts, position) - 1
        raise ValueError(
            f"[data.shards] {self.shards[index].path}: token id {unsigned[position - start]} at position "
            f"{position - self._starts[index]:,} is beyond the model's vocabulary of {vocab_size:,}. "
            "Use the tokenizer of this model, a larger model.vocab_size, or the right dtype for a raw file."
        )

    def check_all(self, vocab_size: int) -> None:
        """Raise ValueError (file, position) when any id of the stream is not below `vocab_size`."""
        for start in range(0, len(self), _CHECKED_AT_ONCE):
            self.check_ids(self.read(start, min(_CHECKED_AT_ONCE, len(self) - start)), start, vocab_size)


def _rows_of(shard: Shard) -> str:
    return "one stream" if shard.row_length is None else f"packed rows of {shard.row_length:,} tokens"


def open_source(
    path: str | Path,
    split: Split = "train",
    vocab_size: int | None = None,
    dtype: npt.DTypeLike | None = None,
    eos_id: int | None = None,
) -> TokenSource:
    """Open a split of a prepared folder or of a folder of files of ids (`id_folder.py`), or one such file, or Megatron's.

    `vocab_size` is the model's: shards made with a larger vocabulary are read here to their end, and refused
    when they use an id that the model has not; a token that no text uses does no harm. Raw ids are of
    `dtype`, or of uint16 when `vocab_size` fits it and uint32 otherwise, and documents end with `eos_id`. Raises ValueError
    on anything missing or damaged.
    """
    path = Path(path)
    if eos_id is not None and vocab_size is not None and eos_id >= vocab_size:
        raise ValueError(
            f"[data.shards] data.eos_id {eos_id} is beyond the model's vocabulary of {vocab_size:,}. Correct it."
        )
    if path.is_dir():
        source = _open_folder(path, split, vocab_size, dtype, eos_id)
    elif not is_there(path):
        raise ValueError(
            f"[data.shards] {path}: no such file or folder. Correct data.path or run `cktrain data prepare`."
        )
    elif split != "train":
        raise ValueError(
            f"[data.shards] {path}: a single file has no {split} split. Give a folder with train.bin and "
            "val.bin, or a folder made by `cktrain data prepare`; or name another file in data.validation.path."
        )
    elif path.suffix == SUFFIX:
        source = TokenSource([read_shard(path)])
    else:
        ids = path.with_name(path.name + ".bin") if is_prefix(path) else path
        ids = ids.with_suffix(".bin") if ids.suffix == ".idx" and index_of(ids) is not None else ids
        source = TokenSource([read_raw(ids, dtype, vocab_size, eos_id)])
    if eos_id is not None and source.eos_id != eos_id:
        end = "no token" if source.eos_id is None else f"id {source.eos_id}"
        raise ValueError(
            f"[data.shards] {path}: its documents end with {end}, and data.eos_id says {eos_id}. Leave data.eos_id out: it "
            "is of files that do not say it."
        )
    if vocab_size is not None and source.vocab_size is not None and source.vocab_size > vocab_size:
        _check_all(source, path, vocab_size)
    return source


def is_there(path: Path) -> bool:
    """Whether `open_source` finds something under this path."""
    return path.exists() or is_prefix(path)


def _check_all(source: TokenSource, path: Path, vocab_size: int) -> None:
    """ValueError when an id is not below `vocab_size`, with the token's text where a tokenizer.json is beside it."""
    try:
        source.check_all(vocab_size)
    except ValueError as error:
        found = re.search(r"token id (\d+)", str(error))
        tokenizer = (path if path.is_dir() else path.parent) / "tokenizer.json"
        if found is None or not tokenizer.is_file():
            raise
        values = read_json(tokenizer, dict[str, Any], area="data.shards", remedy="Prepare the data again.")
        names = {token["content"]: token["id"] for token in values.get("added_tokens") or []}
        vocabulary = values.get("model", {}).get("vocab")
        names |= vocabulary if isinstance(vocabulary, dict) else {}
        name = next((text for text, index in names.items() if index == int(found[1])), None)
        if name is None:
            raise
        what = str(error).partition(". Use the tokenizer")[0]
        raise ValueError(
            f"{what}. It is that of {name!r}: take this out of the data, or give the model rows for it (transformers' "
            "resize_token_embeddings)."
        ) from None


def _open_folder(
    folder: Path, split: Split, vocab_size: int | None, dtype: npt.DTypeLike | None, eos_id: int | None
) -> TokenSource:
    if (folder / DATASET_FILE).exists():
        entries = read_dataset(folder)["splits"][split]["shards"]
        if not entries:
            raise ValueError(
                f"[data.shards] {folder}: prepared without a {split} split. "
                "Prepare it again with a validation fraction above 0."
            )
        shards = [
            (read_shard(folder / entry["file"]), entry)
            for entry in sorted(entries, key=lambda entry: entry["file"])
        ]
        for shard, entry in shards:
            if entry.get("tokens", len(shard.tokens)) != len(shard.tokens):
                raise ValueError(
                    f"[data.shards] {shard.path}: holds {len(shard.tokens):,} tokens, and {DATASET_FILE} says "
                    f"{entry['tokens']:,}: it is not the shard that was made with it. Prepare the data again."
                )
        return TokenSource([shard for shard, _ in shards])
    if any(folder.glob("*" + SUFFIX)):
        raise ValueError(
            f"[data.shards] {folder}: holds shards but no {DATASET_FILE}, so it is not complete. Prepare it "
            "again."
        )
    files = id_files(folder, split)
    if not files:
        name = "train.bin" if split == "train" else "val.bin"
        remedy = "Give a folder made by `cktrain data prepare`."
        if saved_parts(folder) is not None:
            remedy = f"It is a dataset of save_to_disk: make shards of it with `cktrain data prepare {folder} OUT`."
        raise ValueError(f"[data.shards] {folder}: holds neither {DATASET_FILE} nor {name}. {remedy}")
    return TokenSource([read_raw(file, dtype, vocab_size, eos_id) for file in files])


def read_dataset(folder: str | Path) -> dict[str, Any]:
    """What `dataset.json` of a prepared folder says. Raises ValueError when it cannot be read or is newer."""
    path = Path(folder) / DATASET_FILE
    remedy = "Prepare the data again."
    dataset: dict[str, Any] = read_json(path, dict[str, Any], area="data.shards", remedy=remedy)
    version = checked(dataset, _Version, name=str(path), area="data.shards", remedy=remedy).version
    if version > DATASET_VERSION:
        raise ValueError(
            f"[data.shards] {path}: format version {version}, this cktrain reads up to {DATASET_VERSION}. "
            "Upgrade cktrain."
        )
    shape = checked(dataset, _Dataset, name=str(path), area="data.shards", remedy=remedy)
    for entry in (*shape.splits.train.shards, *shape.splits.validation.shards):
        if Path(entry.file).name != entry.file:
            raise ValueError(
                f"[data.shards] {path}: names a shard {entry.file!r}, which is no name in its folder. {remedy}"
            )
    return dataset
