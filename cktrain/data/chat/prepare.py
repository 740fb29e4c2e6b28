"""Rows of chat or instruction data to shards of packed rows: `cktrain data prepare CHAT OUT --tokenizer MODEL`.

One pass reads, checks, renders and encodes every row into a temporary file, so that all bad rows are told together and
nothing is packed before all lengths are known. Then the rows of each split are packed and written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from cktrain.data.chat.encoded_rows import EncodedRows
from cktrain.data.chat.findings import BadRows, Twins, length_summary, share
from cktrain.data.chat.marked_templates import marked_template
from cktrain.data.chat.named_templates import refuse_without_markers, template_of
from cktrain.data.chat.packing import best_fit_decreasing
from cktrain.data.chat.pairs import Pair, parse_pair
from cktrain.data.chat.row_files import RawRow, RowFiles, as_json
from cktrain.data.chat.rows import COLUMNS, Row, parse_row
from cktrain.data.chat.samples import TRAIN_ON, Prepared, Sample, SampleMaker, TrainOn
from cktrain.data.chat.template import (
    PINNED_DATE,
    ChatTemplate,
    named_tokens,
    without_generation,
)
from cktrain.data.documents import BadRow
from cktrain.data.prepare import (
    files_below,
    how_it_was_encoded,
    progress_bar,
    split_of,
    stopped,
    write_synced,
)
from cktrain.data.reuse import made_from, why_again
from cktrain.data.shards import DATASET_FILE, DATASET_VERSION, SUFFIX, ShardWriter, Split
from cktrain.data.sniff import shown
from cktrain.data.special_tokens import end_ids, special_ids, with_ends
from cktrain.data.target import Target
from cktrain.file_identity import sha256_of_bytes, sha256_of_files
from cktrain.side_files import TEMPLATE_FILE, SideFiles, SpecialTokens, read_tokenizer

REJECTED_FILE = "rejected.jsonl"
LARGEST_DROPPED_SHARE = 0.05
"""More rows than this are not dropped for their length: their owner must say what to do."""

RULES = 2
"""Raised where the same rows and options have become other tokens or labels than before: 2 heeds a message's weight."""
_AT_ONCE = 256  # rows encoded together

Packing = Literal["bfd", "none"]
TooLong = Literal["drop", "truncate", "error"]
PACKING: tuple[Packing, ...] = ("bfd", "none")
TOO_LONG: tuple[TooLong, ...] = ("drop", "truncate", "error")


@dataclass(frozen=True)
class ChatOptions:
    """What rows become; every field is part of what the prepared folder is made from."""

    sequence_length: int = 2048
    train_on: TrainOn = "assistant"
    packing: Packing = "bfd"
    too_long: TooLong = "drop"
    chat_template: str | None = None
    """One of `NAMED`, or a file; None: the tokenizer's own."""
    columns: Mapping[str, str] | None = None
    """{our key: the data's}."""
    validation_fraction: float = 0.05
    group_by: str | None = None
    """Rows with the same value of this key are on one side of the split."""
    special_tokens: SpecialTokens = "text"
    eos_token: str | None = None
    date: datetime.date = PINNED_DATE
    """What a template is told that asks for today."""
    skip_bad: bool = False
    preference: bool = False
    """Rows are pairs of answers (`pairs.py`), and stay pairs: for the objective dpo. Their answers are learned."""
    shard_tokens: int = 100_000_000


