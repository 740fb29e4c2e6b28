"""`cktrain data prepare SOURCE OUT`: text to token shards."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cktrain.launch import arguments
from cktrain.training.stop import SIGNALS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain data`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare", help="tokenize text into shards", description="Tokenize text into shards."
    )
    prepare.add_argument(
        "source",
        type=arguments.path,
        help="text file, .jsonl, .json, folder, or python-stdlib (this Python's own source)",
    )
    prepare.add_argument("out", type=arguments.path, help="folder to make")
    prepare.add_argument(
        "--tokenizer",
        type=arguments.path,
        help="tokenizer.json or a folder with one; default: train a byte-level BPE on the text",
    )
    prepare.add_argument(
        "--eos-token",
        metavar="TOKEN",
        help="token that ends each document; default: as the tokenizer's files say",
    )
    prepare.add_argument(
        "--special-tokens",
        choices=("text", "parse"),
        default="text",
        help="special tokens that are written out in the text: ordinary text (default), or the tokens",
    )
    prepare.add_argument(
        "--vocab-size",
        type=arguments.whole(1, 2**31 - 1),
        help="vocabulary of a trained tokenizer; default: 2048",
    )
    prepare.add_argument(
        "--validation-fraction",
        type=arguments.number(0.0, 0.5),
        default=0.05,
        help="share of the documents held out",
    )
    prepare.add_argument("--text-key", default="text", help="key of the text in JSON; a.b: key b under a")
    prepare.add_argument(
        "--suffixes",
        help="of the files to read in a folder, with commas between: .txt,.md (default: text, JSON and JSON lines)",
    )
    prepare.add_argument(
        "--format",
        choices=("auto", "text", "jsonl", "json"),
        default="auto",
        help="how to read every file; auto: by its name and how it begins",
    )
    prepare.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out and count rows of JSON without usable text"
    )
    prepare.add_argument(
        "--skip-bad-files", action="store_true", help="leave out and count files that cannot be read"
    )
    prepare.add_argument(
        "--shard-tokens", type=arguments.whole(1), default=100_000_000, help="tokens in a shard"
    )
    prepare.add_argument(
        "--overwrite", action="store_true", help="replace OUT when it holds prepared data and nothing else"
    )
    prepare.add_argument(
        "--reuse",
        action="store_true",
        help="keep OUT when it was made from the same files with the same options; replace it otherwise",
    )
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from cktrain.best_effort import watched_streams

    with watched_streams():  # what was asked for is the folder, not what is said about it
        return _prepare_and_tell(options)


def _prepare_and_tell(options: argparse.Namespace) -> int:
    from cktrain.data.prepare import prepare
    from cktrain.data.sniff import shown

    if options.tokenizer is not None and options.vocab_size is not None:
        raise ValueError(
            "[data] --vocab-size is for a tokenizer that is trained, and --tokenizer has its own. Leave one out."
        )
    try:
        with _stopped_by_signals():
            summary = prepare(
                options.source,
                options.out,
                tokenizer=options.tokenizer,
                vocab_size=2048 if options.vocab_size is None else options.vocab_size,
                eos_token=options.eos_token,
                special_tokens=options.special_tokens,
                validation_fraction=options.validation_fraction,
                text_key=options.text_key,
                suffixes=_suffixes(options.suffixes),
                shard_tokens=options.shard_tokens,
                overwrite=options.overwrite,
                reuse=options.reuse,
                file_format=options.format,
                skip_bad_rows=options.skip_bad_rows,
                skip_bad_files=options.skip_bad_files,
                say=_say,
            )
    except _Stopped as stopped:
        _say(f"cktrain: [data.prepare] {shown(options.out)}: {stopped.signal.name} came; nothing was kept.")
        return 128 + stopped.signal
    splits = {
        name: sum(shard["tokens"] for shard in split["shards"]) for name, split in summary["splits"].items()
    }
    text = ", ".join(f"{tokens:,} {name} tokens" for name, tokens in splits.items())
    print(f"{shown(options.out)}: {text}")
    print(_how_documents_end(summary))
    return 0


def _how_documents_end(summary: dict[str, Any]) -> str:
    """Which token ends a document, since a model may have several that end a text."""
    from cktrain.data.special_tokens import end_ids

    text = f"documents end with {summary['eos_token']} ({summary['eos_id']})"
    if summary["begin_ids"]:
        text += f" and begin with {', '.join(map(str, summary['begin_ids']))}"
    others = [index for index in end_ids(summary["special_ids"]) if index != summary["eos_id"]]
    if others:
        text += f"; the model's files also end texts with {', '.join(map(str, others))} (--eos-token chooses)"
    return text


def _suffixes(text: str | None) -> list[str] | None:
    if text is None:
        return None
    found = [part.strip() for part in text.split(",")]
    if not all(part.startswith(".") and len(part) > 1 for part in found):
        raise ValueError(f"[data] --suffixes {text}: each begins with a dot. Write .txt,.md for example.")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr)


class _Stopped(BaseException):
    """Raised in the main thread by the first of the signals."""

    def __init__(self, number: int):
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The signals that stop a run raise _Stopped, so that what is half made is removed; further ones wait for that.

    One that was ignored (nohup) stays so.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise _Stopped(number)

    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
