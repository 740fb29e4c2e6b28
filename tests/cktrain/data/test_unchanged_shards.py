"""Shards that were changed after they were prepared are found by their digest, and untouched ones are not read."""

import shutil
import time

import pytest

from cktrain.data import unchanged_shards
from cktrain.data.prepare import prepare
from cktrain.data.unchanged_shards import refuse_changed_shards, touched_shards


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("some words of a text\n" * 200)
    prepare(tmp_path / "text.txt", tmp_path / "data", vocab_size=270, shard_tokens=200, progress=False)
    time.sleep(0.02)  # a clock's tick: what comes now is later
    return tmp_path / "data"


def overwrite(file, offset=300):
    with open(file, "r+b") as stream:
        stream.seek(offset)
        stream.write(b"\1\0\1\0")


def test_untouched_shards_are_not_read(folder, monkeypatch):
    assert touched_shards(folder) == {}
    monkeypatch.setattr(unchanged_shards, "sha256_of_file", pytest.fail)
    refuse_changed_shards([folder])
    shutil.move(folder, folder.with_name("moved"))
    refuse_changed_shards([folder.with_name("moved")])


def test_a_shard_that_was_changed_is_named_by_the_rank_whose_part_it_is(folder):
    shards = sorted(folder.glob("*.cktok"))
    assert len(shards) > 3
    for shard in shards:
        shard.touch()  # as a copy has them
    refuse_changed_shards([folder])
    overwrite(shards[1])
    refuse_changed_shards([folder], part=0, parts=2)
    with pytest.raises(ValueError, match=rf"{shards[1].name}: is not the shard that was prepared"):
        refuse_changed_shards([folder], part=1, parts=2)


def test_a_copy_that_keeps_its_dates_is_found_all_the_same(folder, tmp_path):
    """cp -p of another folder's shard onto this one: as many tokens, and an older date."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    refuse_changed_shards([copy])
    other = sorted(folder.glob("train*"))
    overwrite(other[0])
    shutil.copy2(other[0], copy / other[0].name)
    with pytest.raises(ValueError, match=r"copy/train-00000.cktok: is not the shard"):
        refuse_changed_shards([copy])


def test_what_is_no_prepared_folder_or_records_nothing_is_left_alone(folder, tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(100))
    refuse_changed_shards([tmp_path / "raw.bin", tmp_path])
    dataset = folder / "dataset.json"
    dataset.write_text(dataset.read_text().replace('"written"', '"unwritten"'))
    overwrite(next(folder.glob("train*")))
    refuse_changed_shards([folder])
