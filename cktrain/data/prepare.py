"""Text to token shards: `cktrain data prepare`.

The documents are read twice as a stream, once to train the tokenizer (on training documents only) and once to encode
them, each followed by the end token. Everything is written into a temporary folder beside the target, dataset.json
last, synced and renamed, so that a folder under its final name is a whole one.
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
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cktrain.data.corpus import SEPARATOR, Corpus
from cktrain.data.shards import DATASET_FILE, SUFFIX, VERSION, ShardWriter, Split, read_dataset, sync_directory
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
    progress: bool = True,
) -> dict[str, Any]:
    """Make a folder of token shards out of a text file, a JSONL file, a folder of both, or "python-stdlib".

    `tokenizer` is a tokenizer.json or a folder with one; without it a byte-level BPE of `vocab_size` is trained.
    `validation_fraction` (0 to 0.5) is a share of the documents. A shard is closed by the document that brings it to
    `shard_tokens`. Returns what dataset.json holds. Raises ValueError on bad input, also when `out` exists and not
    `overwrite`, and OSError when writing fails, a full disk for one; then `out` is as it was before.
    """
    if not 0 <= validation_fraction <= 0.5:
        raise ValueError(
            f"[data.prepare] validation_fraction {validation_fraction} is not between 0 and 0.5. Give for example 0.05."
        )
    out = Path(out)
    _check_target(out, overwrite)
    corpus = Corpus(source, text_key, suffixes)
    options = _Options(corpus, tokenizer, vocab_size, validation_fraction, shard_tokens)
    temporary = out.with_name(f"{out.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        with _progress(progress) as bar:
            summary = _write(temporary, corpus, options, bar)
        _put_in_place(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"[data.prepare] {out}: writing failed ({error.strerror}) and nothing was kept. "
                "Free space or choose another folder",
            ) from error
        raise
    return summary


def prepare_if_needed(source: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:
    """`prepare`, unless `out` was made from the same files with the same options; the summary either way."""
    out = Path(out)
    if (out / DATASET_FILE).exists():
        corpus = Corpus(source, options.get("text_key", "text"), options.get("suffixes"))
        defaults = prepare.__kwdefaults__ | options
        names = ("tokenizer", "vocab_size", "validation_fraction", "shard_tokens")
        wanted = _Options(corpus, *(defaults[name] for name in names)).fingerprint()
        summary = read_dataset(out)
        if summary.get("fingerprint") == wanted:
            return summary
    return prepare(source, out, **(options | {"overwrite": True}))


class _Options:
    """What the shards depend on."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: str | Path | None,
        vocab_size: int,
        validation_fraction: float,
        shard_tokens: int,
    ):
        self.corpus = corpus
        self.tokenizer = None if tokenizer is None else tokenizer_file(tokenizer)
        self.vocab_size = vocab_size
        self.validation_fraction = validation_fraction
        self.shard_tokens = shard_tokens

    def fingerprint(self) -> str:
        how = [self.vocab_size] if self.tokenizer is None else [_sha256(self.tokenizer)]
        parts = [VERSION, self.corpus.fingerprint(), how, self.validation_fraction, self.shard_tokens]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def split_of(index: int, fraction: Fraction) -> Split:
    """The split of the document with this index: a pure function of both.

    Documents are taken in runs of about 1 / fraction; a hash of the run's number picks one of each for validation, so
    the share is exact and follows no period of the corpus. In the first run it is the second document, so that two
    documents are enough for both splits.
    """
    if fraction == 0:
        return "train"
    run = math.floor(index * fraction)
    start, end = math.ceil(run / fraction), math.ceil((run + 1) / fraction)
    if run == 0:
        chosen = 1
    else:
        number = int.from_bytes(hashlib.blake2b(str(run).encode(), digest_size=8).digest(), "little")
        chosen = start + number % (end - start)
    return "validation" if index == chosen else "train"


