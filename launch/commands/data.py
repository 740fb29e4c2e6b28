"""`cktrain data prepare SOURCE OUT`: text to token shards."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain data`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare", help="tokenize text into shards", description="Tokenize text into shards."
    )
    prepare.add_argument(
        "source", help="text file, .jsonl, folder, or python-stdlib (this Python's own source)"
    )
    prepare.add_argument("out", help="folder to make")
    prepare.add_argument(
        "--tokenizer", help="tokenizer.json or a folder with one; default: train a byte-level BPE on the text"
    )
    prepare.add_argument("--vocab-size", type=int, default=2048, help="vocabulary of a trained tokenizer")
    prepare.add_argument(
        "--validation-fraction", type=float, default=0.05, help="share of the documents held out"
    )
    prepare.add_argument("--text-key", default="text", help="key of the text in .jsonl")
    prepare.add_argument("--shard-tokens", type=int, default=100_000_000, help="tokens in a shard")
    prepare.add_argument("--overwrite", action="store_true", help="replace OUT when it exists")
    prepare.add_argument(
        "--reuse",
        action="store_true",
        help="keep OUT when it was made from the same files with the same options",
    )
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    from cktrain.data.prepare import prepare

    summary = prepare(
        options.source,
        options.out,
        tokenizer=options.tokenizer,
        vocab_size=options.vocab_size,
        validation_fraction=options.validation_fraction,
        text_key=options.text_key,
        shard_tokens=options.shard_tokens,
        overwrite=options.overwrite,
        reuse=options.reuse,
    )
    splits = {
        name: sum(shard["tokens"] for shard in split["shards"]) for name, split in summary["splits"].items()
    }
    print(f"{options.out}: " + ", ".join(f"{tokens:,} {name} tokens" for name, tokens in splits.items()))
    return 0
