"""Parquet, Arrow and datasets' save_to_disk as documents or rows of ids: what their own writers wrote, and damage."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers_made_here import write_tokenizer

from cktrain.data.chat.row_files import RowFiles
from cktrain.data.corpus import Corpus
from cktrain.data.prepare import prepare
from cktrain.data.shards import open_source
from cktrain.data.tokenizer import Tokenizer
from cktrain.launch.cli import main

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.judge

TEXTS = [f"document {i}: ☃ " + "one two three\n" * (i % 5) for i in range(700)]
IDS = [[(i * 7 + j) % 200 + 3 for j in range(i % 6 + 1)] + [1] for i in range(50)]
END = 8  # bytes of the mark at the end of a stream


def to_parquet(path, table):
    parquet.write_table(table, path, row_group_size=100)


def to_stream(path, table):
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def to_file(path, table):
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


WRITERS = {"a.parquet": to_parquet, "b.arrow": to_stream, "c.arrow": to_file}


def saved(folder, tables, **state):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir()
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        to_stream(folder / name, table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def of_texts(texts=TEXTS, **more):
    return pyarrow.table({"text": texts, **more})


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_of_text_is_documents(tmp_path, name):
    WRITERS[name](tmp_path / name, of_texts(label=list(range(700))))
    assert list(Corpus(tmp_path / name).documents()) == TEXTS
    WRITERS[name](tmp_path / name, pyarrow.table({"n": [1, 2], "body": ["x", ""]}))
    corpus = Corpus(tmp_path / name, text_key="body")
    assert list(corpus.documents()) == ["x"] and corpus.seen.empty_rows == 1
    with pytest.raises(ValueError, match=rf"{name}: has no column 'text' \(found: n, body\).*--text-key"):
        list(Corpus(tmp_path / name).documents())


@pytest.mark.parametrize("kind", ["large_string", "dictionary", "nested"])
def test_other_types_of_text(tmp_path, kind):
    column = pyarrow.array(["one", "two", "one"])
    if kind == "large_string":
        column = column.cast(pyarrow.large_string())
    elif kind == "dictionary":
        column = column.dictionary_encode()
    table = pyarrow.table({"text": column})
    key = "text"
    if kind == "nested":
        table, key = pyarrow.table({"doc": [{"text": "one"}, {"text": "two"}, {"text": "one"}]}), "doc.text"
    for name, writer in WRITERS.items():
        writer(tmp_path / name, table)
        assert list(Corpus(tmp_path / name, text_key=key).documents()) == ["one", "two", "one"]


def test_a_null_and_a_number_are_bad_rows(tmp_path):
    to_parquet(tmp_path / "a.parquet", pyarrow.table({"text": ["a", None, "b"]}))
    with pytest.raises(ValueError, match=r'a\.parquet:2: "text" is null, not text'):
        list(Corpus(tmp_path / "a.parquet").documents())
    assert list(Corpus(tmp_path / "a.parquet", skip_bad_rows=True).documents()) == ["a", "b"]
    to_parquet(tmp_path / "a.parquet", pyarrow.table({"text": [1, 2]}))
    with pytest.raises(ValueError, match=r'a\.parquet:1: "text" is int, not text'):
        list(Corpus(tmp_path / "a.parquet").documents())


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_that_is_cut_or_changed_is_named(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, of_texts())
    whole = path.read_bytes()
    for held in (whole[:-3], whole[: len(whole) // 2], whole[:-END]):
        path.write_bytes(held)
        with pytest.raises(ValueError, match=rf"{name}: (damaged|truncated)"):
            list(Corpus(path).documents())
    for at in range(0, len(whole), max(1, len(whole) // 60)):  # read as it is or refused, and no signal
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            list(Corpus(path).documents())
        except ValueError as error:
            assert name in str(error)


def test_a_packed_table_is_to_be_unpacked(tmp_path):
    import gzip

    to_parquet(tmp_path / "a.parquet", of_texts())
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(ValueError, match=r"Parquet inside of gz\. Unpack it"):
        Corpus(tmp_path / "a.parquet.gz")


def test_what_save_to_disk_left_is_read_in_the_order_of_its_state(tmp_path):
    folder = saved(tmp_path / "set", [of_texts(TEXTS[:300]), of_texts(TEXTS[300:])])
    (folder / "cache-1.arrow").write_bytes(b"another")
    assert list(Corpus(folder).documents()) == TEXTS
    assert len({Corpus(folder).fingerprint(), Corpus(folder).fingerprint()}) == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_what_datasets_writes(tmp_path, shards):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    dataset.save_to_disk(str(tmp_path / "set"), num_shards=shards)
    assert list(Corpus(tmp_path / "set").documents()) == TEXTS
    dataset.select([5, 3]).save_to_disk(str(tmp_path / "chosen"))
    assert list(Corpus(tmp_path / "chosen").documents()) == [TEXTS[5], TEXTS[3]]
    both = datasets.DatasetDict({"train": dataset, "test": dataset.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"with the splits train, test\. Give one of them, as .*both/train"):
        Corpus(tmp_path / "both")
    assert list(Corpus(tmp_path / "both/test").documents()) == [TEXTS[1]]


def test_a_dataset_that_is_not_whole_is_named(tmp_path):
    folder = saved(tmp_path / "set", [of_texts(TEXTS[:9]), of_texts(TEXTS[9:])])
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        ValueError, match=r"data-00001-of-00002\.arrow: is not there, and state\.json names it as"
    ):
        Corpus(folder)
    with pytest.raises(ValueError, match=r"save_to_disk: make shards of it with `cktrain data prepare"):
        open_source(saved(tmp_path / "whole", [of_texts()]), vocab_size=300)
    with pytest.raises(ValueError, match="chosen by a file of indices"):
        Corpus(saved(tmp_path / "indices", [of_texts()], _indices_data_files=[{"filename": "x"}]))
    for files in ([], [{"filename": "../x"}]):
        (folder / "state.json").write_text(json.dumps({"_data_files": files}))
        with pytest.raises(
            ValueError, match=r"state\.json: names (no files of rows|'\.\./x', which is no name)"
        ):
            Corpus(folder)


def test_chats_in_a_dataset_of_save_to_disk_are_rows(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": str(i)}]}
        for i in range(3)
    ]
    folder = saved(tmp_path / "set", [pyarrow.Table.from_pylist(rows)])
    assert [raw.value for raw in RowFiles(folder).rows()] == rows


def ids_prepared(tmp_path, table, **options):
    write_tokenizer(tmp_path / "tok")
    to_parquet(tmp_path / "ids.parquet", table)
    return prepare(
        tmp_path / "ids.parquet",
        tmp_path / "out",
        tokenizer=tmp_path / "tok",
        validation_fraction=0.1,
        progress=False,
        overwrite=True,
        **options,
    )


def test_rows_of_ids_are_documents_as_they_are(tmp_path, capsys, monkeypatch):
    summary = ids_prepared(tmp_path, pyarrow.table({"input_ids": IDS}))
    assert summary["rows_of_ids"] == {"ended": 50} and summary["documents"] == 50
    train, held_out = (open_source(tmp_path / "out", split) for split in ("train", "validation"))
    assert len(train) + len(held_out) == sum(map(len, IDS))
    assert train.read(0, len(IDS[0])).tolist() == IDS[0] and train.eos_id == 1 and not train.text_bytes
    assert held_out.read(0, len(IDS[1])).tolist() == IDS[1]
    assert Tokenizer.load(tmp_path / "out").eos_id == 1
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "ids.parquet", "out", "--tokenizer", "tok", "--overwrite"]) == 0
    assert "rows of input_ids were taken as they are: 50 of 50 end with </s> (1)" in capsys.readouterr().out
    assert main(["data", "prepare", "ids.parquet", "out2"]) == 2
    assert "its rows are ids (input_ids), and without their tokenizer" in capsys.readouterr().err
    assert not os.path.exists("out2")


def test_padding_is_left_out_and_labels_that_say_more_are_refused(tmp_path):
    padded = [[*ids, 0, 0] for ids in IDS]
    mask = [[1] * len(ids) + [0, 0] for ids in IDS]
    labels = [[*ids, -100, -100] for ids in IDS]
    ids_prepared(tmp_path, pyarrow.table({"input_ids": padded, "attention_mask": mask, "labels": labels}))
    assert open_source(tmp_path / "out").read(0, 2).tolist() == IDS[0]
    labels[7][0] = -100
    table = pyarrow.table({"input_ids": padded, "attention_mask": mask, "labels": labels})
    with pytest.raises(ValueError, match=r'ids\.parquet:8: "labels" differ from "input_ids"'):
        ids_prepared(tmp_path, table)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[1, 2], None]}, r'ids\.parquet:2: "input_ids" is null'),
        ({"input_ids": [["a"], ["b"]]}, r'ids\.parquet:1: "input_ids" is a list of other things'),
        ({"input_ids": [7, 8]}, r'ids\.parquet:1: "input_ids" is int'),
        ({"input_ids": [[1, 2], [3, 99999]]}, r"ids\.parquet:2: id 99999 is none of the tokenizer's 2\d\d"),
        ({"input_ids": [[1, 2], [3, -1]]}, r"ids\.parquet:2: id -1 is none of"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r'"attention_mask" has not the 2 entries'),
    ],
)
def test_rows_that_are_no_ids_are_named(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        ids_prepared(tmp_path, pyarrow.table(columns))


def test_ids_beside_text(tmp_path):
    to_parquet(tmp_path / "a.parquet", pyarrow.table({"text": ["x"], "input_ids": [[1, 2]]}))
    assert list(Corpus(tmp_path / "a.parquet").documents()) == [
        "x"
    ]  # what the text is, its tokenizer says anew
    to_parquet(tmp_path / "b.parquet", pyarrow.table({"input_ids": [[1, 2]]}))
    with pytest.raises(ValueError, match=r"b\.parquet holds ids, and .*a\.parquet text"):
        Corpus(tmp_path)


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    to_parquet(tmp_path / "a.parquet", of_texts())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"Parquet needs pyarrow: pip install 'cktrain\[parquet\]'"):
        list(Corpus(tmp_path / "a.parquet").documents())


def test_numbers_of_a_row_are_those_of_the_whole_file(tmp_path):
    texts: list = ["x"] * 1000
    texts[777] = None
    to_parquet(Path(tmp_path / "a.parquet"), pyarrow.table({"text": texts}))
    with pytest.raises(ValueError, match=r"a\.parquet:778: "):
        list(Corpus(tmp_path / "a.parquet").documents())
    assert np.array_equal(len(list(Corpus(tmp_path / "a.parquet", skip_bad_rows=True).documents())), 999)
