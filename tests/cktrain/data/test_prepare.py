"""Prepared data holds the whole corpus, is complete or absent, and is the same for the same input."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data import prepare as module
from cktrain.data.prepare import prepare, split_of
from cktrain.data.shards import ShardWriter, open_source
from cktrain.data.tokenizer import Tokenizer

TEXTS = [f"document {i}: " + "some words of ☃ text\n" * (i % 7 + 1) for i in range(60)]


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def run(source, out, **options):
    return prepare(source, out, **({"vocab_size": 300, "progress": False} | options))


def documents(folder, split):
    """The split's documents, decoded."""
    shards = open_source(folder, split)
    ids = shards.read(0, len(shards))
    assert ids[-1] == shards.eos_id
    parts = np.split(ids, np.flatnonzero(ids == shards.eos_id) + 1)[:-1]
    return [Tokenizer.load(folder).decode(part) for part in parts]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_in_one_split_in_order(source, tmp_path):
    out = tmp_path / "deep" / "out"
    summary = run(source, out, validation_fraction=0.1)
    expected = {"train": [], "validation": []}
    for index, text in enumerate(TEXTS):
        expected[split_of(index, 0.1)].append(text)
    assert len(expected["validation"]) == 6
    for split, texts in expected.items():
        assert documents(out, split) == texts
        shards = open_source(out, split)
        assert shards.text_bytes == sum(len(text.encode()) for text in texts)
        assert summary["splits"][split]["tokens"] == len(shards)
        assert summary["splits"][split]["documents"] == len(texts)
        assert shards.vocab_size == summary["vocab_size"] == Tokenizer.load(out).vocab_size
    assert summary["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert summary == json.loads((out / "dataset.json").read_text())
    assert sorted(contents(out)) == [
        "dataset.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train-00000.cktok",
        "validation-00000.cktok",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    run(source, tmp_path / "one")
    run(source, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_tokenizer_has_not_seen_the_validation_documents(source, tmp_path):
    run(source, tmp_path / "out", vocab_size=400, validation_fraction=0.5)
    (tmp_path / "train").mkdir()
    train = [text for index, text in enumerate(TEXTS) if split_of(index, 0.5) == "train"]
    Tokenizer.train(train, 400).save(tmp_path / "train")
    expected = (tmp_path / "train" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == expected
    (tmp_path / "all").mkdir()
    Tokenizer.train(TEXTS, 400).save(tmp_path / "all")
    assert (tmp_path / "all" / "tokenizer.json").read_bytes() != expected


def test_many_shards_are_the_same_stream(source, tmp_path):
    run(source, tmp_path / "one")
    summary = run(source, tmp_path / "many", shard_tokens=100)
    assert len(summary["splits"]["train"]["shards"]) > 5
    one, many = open_source(tmp_path / "one"), open_source(tmp_path / "many")
    assert np.array_equal(one.read(0, len(one)), many.read(0, len(many)))
    assert one.text_bytes == many.text_bytes
    last = summary["splits"]["train"]["shards"][-1]["file"]
    (tmp_path / "many" / last).unlink()
    with pytest.raises(ValueError, match=f"{last}: no such file"):
        open_source(tmp_path / "many")


def test_a_given_tokenizer_is_kept_byte_for_byte(source, tmp_path):
    tokenizer = tmp_path / "given"
    tokenizer.mkdir()
    Tokenizer.train(["other words"] * 3, 270).save(tokenizer)
    text = json.dumps(json.loads((tokenizer / "tokenizer.json").read_text()))  # another layout of the same
    (tokenizer / "tokenizer.json").write_text(text)
    summary = run(source, tmp_path / "out", tokenizer=tokenizer, vocab_size=5000)
    assert summary["vocab_size"] == Tokenizer.load(tokenizer).vocab_size < 300
    assert (tmp_path / "out" / "tokenizer.json").read_text() == text
    assert documents(tmp_path / "out", "train")[0] == TEXTS[0]


def test_a_large_vocabulary_is_written_in_four_bytes(source, tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer.train(TEXTS, 260).save(tmp_path)
    content = json.loads(path.read_text())
    content["model"]["vocab"]["unused"] = 70_000
    path.write_text(json.dumps(content))
    assert run(source, tmp_path / "out", tokenizer=path)["vocab_size"] == 70_001
    assert open_source(tmp_path / "out").shards[0].tokens.dtype == np.dtype("<u4")
    assert documents(tmp_path / "out", "train")[0] == TEXTS[0]


def test_one_text_file_and_no_validation(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(TEXTS))
    run(path, tmp_path / "out", validation_fraction=0)
    assert "".join(documents(tmp_path / "out", "train")) == "".join(TEXTS)
    with pytest.raises(ValueError, match="prepared without a validation split"):
        open_source(tmp_path / "out", "validation")
    run(path, tmp_path / "both")
    assert len(open_source(tmp_path / "both", "validation")) > 1


def test_existing_folders_are_safe(source, tmp_path):
    out = tmp_path / "out"
    run(source, out)
    before = contents(out)
    with pytest.raises(ValueError, match="already holds prepared data"):
        run(source, out)
    assert contents(out) == before
    run(source, out, overwrite=True, vocab_size=280)
    assert open_source(out).vocab_size == 280
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not a prepared folder"):
        run(source, other, overwrite=True)
    assert contents(other) == {"thesis.txt": b"precious"}
    empty = tmp_path / "empty"
    empty.mkdir()
    run(source, empty)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "empty", "other", "out"]


def test_reuse_makes_it_again_only_after_a_change(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(source, out, reuse=True)
    monkeypatch.setattr(module, "_write_shards", None)  # would fail if it were called
    assert run(source, out, reuse=True) == first
    monkeypatch.undo()
    assert run(source, out, reuse=True, vocab_size=280)["vocab_size"] == 280
    with open(source, "a") as file:
        file.write('{"text": "one more"}\n')
    assert run(source, out, reuse=True, vocab_size=280)["documents"] == len(TEXTS) + 1


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("moment", ["append", "close", "dataset"])
def test_a_full_disk_keeps_what_was_and_leaves_nothing_new(source, tmp_path, monkeypatch, moment, existing):
    out = tmp_path / "out"
    if existing:
        run(source, out)
    before = contents(out) if existing else None

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "append": (ShardWriter, "append"),
        "close": (ShardWriter, "close"),
        "dataset": (module, "write_synced"),
    }
    monkeypatch.setattr(*target[moment], full)
    with pytest.raises(
        OSError, match=r"out: stopped \(No space left on device\) and nothing was kept"
    ) as error:
        run(source, out, overwrite=True, vocab_size=280)
    assert error.value.errno == errno.ENOSPC
    assert (contents(out) if existing else None) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"] + ["out"] * existing


def test_a_full_device(source, tmp_path, monkeypatch):
    # The kernel's own ENOSPC: the shard's file is /dev/full, where every flush fails.
    real = open

    def open_full(path, mode="r", **options):
        return real("/dev/full" if str(path).endswith(".cktok.tmp") else path, mode, **options)

    monkeypatch.setattr("builtins.open", open_full)
    with pytest.raises(OSError, match="No space left on device"):
        run(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_an_error_half_way_leaves_nothing(source, tmp_path):
    with open(source, "a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match=rf"corpus\.jsonl:{len(TEXTS) + 1}: not JSON"):
        run(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_bad_input(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="holds no text in 1 file"):
        run(path, tmp_path / "out")
    path.write_text('{"text": "alone"}\n')
    with pytest.raises(ValueError, match="1 document cannot be divided"):
        run(path, tmp_path / "out")
    assert run(path, tmp_path / "out", validation_fraction=0)["documents"] == 1
    with pytest.raises(ValueError, match=r"validation_fraction 0\.6"):
        run(path, tmp_path / "new", validation_fraction=0.6)
    with pytest.raises(ValueError, match="shard_tokens 0"):
        run(path, tmp_path / "new", shard_tokens=0)
    with pytest.raises(ValueError, match="vocab_size 10 is below 257"):
        run(path, tmp_path / "new", validation_fraction=0, vocab_size=10)
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        run(path, tmp_path / "new", tokenizer=tmp_path)
    assert not (tmp_path / "new").exists()


@given(st.integers(1, 2000), st.integers(1, 50))
def test_the_split_has_the_share_that_was_asked(count, percent):
    fraction = percent / 100
    chosen = sum(split_of(index, fraction) == "validation" for index in range(count))
    assert abs(chosen - count * fraction) <= 1
    if count >= 2:
        assert 1 <= chosen < count
    assert split_of(count, 0) == "train"
