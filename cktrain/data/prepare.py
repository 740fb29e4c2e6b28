"""Text to token shards: `cktrain data prepare`.

The documents are read twice as a stream, once to train the tokenizer (on training documents only) and once to
encode them, each followed by the end token. Everything is written into a temporary folder beside the target,
dataset.json last, synced and renamed, so that a folder under its final name is a whole one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cktrain.data.corpus import SEPARATOR, Corpus
from cktrain.data.shards import (
    DATASET_FILE,
    SUFFIX,
    VERSION,
    ShardWriter,
    Split,
    read_dataset,
    sync_directory,
)
from cktrain.data.tokenizer import TOKENIZER_FILE, Tokenizer, tokenizer_file

_BATCH_BYTES = 1 << 20  # text encoded at once
_TOKENIZER_BYTES = 1 << 28  # text that a tokenizer is trained on at most


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    vocab_size: int = 2048,
    validation_fraction: float = 0.05,
    text_key: str = "text",
    suffixes: Sequence[str] | None = None,
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    reuse: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a folder of token shards out of a text file, a JSONL file, a folder of both, or "python-stdlib".

    `tokenizer` is a tokenizer.json or a folder with one; without it a byte-level BPE of `vocab_size` is
    trained. `validation_fraction` (0 to 0.5) is a share of the documents. A shard is closed by the document
    that brings it to `shard_tokens`. `reuse` returns at once when `out` was made from the same files with the
    same options, and overwrites it otherwise. Returns what dataset.json holds. Raises ValueError on bad
    input, also when `out` exists and neither `overwrite` nor `reuse`, and OSError when writing fails, a full
    disk for one; then `out` is as it was.
    """
    if not 0 <= validation_fraction <= 0.5 or shard_tokens < 1:
        raise ValueError(
            f"[data.prepare] validation_fraction {validation_fraction} must be between 0 and 0.5 and "
            "shard_tokens "
            f"{shard_tokens} at least 1. Correct them."
        )
    out = Path(out)
    _check_target(out, overwrite or reuse)
    corpus = Corpus(source, text_key, suffixes)
    tokenizer = None if tokenizer is None else tokenizer_file(tokenizer)
    how = vocab_size if tokenizer is None else _sha256(tokenizer)
    parts = [VERSION, corpus.fingerprint(), how, validation_fraction, shard_tokens]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    if reuse and (out / DATASET_FILE).exists():
        summary = read_dataset(out)
        if summary.get("fingerprint") == fingerprint:
            return summary
    temporary = out.with_name(f"{out.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        summary = {"version": VERSION, "fingerprint": fingerprint, "validation_fraction": validation_fraction}
        with _progress(progress) as bar:
            made = _make_tokenizer(temporary, corpus, tokenizer, vocab_size, validation_fraction, bar)
            summary |= _write_shards(temporary, corpus, made, validation_fraction, shard_tokens, bar)
        _write_synced(temporary / DATASET_FILE, json.dumps(summary, indent=2) + "\n")
        _put_in_place(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"[data.prepare] {out}: stopped ({error.strerror or error}) and nothing was kept. "
                "Make room, or correct the path or its permissions, and run it again",
            ) from error
        raise
    return summary


def split_of(index: int, fraction: float) -> Split:
    """The split of the document with this index: a pure function of both.

    Documents are taken in runs of about 1 / fraction; a hash of the run's number picks one of each for
    validation, so the share is exact and follows no period of the corpus. In the first run it is the second
    document, so that two documents are enough for both splits.
    """
    if fraction == 0:
        return "train"
    exact = Fraction(str(fraction))
    run = math.floor(index * exact)
    start, end = math.ceil(run / exact), math.ceil((run + 1) / exact)
    if run == 0:
        chosen = 1
    else:
        number = int.from_bytes(hashlib.blake2b(str(run).encode(), digest_size=8).digest(), "little")
        chosen = start + number % (end - start)
    return "validation" if index == chosen else "train"


def _make_tokenizer(
    folder: Path, corpus: Corpus, file: Path | None, vocab_size: int, fraction: float, bar: Progress
) -> Tokenizer:
    if file is not None:
        tokenizer = Tokenizer.load(file)
        tokenizer.save(folder)
        shutil.copyfile(file, folder / TOKENIZER_FILE)  # byte for byte the one that was given
        return tokenizer
    total = min(corpus.bytes, _TOKENIZER_BYTES)
    task = bar.add_task("training the tokenizer", total=total)
    tokenizer = Tokenizer.train(_training_documents(corpus, fraction, bar, task), vocab_size)
    bar.update(task, completed=total)
    tokenizer.save(folder)
    return tokenizer


def _training_documents(corpus: Corpus, fraction: float, bar: Progress, task: TaskID) -> Iterator[str]:
    read = 0
    for index, text in enumerate(corpus.documents()):
        if split_of(index, fraction) == "train":
            yield text
        size = len(text.encode("utf-8"))
        bar.advance(task, size)
        read += size
        if read >= _TOKENIZER_BYTES:
            return


def _write_shards(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, fraction: float, shard_tokens: int, bar: Progress
) -> dict[str, Any]:
    task = bar.add_task("encoding", total=corpus.bytes)
    documents = 0
    train = _SplitWriter(folder, "train", shard_tokens, tokenizer)
    validation = _SplitWriter(folder, "validation", shard_tokens, tokenizer)
    with train, validation:
        for texts, sizes in _batches(corpus):
            for ids, size in zip(tokenizer.encode_batch(texts), sizes, strict=True):
                (train if split_of(documents, fraction) == "train" else validation).add(ids, size)
                documents += 1
            bar.advance(task, sum(sizes))
    bar.update(task, completed=corpus.bytes)
    _check_splits(corpus, documents, fraction)
    return {
        "source": corpus.source,
        "files": len(corpus.files),
        "skipped_files": corpus.skipped,
        "source_bytes": corpus.bytes,
        "documents": documents,
        "text_bytes": train.text_bytes + validation.text_bytes,
        "tokens": train.tokens + validation.tokens,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": _sha256(folder / TOKENIZER_FILE),
        "splits": {"train": train.summary(), "validation": validation.summary()},
    }


def _batches(corpus: Corpus) -> Iterator[tuple[list[str], list[int]]]:
    """Documents and their UTF-8 sizes, about _BATCH_BYTES at a time."""
    texts: list[str] = []
    sizes: list[int] = []
    for text in corpus.documents():
        texts.append(text)
        sizes.append(len(text.encode("utf-8")))
        if sum(sizes) >= _BATCH_BYTES or len(sizes) >= 4096:
            yield texts, sizes
            texts, sizes = [], []
    if texts:
        yield texts, sizes


class _SplitWriter:
    """Writes a split's documents over as many shards as they need; used as ShardWriter is."""

    def __init__(self, folder: Path, split: Split, shard_tokens: int, tokenizer: Tokenizer):
        self.documents = 0
        self.tokens = 0
        self.text_bytes = 0
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._vocab_size = tokenizer.vocab_size
        self._eos_id = tokenizer.eos_id
        self._shards: list[ShardWriter] = []
        self._open: ShardWriter | None = None

    def add(self, ids: list[int], text_bytes: int) -> None:
        if self._open is None:
            path = self._folder / f"{self._split}-{len(self._shards):05d}{SUFFIX}"
            self._open = ShardWriter(path, self._vocab_size, self._eos_id)
            self._shards.append(self._open)
        self._open.append([*ids, self._eos_id], text_bytes)
        self.documents += 1
        self.tokens += len(ids) + 1
        self.text_bytes += text_bytes
        if self._open.tokens >= self._shard_tokens:
            self._open.close()
            self._open = None

    def summary(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "shards": [{"file": shard.path.name, "tokens": shard.tokens} for shard in self._shards],
        }

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)


def _check_splits(corpus: Corpus, documents: int, fraction: float) -> None:
    if documents == 0:
        raise ValueError(
            f"[data.prepare] {corpus.source}: holds no text in {len(corpus.files)} file(s). Give more."
        )
    if documents == 1 and fraction > 0:
        raise ValueError(
            f"[data.prepare] {corpus.source}: 1 document cannot be divided in train and validation. "
            f"Give more, separate documents by {SEPARATOR}, or set the validation fraction to 0."
        )


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if (out / DATASET_FILE).exists():
        if not overwrite:
            raise ValueError(
                f"[data.prepare] {out}: already holds prepared data. Choose another folder or ask to "
                "overwrite it."
            )
    elif not out.is_dir() or any(out.iterdir()):
        raise ValueError(f"[data.prepare] {out}: exists and is not a prepared folder. Choose another folder.")


def _put_in_place(temporary: Path, out: Path) -> None:
    if (out / DATASET_FILE).exists():
        old = out.with_name(f"{out.name}.old{os.getpid()}")
        os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, out)
    sync_directory(out.parent)


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not shown)