def prepare_chat(
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path,
    options: ChatOptions | None = None,
    overwrite: bool = False,
    reuse: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make a folder of packed rows out of a file or folder of rows, with the tokenizer and template of a model's folder.

    `overwrite` and `reuse` are those of `prepare`; `say` hears what was found, a line at a time. Returns what dataset.json
    holds; its key `chat` says what the rows were. Raises ValueError on bad input, naming all bad rows by reason unless
    `options.skip_bad` puts them into rejected.jsonl, and OSError when writing fails; then `out` is as it was.
    """
    options = options or ChatOptions()
    _check(options)
    target = Target(out, overwrite or reuse, say)
    files = RowFiles(source)
    target.refuse_source(files.folders, [path for path, *_ in files.files])
    for line in files.left_out.lines():
        say(f"[data.chat] {shown(source)}: {line}")
    side = read_tokenizer(tokenizer)
    template, side = _template_of(side, options)
    record = _record(options, template)
    made = made_from(files, side, record)
    if reuse and target.existing is not None:
        why = why_again(target.out, target.existing, made)
        if why is None:
            return target.existing
        say(f"[data.prepare] {target.name}: prepared again, because {why}.")
    marked = _marked(template, side, options, say, target.name)
    train_on: TrainOn = "completion" if options.preference else options.train_on
    maker = SampleMaker(side, options.eos_token, template, marked, train_on, options.special_tokens)
    refuse_without_markers(options.chat_template, maker.tokenizer, side.found_in)
    try:
        with target, progress_bar(progress) as bar:
            work = _Preparation(target.data, files, maker, options)
            try:
                work.read(bar)
                work.refuse_bad_rows()
                summary = work.write()
            finally:
                work.close()
            if more := sorted(maker.ends - set(end_ids(special_ids(side)))):
                names = ", ".join(str(maker.tokenizer.token_of(each)) for each in more)
                say(
                    f"[data.chat] {target.name}: answers end with {names}, which ended no text for the model; for the run "
                    "and its exports it does."
                )
                side = with_ends(side, more)
            side.write(target.data)
            summary |= {
                "version": DATASET_VERSION,
                "fingerprint": hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest(),
                "validation_fraction": options.validation_fraction,
                "left_out": files.left_out.as_dict(),
                **how_it_was_encoded(side, maker.tokenizer),
                "made_from": made,
            }
            summary["chat"] |= {"template": None if template is None else template.name}
            summary["written"] = sha256_of_files(target.data, files_below(target.data))
            write_synced(target.data / DATASET_FILE, json.dumps(summary, indent=2) + "\n")
            target.put_in_place()
    except OSError as error:
        raise stopped(target, files.bytes, error) from error
    for line in work.warnings(template):
        say(f"[data.chat] {shown(source)}: {line}")
    return summary


def _check(options: ChatOptions) -> None:
    for name, value, allowed in (
        ("train_on", options.train_on, TRAIN_ON),
        ("packing", options.packing, PACKING),
        ("too_long", options.too_long, TOO_LONG),
    ):
        if value not in allowed:
            raise ValueError(f"[data.chat] {name} {value!r}: give one of {', '.join(allowed)}.")
    if options.preference and (options.train_on == "all" or options.too_long == "truncate"):
        key, value = ("train_on", "all") if options.train_on == "all" else ("too_long", "truncate")
        raise ValueError(
            f"[data.chat] {key} {value!r} is not for preference pairs: their whole answers are compared. Leave it out."
        )
    if unknown := set(options.columns or {}) - set(COLUMNS):
        raise ValueError(f"[data.chat] columns: {min(unknown)!r} is none of ours: {', '.join(COLUMNS)}.")
    if options.sequence_length < 2 or options.shard_tokens < 1 or not 0 <= options.validation_fraction <= 0.5:
        raise ValueError(
            f"[data.chat] sequence_length {options.sequence_length} must be at least 2, shard_tokens "
            f"{options.shard_tokens} at least 1 and validation_fraction {options.validation_fraction} between 0 and 0.5. "
            "Correct them."
        )


def _template_of(side: SideFiles, options: ChatOptions) -> tuple[ChatTemplate | None, SideFiles]:
    """The template, and the files with it: one that was asked for becomes the tokenizer's own."""
    template = template_of(side, options.chat_template, options.date)
    if template is not None and options.chat_template is not None:
        text = without_generation(template.text).encode()
        side = replace(side, files={**side.files, TEMPLATE_FILE: text})
    return template, side


def _record(options: ChatOptions, template: ChatTemplate | None) -> dict[str, Any]:
    """The options as dataset.json has them; a template by what is in it, not by where it was."""
    values = {**vars(options), "date": options.date.isoformat(), "columns": dict(options.columns or {})}
    values["chat_template"] = None if template is None else sha256_of_bytes(template.text.encode())
    values["rules"] = RULES
    if not options.preference:  # so that a folder of before is not another one
        del values["preference"]
    return values


def _marked(
    template: ChatTemplate | None,
    side: SideFiles,
    options: ChatOptions,
    say: Callable[[str], None],
    name: str,
) -> ChatTemplate | None:
    if template is None or template.marks_generation:
        return template
    found = marked_template(template.text)
    if found is None:
        return None
    if options.train_on != "all":
        say(
            f"[data.chat] {name}: the chat template is that of {found[0]}, whose marked one says what is learned."
        )
    return ChatTemplate(found[1], named_tokens(side), options.date, found[0])


class _Preparation:
    """One preparation's rows on their way from the files to the shards."""

    def __init__(self, folder: Path, files: RowFiles, maker: SampleMaker, options: ChatOptions):
        self._folder = folder
        self._files = files
        self._maker = maker
        self._options = options
        self._splits: dict[Split, EncodedRows] = {s: EncodedRows(folder) for s in ("train", "validation")}
        self._bad = BadRows()
        self._twins = Twins()
        self._shapes: Counter[str] = Counter()
        self._groups: dict[str, int] = {}
        self._rows = self._empty = self._unanswered = self._too_long = self._truncated = self._unlearned = 0
        self._first_empty = self._longest = ""
        self._longest_tokens = 0

    def close(self) -> None:
        for rows in self._splits.values():
            rows.close()

    def read(self, bar: Progress) -> None:
        """Every row, to samples in their split."""
        task = bar.add_task("reading rows", total=None)
        rejected = None
        try:
            for batch in _batches(self._files.rows()):
                good: list[tuple[RawRow, Row | Pair, list[Prepared], Split]] = []
                for raw in batch:
                    try:
                        row, prepared = self._parse(raw)
                        good.append((raw, row, prepared, self._split(raw)))
                    except BadRow as error:
                        self._bad.add(raw.place, error.why, error.remedy)
                        if self._options.skip_bad:
                            if rejected is None:
                                rejected = open(self._folder / REJECTED_FILE, "w", encoding="utf-8")  # noqa: SIM115
                            rejected.write(as_json(raw, error.why) + "\n")
                self._encode(good)
                bar.update(
                    task, advance=len(batch), description=f"reading rows: {self._bad.count + self._rows:,}"
                )
            bar.update(task, total=self._bad.count + self._rows)
        finally:
            if rejected is not None:
                rejected.close()

    def _parse(self, raw: RawRow) -> tuple[Row | Pair, list[Prepared]]:
        columns = self._options.columns or {}
        if self._options.preference:
            pair = parse_pair(raw.value, columns)
            return pair, self._maker.prepare_pair(pair, raw.place)
        row = parse_row(raw.value, columns)
        return row, self._maker.prepare(row, raw.place)

    def _split(self, raw: RawRow) -> Split:
        key, fraction = self._options.group_by, self._options.validation_fraction
        number = self._rows
        if key is not None:
            if key not in raw.value:
                raise BadRow(f'no key "{key}", which --group-by names')
            value = json.dumps(raw.value[key], sort_keys=True, default=repr)
            number = self._groups.setdefault(value, len(self._groups))
        self._rows += 1
        return split_of(number, fraction)

    def _encode(self, good: list[tuple[RawRow, Row | Pair, list[Prepared], Split]]) -> None:
        texts = [each for _, _, prepared, _ in good for each in prepared]
        places = [raw.place for raw, _, prepared, _ in good for _ in prepared]
        samples = iter(self._maker.encode(texts, places))
        for raw, row, prepared, split in good:
            self._shapes[row.shape] += 1
            self._twins.add(row.texts, split, raw.place)
            if row.has_empty_answer:
                self._empty += 1
                self._first_empty = self._first_empty or raw.place
                self._unanswered += row.is_unanswered
            made = [next(samples) for _ in prepared]
            for row_of in [made] if isinstance(row, Pair) else [[each] for each in made]:
                self._keep(row_of, split, raw.place)

    def _keep(self, samples: list[Sample], split: Split, place: str) -> None:
        """A row of one document, or of the two of a pair, which are kept or left out together."""
        limit, length = self._options.sequence_length, sum(len(each.ids) for each in samples)
        if length > self._longest_tokens:
            self._longest_tokens, self._longest = length, place
        if length > limit:
            self._too_long += 1
            if self._options.too_long != "truncate":
                return
            (sample,) = samples
            samples = [Sample(sample.ids[:limit], sample.learned[:limit], sample.text_bytes)]
            self._truncated += 1
        if not all(any(each.learned) for each in samples):
            self._unlearned += 1
            return
        self._splits[split].add(*samples)

    def refuse_bad_rows(self) -> None:
        """ValueError for bad rows that are not to be skipped, for too many long ones, and for too few rows."""
        source, options = shown(self._files.source), self._options
        if self._bad.count and not options.skip_bad:
            listed = "\n  ".join(self._bad.lines())
            raise ValueError(
                f"[data.chat] {source}: {self._bad.count:,} of {self._bad.count + self._rows:,} rows cannot be used. "
                f"Correct them, or --skip-bad leaves them out and writes them to {REJECTED_FILE}.\n  {listed}"
            )
        dropped = self._too_long if options.too_long != "truncate" else 0
        limit = 0 if options.too_long == "error" else LARGEST_DROPPED_SHARE
        samples = sum(map(len, self._splits.values())) + self._unlearned + dropped
        if dropped and dropped > limit * samples:
            remedy = (
                "--sequence-length: it holds both answers of a pair, each with the prompt"
                if options.preference
                else "--sequence-length, or --too-long truncate"
            )
            raise ValueError(
                f"[data.chat] {source}: {dropped:,} of {samples:,} rows ({dropped / samples:.1%}) are longer than "
                f"sequence_length {options.sequence_length:,}; the longest has {self._longest_tokens:,} tokens "
                f"({self._longest}), and {'none' if limit == 0 else f'at most {limit:.0%}'} may be dropped. Give a longer "
                f"{remedy}."
            )
        if not len(self._splits["train"]):
            remedy = "Give more rows"
            if self._longest_tokens > options.sequence_length:
                remedy = f"The longest has {self._longest_tokens:,} tokens: give a longer --sequence-length, or more rows"
            raise ValueError(
                f"[data.chat] {source}: no row to train on of {self._rows:,} (without a label: {self._unlearned:,}; "
                f"too long: {dropped:,}). {remedy}."
            )
        if self._unanswered == self._rows:
            raise ValueError(
                f"[data.chat] {source}: each of {self._rows:,} rows has an empty answer (first: {self._first_empty}), so "
                "only their ends would be learned. Name the answers' column with --columns, or correct the rows."
            )
        if options.validation_fraction and not len(self._splits["validation"]):
            what = f"values of {options.group_by}" if options.group_by else "rows"
            cut = self._unlearned if self._truncated else 0
            lost = (
                f"; of {cut:,} long rows what is learned was cut off, which a longer --sequence-length keeps"
                if cut
                else ""
            )
            raise ValueError(
                f"[data.chat] {source}: too few {what} for a validation split{lost}. Give more, or --validation 0."
            )

    def write(self) -> dict[str, Any]:
        """Pack and write both splits. Returns the summary."""
        splits = {split: self._write_split(split, rows) for split, rows in self._splits.items()}
        both = list(self._splits.values())
        lengths = [length for rows in both for length in rows.lengths]
        trained = sum(sum(rows.trained) for rows in both)
        tokens = sum(each["tokens"] for each in splits.values())
        exact, near = self._twins.leaks(False), self._twins.leaks(True)
        text_bytes = sum(sum(rows.text_bytes) for rows in both)
        return {
            "source": self._files.source,
            "files": len(self._files.files),
            "source_bytes": self._files.bytes,
            "documents": len(lengths),
            "text_bytes": text_bytes,
            "tokens": tokens,
            "splits": splits,
            "chat": {
                "rows": len(lengths),
                "shapes": dict(self._shapes),
                "sequences": sum(each["sequences"] for each in splits.values()),
                "sequence_length": self._options.sequence_length,
                "packing_efficiency": share(sum(lengths), tokens),
                "length": length_summary(lengths),
                "row_tokens": sum(lengths),
                "trained_tokens": trained,
                "trained_share": share(trained, sum(lengths)),
                "masks": dict(self._maker.masks),
                "bad_rows": dict(self._bad.reasons),
                "too_long": self._too_long,
                "truncated": self._truncated,
                "without_label": self._unlearned,
                "empty_answers": self._empty,
                "duplicates": self._twins.duplicates,
                "leaks": exact[0],
                "near_leaks": near[0],
                "unlike_inference": self._maker.unlike_inference.count,
                "groups": len(self._groups),
                **({"pairs": len(lengths)} if self._options.preference else {}),
            },
        }

    def _write_split(self, split: Split, rows: EncodedRows) -> dict[str, Any]:
        length = self._options.sequence_length
        if self._options.packing == "bfd":
            sequences = best_fit_decreasing(rows.lengths, length)
        else:
            sequences = [[index] for index in range(len(rows))]
        vocab_size, eos = self._maker.tokenizer.vocab_size, self._maker.tokenizer.eos_id
        per_shard = max(1, self._options.shard_tokens // length)
        shards: list[dict[str, Any]] = []
        for begin in range(0, len(sequences), per_shard):
            path = self._folder / f"{split}-{len(shards):05d}{SUFFIX}"
            with ShardWriter(path, vocab_size, eos, loss_mask=True, row_length=length) as shard:
                for sequence in sequences[begin : begin + per_shard]:
                    ids = np.full(length, eos, np.int64)  # padding, which nothing learns
                    learned, begins = np.zeros(length, bool), np.zeros(length, bool)
                    at = 0
                    for index in sequence:
                        size = rows.lengths[index]
                        ids[at : at + size], learned[at : at + size] = rows[index]
                        begins[[at + start for start in rows.begins[index]]] = True
                        at += size
                    if at < length:
                        begins[at] = True
                    shard.append(ids, sum(rows.text_bytes[index] for index in sequence), learned, begins)
            shards.append({"file": path.name, "tokens": shard.tokens})
        return {
            "documents": len(rows),
            "sequences": len(sequences),
            "tokens": len(sequences) * length,
            "text_bytes": sum(rows.text_bytes),
            "shards": shards,
        }

    def warnings(self, template: ChatTemplate | None) -> list[str]:
        """What its user should hear of, in sentences."""
        maker, options, found = self._maker, self._options, []
        if self._bad.count:
            reasons = "; ".join(f"{count:,} x {why}" for why, count in self._bad.reasons.most_common(5))
            found.append(
                f"bad rows left out, and written to {REJECTED_FILE}: {self._bad.count:,} ({reasons})"
            )
        if self._too_long:
            what = "cut to" if options.too_long == "truncate" else "left out, longer than"
            found.append(f"rows {what} {options.sequence_length:,} tokens: {self._too_long:,}")
        if self._unlearned:
            found.append(f"rows left out that have no label left: {self._unlearned:,}")
        if maker.unlearned.count:
            found.append(
                f"rows with answers that say that they are not learned: {maker.unlearned.count:,} (first: "
                f"{maker.unlearned.first})"
            )
        if self._empty:
            found.append(f"warning: rows with an empty answer: {self._empty:,} (first: {self._first_empty})")
        if self._twins.duplicates:
            found.append(
                f"warning: rows that stand there already: {self._twins.duplicates:,} (first: {self._twins.first_duplicate})"
            )
        for near, word in ((False, "the same"), (True, "nearly the same")):
            count, first = self._twins.leaks(near)
            count -= self._twins.leaks(False)[0] if near else 0
            if count:
                found.append(
                    f"warning: rows of validation that are {word} as one of training: {count:,} (first: {first}). The "
                    "validation loss is too low by them: remove them, or keep them together with --group-by KEY"
                )
        if maker.unwritten.count:
            found.append(
                f"warning: rows of which the template leaves something out or changes it: {maker.unwritten.count:,} (first: "
                f"{maker.unwritten.first}): a message, tools, or the reasoning of the last answer"
            )
        if maker.unlike_inference.count:
            found.append(
                "warning: rows with answers whose prompt the template renders otherwise at inference: "
                f"{maker.unlike_inference.count:,} (first: {maker.unlike_inference.first}), mostly turns before the last. "
                "--train-on completion learns the last answer alone"
            )
        if maker.endless.count:
            found.append(
                f"warning: rows with answers that no end token follows: {maker.endless.count:,} (first: "
                f"{maker.endless.first}). The model will not learn to stop"
            )
        if maker.crossing.count:
            found.append(
                "warning: rows in which a token holds the end of the prompt and the beginning of the completion: "
                f"{maker.crossing.count:,} (first: {maker.crossing.first}). Let the completion begin with the space"
            )
        if template is not None and template.asks_for_date:
            found.append(f"the template asks for today's date and was told {options.date} (--date)")
        return found


def _batches(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    batch: list[RawRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
