"""Text to token shards: `cktrain data prepare`.

The documents are read twice as a stream, once to train the tokenizer (on training documents only) and once to
encode them, each followed by the end token. Everything is written into a folder beside the target (`target.py`),
dataset.json last, synced and renamed, so that a folder under its final name is a whole one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cktrain.data.corpus import Corpus
from cktrain.data.documents import SEPARATOR
from cktrain.data.reuse import made_from, why_again
from cktrain.data.round_trip import RoundTrip
from cktrain.data.shards import DATASET_FILE, DATASET_VERSION, SUFFIX, ShardWriter, Split
from cktrain.data.sniff import shown
from cktrain.data.special_tokens import special_ids
from cktrain.data.target import Target
from cktrain.data.tokenizer import Tokenizer
from cktrain.durable import sync
from cktrain.file_identity import sha256_of_bytes, sha256_of_files
from cktrain.side_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, SideFiles, SpecialTokens, read_tokenizer

_BATCH_BYTES = 1 << 20  # text encoded at once
_TOKENIZER_BYTES = 1 << 28  # text that a tokenizer is trained on at most
_LARGEST_VOCABULARY = 1 << 20  # the library makes room for all of it at once


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    eos_token: str | None = None,
    special_tokens: SpecialTokens = "text",
    vocab_size: int = 2048,
    validation_fraction: float = 0.05,
    text_key: str = "text",
    suffixes: Sequence[str] | None = None,
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    reuse: bool = False,
    file_format: str = "auto",
    skip_bad_rows: bool = False,
    skip_bad_files: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make a folder of token shards out of a file of text, JSON, Parquet or Arrow, a folder of such, or "python-stdlib".

    `tokenizer` is a tokenizer.json or a folder with one; without it a byte-level BPE of `vocab_size` is
    trained. `eos_token` ends each document (default: as the tokenizer's files say), and what the tokenizer's own rule
    puts before a text begins it. `special_tokens` that are written out in a text are ordinary text, or parsed.
    `validation_fraction` (0 to 0.5) is a share of the documents. A shard is closed by the document
    that brings it to `shard_tokens`. `reuse` returns at once when `out` was made from the same files with the
    same options and is as it was made, and replaces it otherwise. `file_format`, `skip_bad_rows` and `skip_bad_files` are
    Corpus's. `say` hears what is left out and what was found, a line at a time. Returns what dataset.json holds. Raises
    ValueError on bad input, also when `out` exists and neither `overwrite` nor `reuse`, and OSError when writing fails, a
    full disk for one; then `out` is as it was.
    """
    if not 0 <= validation_fraction <= 0.5 or shard_tokens < 1:
        raise ValueError(
            f"[data.prepare] validation_fraction {validation_fraction} must be between 0 and 0.5 and "
            "shard_tokens "
            f"{shard_tokens} at least 1. Correct them."
        )
    if tokenizer is None and vocab_size > _LARGEST_VOCABULARY:
        raise ValueError(
            f"[data.prepare] vocab_size {vocab_size:,} is above {_LARGEST_VOCABULARY:,}, which no text fills. "
            "Give a smaller one."
        )
    target = Target(out, overwrite or reuse, say)
    corpus = Corpus(source, text_key, suffixes, file_format, skip_bad_rows, skip_bad_files)
    target.refuse_source(corpus.folders, [file.path for file in corpus.files])
    for line in corpus.left_out.lines():
        say(f"[data.corpus] {shown(source)}: {line}")
    if corpus.of_ids and tokenizer is None:
        raise ValueError(
            f"[data.prepare] {shown(source)}: its rows are ids (input_ids), and without their tokenizer nothing says "
            "what they mean. Name it with --tokenizer; if the text is in another column, name that with --text-key."
        )
    given = None if tokenizer is None else read_tokenizer(tokenizer)
    options: dict[str, Any] = {"validation_fraction": validation_fraction, "shard_tokens": shard_tokens}
    options |= {"eos_token": eos_token, "special_tokens": special_tokens}
    if given is None:
        options["vocab_size"] = vocab_size
    made = made_from(corpus, given, options)
    if reuse and target.existing is not None:
        why = why_again(target.out, target.existing, made)
        if why is None:
            return target.existing
        say(f"[data.prepare] {target.name}: prepared again, because {why}.")
    fingerprint = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    summary = {
        "version": DATASET_VERSION,
        "fingerprint": fingerprint,
        "validation_fraction": validation_fraction,
    }
    try:
        with target, progress_bar(progress) as bar:
            side = given or _train_tokenizer(corpus, vocab_size, validation_fraction, bar)
            ready = Tokenizer.of(side, eos_token, special_tokens)
            if conflict := ready.rule_conflict(side):
                say(f"[data.prepare] {target.name}: {conflict}.")
            if TOKENIZER_CONFIG_FILE not in side.files:
                ready.save(target.data)
            side.write(target.data)  # byte for byte what was given
            seen = RoundTrip(ready)
            summary |= _write_shards(target.data, corpus, ready, seen, validation_fraction, shard_tokens, bar)
            summary |= how_it_was_encoded(side, ready) | seen.report(corpus.source, say)
            summary["made_from"] = made
            summary["written"] = sha256_of_files(target.data, files_below(target.data))
            write_synced(target.data / DATASET_FILE, json.dumps(summary, indent=2) + "\n")
            target.put_in_place()
    except OSError as error:
        raise stopped(target, corpus.bytes, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # tokenizers' own failures are no Exception
            raise
        raise ValueError(
            f"[data.prepare] {target.name}: the tokenizers library gave up ({error}). Check the tokenizer.json and the "
            "text; nothing was kept."
        ) from error
    for line in _what_was_met(corpus):
        say(f"[data.corpus] {shown(source)}: {line}")
    return summary


def stopped(target: Target, source_bytes: int, error: OSError) -> OSError:
    """The error of a disk or folder that could not be written to."""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(folder for folder in target.out.parents if folder.is_dir())).free
        room = f"; {free:,} bytes are free there now, and {source_bytes:,} bytes of text are to be encoded"
    remedy = "Make room, or correct the path or its permissions, and run it again"
    if error.errno == errno.EFBIG:
        remedy = "Allow larger files (ulimit -f), or fewer tokens in each with --shard-tokens"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "Allow more open files (ulimit -n)"
    return OSError(
        error.errno,
        f"[data.prepare] {target.name}: stopped ({error.strerror or error}) and nothing was kept{room}. {remedy}",
    )


