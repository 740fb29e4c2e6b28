"""`cktrain data prepare SOURCE OUT`: text or chats to token shards; `cktrain data show OUT`: rows as one reads them."""

from __future__ import annotations

import argparse
import datetime
import sys
from typing import Any

from cktrain.foreign_file import parse_json
from cktrain.launch import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain data`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare",
        help="tokenize text or chats into shards",
        description="Tokenize text, or rows of chat and instruction data, into shards.",
    )
    prepare.add_argument(
        "source",
        type=arguments.path,
        help="file or folder of text, .jsonl, .json, .parquet or .arrow (save_to_disk); of rows .csv, too; or python-stdlib",
    )
    prepare.add_argument("out", type=arguments.path, help="folder to make")
    prepare.add_argument(
        "--tokenizer",
        type=arguments.path,
        help="tokenizer.json, a folder with one, or an id of a Hub; default: train a byte-level BPE on the text",
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
        "--validation",
        type=arguments.held_out,
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
        "--skip-bad-rows",
        "--skip-bad",
        action="store_true",
        help="leave out and count rows that cannot be used; of chats they go to rejected.jsonl",
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
    add_chat_arguments(prepare)
    prepare.set_defaults(run=_prepare)
    show = actions.add_parser(
        "show",
        help="print rows of a prepared folder",
        description="Print rows of a prepared folder, with what is learned in colour, or in ⟦ ⟧ where there are none.",
    )
    show.add_argument("out", type=arguments.path, help="folder that `cktrain data prepare` made")
    show.add_argument(
        "-n", type=arguments.whole(1), default=3, dest="count", help="rows to print; default: 3"
    )
    show.add_argument("--split", choices=("train", "validation"), default="train")
    show.set_defaults(run=_show)


def add_chat_arguments(prepare: argparse.ArgumentParser) -> None:
    """Options of how rows of chats and instructions are prepared."""
    chat = prepare.add_argument_group(
        "chat and instruction data",
        "Rows with messages, conversations, prompt and completion, or instruction and output are known by their keys; "
        "--sequence-length makes rows of text ones, too.",
    )
    chat.add_argument(
        "--sequence-length", type=arguments.whole(2), help="tokens that rows are packed into; default: 2048"
    )
    chat.add_argument(
        "--train-on",
        choices=("assistant", "all", "completion"),
        help="what is learned: every answer (default), every token, or the completion (the last answer)",
    )
    chat.add_argument(
        "--packing",
        choices=("bfd", "none"),
        help="bfd: best-fit decreasing (default); none: a row in each sequence",
    )
    chat.add_argument(
        "--too-long",
        choices=("drop", "truncate", "error"),
        help="rows above --sequence-length; drop (default) refuses to drop more than 5 %%",
    )
    chat.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="chatml, llama3, plain or a file; default: the tokenizer's own",
    )
    chat.add_argument(
        "--columns",
        metavar="OURS=THEIRS,...",
        help="what the data calls our keys: prompt=question,completion=answer",
    )
    chat.add_argument(
        "--group-by",
        metavar="KEY",
        help="rows with one value of KEY are all in training or all in validation",
    )
    chat.add_argument(
        "--objective",
        choices=("next_token", "dpo"),
        help="what the rows are for; dpo: pairs with prompt, chosen and rejected (docs/preference.md); default: next_token",
    )
    chat.add_argument(
        "--date",
        metavar="YYYY-MM-DD",
        help="what a template is told that asks for today; default: 2024-07-26",
    )


def _prepare(options: argparse.Namespace) -> int:
    from cktrain.best_effort import watched_streams

    with watched_streams():  # what was asked for is the folder, not what is said about it
        return _prepare_and_tell(options)


def _prepare_and_tell(options: argparse.Namespace) -> int:
    from cktrain.data.prepare import prepare
    from cktrain.data.sniff import shown

    if _is_chat(options):
        return _prepare_chat_and_tell(options)
    if options.tokenizer is not None and options.vocab_size is not None:
        raise ValueError(
            "[data] --vocab-size is for a tokenizer that is trained, and --tokenizer has its own. Leave one out."
        )
    wanted = 2048 if options.vocab_size is None else options.vocab_size
    summary = prepare(
        options.source,
        options.out,
        tokenizer=options.tokenizer,
        vocab_size=wanted,
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
    splits = {
        name: sum(shard["tokens"] for shard in split["shards"]) for name, split in summary["splits"].items()
    }
    text = ", ".join(f"{tokens:,} {name} tokens" for name, tokens in splits.items())
    print(f"{shown(options.out)}: {text}")
    if options.tokenizer is None and summary["vocab_size"] < wanted:
        print(f"the tokenizer has {summary['vocab_size']:,} tokens: the text gives no more of {wanted:,}")
    if (of_ids := summary.get("rows_of_ids")) is None:  # an older folder that is kept has no such key
        print(_how_documents_end(summary))
    else:
        print(
            f"rows of input_ids were taken as they are: {of_ids['ended']:,} of {summary['documents']:,} end "
            f"with {summary['eos_token']} ({summary['eos_id']})"
        )
    return 0


_CHAT_OPTIONS = (
    "sequence_length",
    "train_on",
    "packing",
    "too_long",
    "chat_template",
    "columns",
    "group_by",
    "objective",
    "date",
)
_STREAM_OPTIONS = {
    "vocab_size": None,
    "text_key": "text",
    "suffixes": None,
    "format": "auto",
    "skip_bad_files": False,
}


def _is_chat(options: argparse.Namespace) -> bool:
    """Whether the source is rows of chat or instruction data: by an option that only these have, or by its first row."""
    if any(getattr(options, name) is not None for name in _CHAT_OPTIONS):
        return True
    if options.source == "python-stdlib" or options.format != "auto" or options.text_key != "text":
        return False
    from cktrain.data.chat.row_files import first_shape

    return first_shape(options.source) not in (None, "text")


def _prepare_chat_and_tell(options: argparse.Namespace) -> int:
    from cktrain.data.chat.findings import described
    from cktrain.data.chat.prepare import ChatOptions, prepare_chat
    from cktrain.data.sniff import shown

    for name, default in _STREAM_OPTIONS.items():
        if getattr(options, name) != default:
            raise ValueError(
                f"[data] --{name.replace('_', '-')} is for text, and {shown(options.source)} is read as rows of chat or "
                "instruction data. Leave it out."
            )
    if options.tokenizer is None:
        raise ValueError(
            f"[data] {shown(options.source)}: chat and instruction data need the model's tokenizer. Name its folder with "
            "--tokenizer."
        )
    chat_options = ChatOptions(
        **given_chat_options(options),
        validation_fraction=options.validation_fraction,
        special_tokens=options.special_tokens,
        eos_token=options.eos_token,
        skip_bad=options.skip_bad_rows,
        shard_tokens=options.shard_tokens,
    )
    summary = prepare_chat(
        options.source,
        options.out,
        tokenizer=options.tokenizer,
        options=chat_options,
        overwrite=options.overwrite,
        reuse=options.reuse,
        say=_say,
    )
    rows = ", ".join(f"{split['documents']:,} {name} rows" for name, split in summary["splits"].items())
    print(f"{shown(options.out)}: {rows}")
    print("\n".join(described(summary["chat"])))
    print(f"train with data: {{path: {shown(options.out)}, sequence_length: {chat_options.sequence_length}}}")
    return 0


def given_chat_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_chat_arguments` that were given, as fields of `ChatOptions`."""
    given = {name: getattr(options, name) for name in _CHAT_OPTIONS}
    given |= {"columns": columns_of(options.columns), "date": _date(options.date)}
    given |= {"objective": None, "preference": True if options.objective == "dpo" else None}
    return {name: value for name, value in given.items() if value is not None}


def columns_of(text: str | None) -> dict[str, str] | None:
    """{ours: theirs} of what --columns says, as pairs or as an object of JSON. Raises ValueError for what is neither."""
    if text is None:
        return None
    if text.lstrip().startswith("{"):
        return parse_json(
            text.encode(),
            dict[str, str],
            name="--columns",
            area="data",
            remedy='Write it as {"prompt": "question"}.',
        )
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(ours.strip() and sign and theirs.strip() for ours, sign, theirs in pairs):
        raise ValueError(
            f"[data] --columns {text}: write ours=theirs, as in prompt=question,completion=answer; names with a comma as "
            """JSON: '{"prompt": "the question, asked"}'."""
        )
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _date(text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"[data] --date {text}: is no date. Write it as 2024-07-26.") from None


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from cktrain.data.chat.show import shown_rows

    console = Console(highlight=False, soft_wrap=True)
    for number, row in enumerate(shown_rows(options.out, options.count, options.split)):
        title = f"row {number}: {row.tokens:,} tokens, {row.trained:,} trained, in sequence {row.sequence}"
        if not console.is_terminal:
            print(f"--- {title}\n{row.plain()}")
            continue
        console.print(Text(f"--- {title}", "bold"))
        console.print(Text.assemble(*((text, "green" if learned else "") for text, learned in row.pieces)))
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
