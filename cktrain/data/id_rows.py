"""Rows of a table that a tokenizer has been through already: `input_ids`, as datasets' `map(tokenize)` leaves them.

The ids are taken as they are; nothing is put before or after a row. Of a row with an `attention_mask` the ids under a 0 are
padding, and left out. `labels` that are the row's own ids say nothing more; others would be lost, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cktrain.data.documents import BadRow, Seen
from cktrain.data.sniff import Format, shown
from cktrain.data.tables import columns_of, table_rows

IDS, _MASK, _LABELS = "input_ids", "attention_mask", "labels"


def has_ids_alone(path: Path, form: Format, key: str) -> bool:
    """Whether a file is a table with input_ids and without the column of the text under `key`."""
    if form != "parquet" and form != "arrow":
        return False
    names = columns_of(path, form)
    return IDS in names and key not in names and key.partition(".")[0] not in names


def id_rows_of(
    path: Path, form: Format, seen: Seen, skip_bad_rows: bool = False
) -> Iterator[tuple[int, list[int]]]:
    """The number, from 1, and the ids of each row that has some. Raises BadFile; bad rows are counted or refused."""
    assert form == "parquet" or form == "arrow", form
    also = [name for name in (_MASK, _LABELS) if name in columns_of(path, form)]
    for number, row in table_rows(path, form, IDS, *also):
        try:
            ids = _ids_in(row)
        except BadRow as error:
            seen.bad_row(f"{shown(path)}:{number}", error, skip_bad_rows)
            continue
        if ids:
            yield number, ids
        else:
            seen.empty_rows += 1


def _ids_in(row: dict[str, Any]) -> list[int]:
    ids = row[IDS]
    if not isinstance(ids, list) or not all(isinstance(index, int) for index in ids):
        what = (
            "null"
            if ids is None
            else type(ids).__name__
            if not isinstance(ids, list)
            else "a list of other things"
        )
        raise BadRow(f'"{IDS}" is {what}, and no list of ids', "Correct the row.")
    mask = row.get(_MASK)
    if mask is None:
        mask = [1] * len(ids)
    labels = row.get(_LABELS)
    for name, other in ((_MASK, mask), (_LABELS, labels)):
        if other is not None and (not isinstance(other, list) or len(other) != len(ids)):
            found = f"{len(other):,}" if isinstance(other, list) else type(other).__name__
            raise BadRow(
                f'"{name}" has not the {len(ids):,} entries of "{IDS}", but {found}', "Correct the row."
            )
    kept = [place for place, seen in enumerate(mask) if seen]
    if labels is not None and any(labels[place] != ids[place] for place in kept):
        raise BadRow(
            f'"{_LABELS}" differ from "{IDS}", and every id of these rows would be learned',
            "Prepare the chats themselves, which gives a loss mask (docs/chat_data.md), or take the column away: "
            "dataset.remove_columns('labels').",
        )
    return [ids[place] for place in kept]
