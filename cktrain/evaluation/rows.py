"""The rows that a model is evaluated on: out of a file of chats or instructions, or of a folder that was prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cktrain.data.chat.findings import BadRows
from cktrain.data.chat.marked_templates import marked_template
from cktrain.data.chat.named_templates import template_of
from cktrain.data.chat.row_files import RowFiles
from cktrain.data.chat.rows import parse_row
from cktrain.data.chat.samples import SampleMaker, TrainOn
from cktrain.data.chat.stored_rows import stored_rows
from cktrain.data.chat.template import PINNED_DATE, ChatTemplate, named_tokens
from cktrain.data.documents import BadRow
from cktrain.data.same_tokenizer import other_tokenizer_error, tokenizer_differences
from cktrain.data.shards import DATASET_FILE, Split, open_source, read_dataset
from cktrain.side_files import SideFiles, SpecialTokens, read_tokenizer


@dataclass(frozen=True)
class RowOptions:
    """How rows are read; those of a file as when they are prepared."""

    train_on: TrainOn = "assistant"
    chat_template: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    special_tokens: SpecialTokens = "text"
    skip_bad: bool = False
    """Leave out rows that cannot be used, which is said."""
    split: Split = "validation"
    """Of a prepared folder."""


@dataclass(frozen=True)
class EvaluationRow:
    """Token ids, and whether each is learned, that is counted; the first is not."""

    place: str
    ids: Sequence[int]
    learned: Sequence[bool]

    @property
    def answer(self) -> tuple[int, int] | None:
        """Where the last answer begins and ends; None for a text that is no answer to anything."""
        end = max(index for index, learned in enumerate(self.learned) if learned) + 1
        start = end
        while start > 0 and self.learned[start - 1]:
            start -= 1
        return (start, end) if start > 1 else None


def read_rows(
    data: str | Path, side: SideFiles, most: int, options: RowOptions, say: Callable[[str], None]
) -> list[EvaluationRow]:
    """The rows, as the tokenizer and the template of a model's `side` have them, of at most `most` tokens.

    `say` hears what was left out. Raises ValueError for what cannot be read, bad rows, and where no row is left.
    """
    stored = (Path(data) / DATASET_FILE).is_file()
    found = _stored(Path(data), side, options) if stored else _of_files(data, side, options, say)
    rows = [row for row in found if len(row.ids) <= most and any(row.learned)]
    long = sum(len(row.ids) > most for row in found)
    if long:
        say(f"rows left out, longer than the model's {most:,} positions: {long:,} of {len(found):,}")
    if unlabelled := len(found) - len(rows) - long:
        say(f"rows left out, of which nothing is learned: {unlabelled:,} of {len(found):,}")
    if not rows:
        raise ValueError(f"[evaluate] {data}: no row is left of {len(found):,}. Give others.")
    return rows


def _stored(folder: Path, side: SideFiles, options: RowOptions) -> list[EvaluationRow]:
    if "pairs" in (read_dataset(folder).get("chat") or {}):
        raise ValueError(
            f"[evaluate] {folder} holds preference pairs, and a rejected answer is none to be held against. Give rows of "
            "chats: of a file of pairs the chosen answers are --columns completion=chosen."
        )
    own = read_tokenizer(folder)
    if differences := tokenizer_differences(own, side):
        raise other_tokenizer_error(
            f"the tokenizer of {folder}",
            "the model's",
            differences,
            "Give the rows as a file, or the model's own data.",
        )
    rows: dict[int, int] = {}
    found = []
    for sequence, ids, learned in stored_rows(open_source(folder, options.split)):
        rows[sequence] = rows.get(sequence, 0) + 1
        place = f"{options.split} sequence {sequence}, row {rows[sequence]}"
        counted = [False, *learned[1:].tolist()]
        found.append(EvaluationRow(place, ids.tolist(), counted))
    return found


def _of_files(
    data: str | Path, side: SideFiles, options: RowOptions, say: Callable[[str], None]
) -> list[EvaluationRow]:
    template = template_of(side, options.chat_template, PINNED_DATE)
    marked = template if template is not None and template.marks_generation else None
    if template is not None and marked is None and (known := marked_template(template.text)) is not None:
        marked = ChatTemplate(known[1], named_tokens(side), PINNED_DATE, known[0])
    maker = SampleMaker(side, None, template, marked, options.train_on, options.special_tokens)
    files = RowFiles(data)
    for line in files.left_out.lines():
        say(line)
    bad, count = BadRows(), 0
    prepared, places = [], []
    for raw in files.rows():
        count += 1
        try:
            made = maker.prepare(parse_row(raw.value, options.columns), raw.place)
        except BadRow as error:
            bad.add(raw.place, error.why, error.remedy)
            continue
        prepared += made
        places += [raw.place] * len(made)
    if bad.count and not options.skip_bad:
        listed = "\n  ".join(bad.lines())
        raise ValueError(
            f"[evaluate] {data}: {bad.count:,} of {count:,} rows cannot be used. Correct them, or --skip-bad leaves them "
            f"out.\n  {listed}"
        )
    if bad.count:
        say(f"rows left out, which cannot be used: {bad.count:,} of {count:,}")
    samples = maker.encode(prepared, places)
    return [EvaluationRow(place, each.ids, each.learned) for place, each in zip(places, samples, strict=True)]