def _what_was_met(corpus: Corpus) -> list[str]:
    """What a reading has counted, in sentences."""
    seen, found = corpus.seen, []
    for why, count in seen.bad_rows.most_common():
        found.append(f"{count:,} bad rows left out: {why} (first: {', '.join(seen.places)})")
    if seen.empty_rows:
        found.append(f"{seen.empty_rows:,} rows with empty text left out")
    if seen.carriage_returns:
        found.append(f"{seen.carriage_returns:,} line ends CR LF or CR read as LF")
    if seen.byte_order_marks:
        found.append(f"byte order marks at the start of {seen.byte_order_marks:,} files left out")
    if corpus.undecodable:
        found.append(f"{corpus.undecodable:,} files left out that are not UTF-8")
    return found


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


def _train_tokenizer(corpus: Corpus, vocab_size: int, fraction: float, bar: Progress) -> SideFiles:
    total = min(corpus.bytes, _TOKENIZER_BYTES)
    task = bar.add_task("training the tokenizer", total=total)
    tokenizer = Tokenizer.train(_training_documents(corpus, fraction, bar, task), vocab_size)
    bar.update(task, completed=total)
    return tokenizer.side_files()


def how_it_was_encoded(side: SideFiles, tokenizer: Tokenizer) -> dict[str, Any]:
    """What dataset.json says of the tokenizer."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "eos_token": tokenizer.eos_token,
        **tokenizer.encoding.model_dump(),
        "special_ids": special_ids(side),
        "tokenizer_sha256": sha256_of_bytes(side.files[TOKENIZER_FILE]),
    }


def files_below(folder: Path) -> list[str]:
    """Every file below a folder, by its path from there."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


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
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    seen: RoundTrip,
    fraction: float,
    shard_tokens: int,
    bar: Progress,
) -> dict[str, Any]:
    task = bar.add_task("encoding", total=corpus.bytes)
    documents = 0
    train = _SplitWriter(folder, "train", shard_tokens, tokenizer)
    validation = _SplitWriter(folder, "validation", shard_tokens, tokenizer)
    with train, validation:
        for encoded, sizes in _encoded(corpus, tokenizer, seen):
            for ids, size in zip(encoded, sizes, strict=True):
                (train if split_of(documents, fraction) == "train" else validation).add(ids, size)
                documents += 1
            bar.advance(task, sum(sizes))
    bar.update(task, completed=corpus.bytes)
    _check_splits(corpus, documents, fraction)
    return {
        "source": corpus.source,
        "files": len(corpus.files),
        "left_out": corpus.left_out.as_dict(),
        "undecodable_files": corpus.undecodable,
        "bad_rows": dict(corpus.seen.bad_rows),
        "empty_rows": corpus.seen.empty_rows,
        "carriage_returns": corpus.seen.carriage_returns,
        "byte_order_marks": corpus.seen.byte_order_marks,
        "source_bytes": corpus.bytes,
        "documents": documents,
        "rows_of_ids": {"ended": train.ended + validation.ended} if corpus.of_ids else None,
        "text_bytes": train.text_bytes + validation.text_bytes,
        "tokens": train.tokens + validation.tokens,
        "splits": {"train": train.summary(), "validation": validation.summary()},
    }


def _encoded(
    corpus: Corpus, tokenizer: Tokenizer, seen: RoundTrip
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Documents as ids with what begins and ends them, and the bytes of their text: 0 of rows that are ids already."""
    if not corpus.of_ids:
        for texts, sizes in _batches(corpus):
            encoded = tokenizer.encode_batch(texts)
            seen.add(texts, encoded)
            yield [tokenizer.document(ids) for ids in encoded], sizes
        return
    for place, ids in corpus.id_rows():
        if not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
            wrong = next(index for index in ids if not 0 <= index < tokenizer.vocab_size)
            raise ValueError(
                f"[data.prepare] {place}: id {wrong} is none of the tokenizer's {tokenizer.vocab_size:,}. Give the "
                "tokenizer that made the ids."
            )
        yield [ids], [0]


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
        self.ended = 0
        """Documents whose last token is that which ends documents."""
        self.tokens = 0
        self.text_bytes = 0
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size
        self._shards: list[ShardWriter] = []
        self._open: ShardWriter | None = None

    def add(self, ids: list[int], text_bytes: int) -> None:
        """Append a whole document."""
        if self._open is None:
            path = self._folder / f"{self._split}-{len(self._shards):05d}{SUFFIX}"
            self._open = ShardWriter(path, self._vocab_size, self._tokenizer.eos_id)
            self._shards.append(self._open)
        self._open.append(ids, text_bytes)
        self.documents += 1
        self.ended += ids[-1] == self._tokenizer.eos_id
        self.tokens += len(ids)
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


def write_synced(path: Path, text: str) -> None:
    """Write a file that is on disk when this returns."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def progress_bar(shown: bool) -> Progress:
    """A bar on standard error, or none."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not shown)
