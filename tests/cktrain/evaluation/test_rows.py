"""Rows out of files and out of prepared folders: the same tokens, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_models import SYSTEM, TURNS_TWO, write_model, write_rows

from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.data.tokenizer import Tokenizer
from cktrain.evaluation.answers import evenly
from cktrain.evaluation.rows import RowOptions, read_rows
from cktrain.side_files import read_tokenizer

ROWS = [
    {"messages": SYSTEM},
    *({"messages": [{"role": "user", "content": "a" * i}, TURNS_TWO[1]]} for i in range(1, 9)),
]


def read(data, side, most=1000, **options):
    said: list[str] = []
    return read_rows(data, side, most, RowOptions(**options), said.append), said


def test_a_prepared_folder_has_the_rows_of_its_file(tmp_path):
    side = read_tokenizer(write_model(tmp_path / "model"))
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    options = ChatOptions(sequence_length=300, validation_fraction=0)
    prepare_chat(file, tmp_path / "data", tokenizer=tmp_path / "model", options=options, progress=False)
    of_file, said = read(file, side)
    stored, _ = read(tmp_path / "data", side, split="train")
    assert said == [] and len(stored) == len(of_file) == len(ROWS)
    tokens = {(tuple(row.ids), tuple(row.learned)) for row in of_file}
    assert tokens == {(tuple(row.ids), tuple(row.learned)) for row in stored}
    tokenizer = Tokenizer.of(side)
    start, end = of_file[0].answer
    assert tokenizer.decode(of_file[0].ids[start:end]) == " Yes. ☃ "
    assert tokenizer.decode(of_file[0].ids[:start]).rstrip().endswith("Sure?\nassistant")
    assert of_file[3].place.endswith("rows.jsonl:4") and stored[0].place.startswith("train sequence 0, row 1")


def test_what_is_left_out_is_said(tmp_path):
    side = read_tokenizer(write_model(tmp_path / "model"))
    file = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"messages": []}, {"text": "plain text"}])
    with pytest.raises(ValueError, match=r"1 of 11 rows cannot be used[\s\S]*rows.jsonl:10: no messages"):
        read(file, side)
    rows, said = read(file, side, skip_bad=True, most=100)
    assert len(rows) == 9 and rows[-1].answer is None
    assert said == [
        "rows left out, which cannot be used: 1 of 11",
        "rows left out, longer than the model's 100 positions: 1 of 10",
    ]
    with pytest.raises(ValueError, match="no row is left of 10"):
        read(file, side, skip_bad=True, most=3)


def test_data_of_another_tokenizer_are_refused(tmp_path):
    write_model(tmp_path / "model")
    other = Path(write_model(tmp_path / "other")) / "tokenizer.json"
    values = json.loads(other.read_text())
    values["added_tokens"][0]["content"] = values["added_tokens"][0]["content"] + "x"
    other.write_text(json.dumps(values))
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    options = ChatOptions(sequence_length=300, validation_fraction=0)
    prepare_chat(file, tmp_path / "data", tokenizer=tmp_path / "model", options=options, progress=False)
    with pytest.raises(ValueError, match="is not the model's: other"):
        read(tmp_path / "data", read_tokenizer(tmp_path / "other"), split="train")


@pytest.mark.parametrize(
    ("count", "most", "wanted"), [(5, 9, [0, 1, 2, 3, 4]), (10, 4, [0, 2, 5, 7]), (0, 3, [])]
)
def test_rows_are_chosen_evenly(count, most, wanted):
    assert evenly(count, most) == wanted