def _write(folder: Path, corpus: Corpus, options: _Options, bar: Progress) -> dict[str, Any]:
    fraction = Fraction(str(options.validation_fraction))
    if options.tokenizer is None:
        task = bar.add_task("training the tokenizer", total=min(corpus.bytes, _TOKENIZER_BYTES))
        tokenizer = Tokenizer.train(_training_documents(corpus, fraction, bar, task), options.vocab_size)
        bar.update(task, completed=min(corpus.bytes, _TOKENIZER_BYTES))
        tokenizer.save(folder)
    else:
        tokenizer = Tokenizer.load(options.tokenizer)
        tokenizer.save(folder)
        shutil.copyfile(options.tokenizer, folder / TOKENIZER_FILE)
    writers = {
        split: _SplitWriter(folder, split, options.shard_tokens, tokenizer) for split in ("train", "validation")
    }
    task = bar.add_task("encoding", total=corpus.bytes)
    documents = 0
    try:
        for batch, sizes in _batches(corpus):
            for ids, size in zip(tokenizer.encode_batch(batch), sizes, strict=True):
                writers[split_of(documents, fraction)].add(ids, size)
                documents += 1
            bar.advance(task, sum(sizes))
        splits = {split: writer.close() for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    bar.update(task, completed=corpus.bytes)
    _check_splits(corpus, documents, options.validation_fraction)
    summary = {
        "version": VERSION,
        "fingerprint": options.fingerprint(),
        "source": corpus.source,
        "files": len(corpus.files),
        "skipped_files": corpus.skipped,
        "documents": documents,
        "text_bytes": sum(split["text_bytes"] for split in splits.values()),
        "tokens": sum(split["tokens"] for split in splits.values()),
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": _sha256(folder / TOKENIZER_FILE),
        "validation_fraction": options.validation_fraction,
        "splits": splits,
    }
    with open(folder / DATASET_FILE, "w", encoding="utf-8") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(folder)
    return summary


def _training_documents(corpus: Corpus, fraction: Fraction, bar: Progress, task: TaskID) -> Iterator[str]:
    read = 0
    for index, text in enumerate(corpus.documents()):
        if split_of(index, fraction) == "train":
            yield text
        size = len(text.encode("utf-8"))
        bar.advance(task, size)
        read += size
        if read >= _TOKENIZER_BYTES:
            return


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
    """Writes a split's documents over as many shards as they need."""

    def __init__(self, folder: Path, split: Split, shard_tokens: int, tokenizer: Tokenizer):
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._vocab_size = tokenizer.vocab_size
        self._eos_id = tokenizer.eos_id
        self._documents = 0
        self._done: list[ShardWriter] = []
        self._open: ShardWriter | None = None

    def add(self, ids: list[int], text_bytes: int) -> None:
        if self._open is None:
            name = f"{self._split}-{len(self._done):05d}{SUFFIX}"
            self._open = ShardWriter(self._folder / name, self._vocab_size, self._eos_id)
        self._open.append([*ids, self._eos_id], text_bytes)
        self._documents += 1
        if self._open.tokens >= self._shard_tokens:
            self._finish()

    def close(self) -> dict[str, Any]:
        if self._open is not None:
            self._finish()
        return {
            "documents": self._documents,
            "tokens": sum(shard.tokens for shard in self._done),
            "text_bytes": sum(shard.text_bytes for shard in self._done),
            "shards": [{"file": shard.path.name, "tokens": shard.tokens} for shard in self._done],
        }

    def abort(self) -> None:
        if self._open is not None:
            self._open.abort()

    def _finish(self) -> None:
        assert self._open is not None
        self._open.close()
        self._done.append(self._open)
        self._open = None


def _check_splits(corpus: Corpus, documents: int, fraction: float) -> None:
    if documents == 0:
        raise ValueError(f"[data.prepare] {corpus.source}: holds no text in {len(corpus.files)} file(s). Give more.")
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
                f"[data.prepare] {out}: already holds prepared data. Choose another folder or ask to overwrite it."
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not shown)
