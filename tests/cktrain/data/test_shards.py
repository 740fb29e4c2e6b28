"""Shard files: what is written is read, and every damaged or wrong file is one clear error."""

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data import shards
from cktrain.data.shards import Shard, ShardWriter, TokenSource, dtype_for, open_source, read_raw, read_shard


def write(path: Path, ids, vocab_size=300, eos_id=0, text_bytes=7) -> Path:
    with ShardWriter(path, vocab_size, eos_id) as writer:
        writer.append(ids, text_bytes)
    return path


def patch(path: Path, offset: int, fmt: str, value) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(fmt, content, offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(300, "<u2"), (65536, "<u2"), (65537, "<u4"), (200_000, "<u4")]
)
def test_what_is_written_is_read(tmp_path, vocab_size, dtype):
    ids = [0, 5, vocab_size - 1]
    path = tmp_path / "train-00000.cktok"
    with ShardWriter(path, vocab_size, eos_id=5) as writer:
        writer.append(ids[:1], 10)
        writer.append(np.array(ids[1:]), 2)
        assert not path.exists()  # it appears whole or not at all
    shard = read_shard(path)
    assert shard.tokens.dtype == np.dtype(dtype) == dtype_for(vocab_size)
    assert shard.tokens[:].tolist() == ids
    assert (shard.vocab_size, shard.eos_id, shard.text_bytes) == (vocab_size, 5, 12)
    assert path.stat().st_size == 64 + 3 * np.dtype(dtype).itemsize
    assert list(tmp_path.iterdir()) == [path]


def test_the_header_is_what_the_format_says(tmp_path):
    path = write(tmp_path / "a.cktok", [1, 2, 3], vocab_size=300, eos_id=None, text_bytes=9)
    expected = b"CKTOKENS" + struct.pack("<IIIIQQqQQ", 1, 64, 2, 0, 3, 300, -1, 9, 0)
    assert path.read_bytes() == expected + struct.pack("<3H", 1, 2, 3)
    assert read_shard(path).eos_id is None


def test_a_shard_with_a_loss_mask(tmp_path):
    path = tmp_path / "train-00000.cktok"
    with ShardWriter(path, 300, eos_id=5, loss_mask=True) as writer:
        writer.append([1, 2, 3], 10, [False, True, False])
        writer.append([4, 5], 2)
    assert list(tmp_path.iterdir()) == [path]
    header = b"CKTOKENS" + struct.pack("<IIIIQQqQQ", 2, 64, 2, 1, 5, 300, 5, 12, 0)
    assert path.read_bytes() == header + struct.pack("<5H", 1, 2, 3, 4, 5) + bytes([0, 1, 0, 1, 1])
    source = TokenSource([read_shard(path), read_shard(write(tmp_path / "plain.cktok", [7, 8], eos_id=5))])
    assert source.has_loss_mask and len(source) == 7
    assert source.read(1, 6).tolist() == [2, 3, 4, 5, 7, 8]
    assert source.learned(1, 6).tolist() == [True, False, True, True, True, True]
    os.truncate(path, 64 + 5 * 2 + 2)
    with pytest.raises(ValueError, match="truncated, the header says 5 tokens and the file holds 4"):
        read_shard(path)


def test_a_shard_without_a_mask_learns_all(tmp_path):
    source = TokenSource([read_shard(write(tmp_path / "a.cktok", [1, 2, 3]))])
    assert not source.has_loss_mask and source.learned(0, 3).all()


@pytest.mark.parametrize("wrong", [-1, 300, 70000])
def test_an_id_beyond_the_vocabulary_is_not_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=rf"a.cktok: token id {wrong} does not fit a vocabulary of 300"):
        write(tmp_path / "a.cktok", [1, wrong])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write(tmp_path / "a.cktok", [1, 2])
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_damaged_shards(tmp_path):
    path = tmp_path / "a.cktok"

    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.cktok: the file is empty"):
        read_shard(path)
    path.write_bytes(b"CKTOKENS")
    with pytest.raises(ValueError, match="truncated, it holds 8 bytes and a header alone has 64"):
        read_shard(path)
    write(path, range(10))
    os.truncate(path, 64 + 7 * 2)
    with pytest.raises(ValueError, match="truncated, the header says 10 tokens and the file holds 7"):
        read_shard(path)
    os.truncate(path, 64 + 7 * 2 + 1)
    with pytest.raises(ValueError, match=r"truncated, the header says 10 tokens and the file holds 7\.5"):
        read_shard(path)
    write(path, range(10))
    with open(path, "ab") as file:
        file.write(b"1234")
    with pytest.raises(ValueError, match="too long, the header says 10 tokens and the file holds 12"):
        read_shard(path)
    write(path, range(10))
    patch(path, 0, "<8s", b"SOMEELSE")
    with pytest.raises(ValueError, match="starts with b'SOMEELSE', a shard starts with b'CKTOKENS'"):
        read_shard(path)
    write(path, range(10))
    patch(path, 8, "<I", 3)
    with pytest.raises(ValueError, match=r"format version 3, this cktrain reads up to 2\. Upgrade"):
        read_shard(path)
    patch(path, 8, "<I", 2)
    with pytest.raises(ValueError, match=r"damaged header .*loss mask 0 bytes"):
        read_shard(path)
    write(path, range(10))
    patch(path, 16, "<I", 3)
    with pytest.raises(ValueError, match=r"damaged header \(id size 3 bytes"):
        read_shard(path)
    write(path, [])
    with pytest.raises(ValueError, match="empty, it holds 0 tokens"):
        read_shard(path)
    with pytest.raises(ValueError, match="no such file"):
        read_shard(tmp_path / "missing.cktok")


def test_raw_ids(tmp_path):
    path = tmp_path / "ids.bin"
    np.array([1, 2, 65535], dtype="<u2").tofile(path)
    source = open_source(path, vocab_size=65536)
    assert source.read(0, 3).tolist() == [1, 2, 65535]
    assert (source.vocab_size, source.eos_id, source.text_bytes) == (None, None, None)

    with pytest.raises(ValueError, match=r"ids\.bin: 6 bytes is not a multiple of 4, the size of one uint32"):
        open_source(path, vocab_size=65537)
    assert len(open_source(path, vocab_size=65537, dtype="uint16")) == 3
    with pytest.raises(ValueError, match="does not say its dtype"):
        open_source(path)
    with pytest.raises(ValueError, match="dtype int64 are not read"):
        read_raw(path, np.int64)
    with pytest.raises(ValueError, match="a single file has no validation split"):
        open_source(path, "validation", vocab_size=300)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        open_source(path, vocab_size=300)
    with pytest.raises(ValueError, match="no such file or folder"):
        open_source(tmp_path / "nothing", vocab_size=300)


def test_a_folder_of_raw_files(tmp_path):
    np.array([1, 2, 3], dtype="<u4").tofile(tmp_path / "train.bin")
    assert open_source(tmp_path, "train", vocab_size=100_000).read(0, 3).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"holds neither dataset\.json nor val\.bin"):
        open_source(tmp_path, "validation", vocab_size=100_000)
    np.array([4], dtype="<u4").tofile(tmp_path / "val.bin")
    assert open_source(tmp_path, "validation", dtype=np.uint32).read(0, 1).tolist() == [4]


def test_a_folder_without_its_summary_is_not_complete(tmp_path):
    write(tmp_path / "train-00000.cktok", [1, 2])
    with pytest.raises(ValueError, match=r"shards but no dataset\.json, so it is not complete"):
        open_source(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 1, "spl')
    with pytest.raises(ValueError, match=r"dataset\.json: not valid JSON"):
        open_source(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 2, "splits": {}}')
    with pytest.raises(ValueError, match="version 2, this cktrain reads up to 1"):
        open_source(tmp_path)


def test_of_a_larger_vocabulary_only_ids_that_are_used_count(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHECKED_AT_ONCE", 2)
    path = write(tmp_path / "a.cktok", [1, 2, 298], vocab_size=300)
    assert len(open_source(path, vocab_size=300)) == 3
    assert len(open_source(path, vocab_size=320)) == 3  # a padded vocabulary is fine
    assert len(open_source(path, vocab_size=299)) == 3  # nobody uses 299
    with pytest.raises(
        ValueError, match=r"a\.cktok: token id 298 at position 2 is beyond the model's vocabulary of 298"
    ):
        open_source(path, vocab_size=298)


def test_shards_of_two_tokenizers_do_not_mix(tmp_path):
    one = read_shard(write(tmp_path / "a.cktok", [1, 2], vocab_size=300))
    other = read_shard(write(tmp_path / "b.cktok", [1, 2], vocab_size=400))
    with pytest.raises(ValueError, match=r"b\.cktok: vocabulary 400 .* has 300"):
        TokenSource([one, other])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.data())
def test_a_source_reads_across_shards(sizes, data):
    ids = np.arange(sum(sizes), dtype=np.uint16)
    parts = np.split(ids, np.cumsum(sizes)[:-1])
    source = TokenSource(
        [Shard(Path(f"{i}.bin"), part, text_bytes=len(part)) for i, part in enumerate(parts)]
    )
    assert len(source) == source.text_bytes == len(ids)
    start = data.draw(st.integers(0, len(ids)))
    count = data.draw(st.integers(0, len(ids) - start))
    read = source.read(start, count)
    assert read.dtype == np.int32
    assert read.tolist() == ids[start : start + count].tolist()


@pytest.mark.parametrize("wrong", [300, 2**31, 2**32 - 1])
def test_an_id_beyond_the_vocabulary_is_named_with_its_place(wrong):
    parts = [np.zeros(10, dtype=np.uint32), np.array([1, 2, 3, wrong, 5], dtype=np.uint32)]
    source = TokenSource([Shard(Path(f"train-{i}.bin"), part) for i, part in enumerate(parts)])
    source.check_ids(source.read(0, 13), 0, 300)
    with pytest.raises(
        ValueError, match=rf"train-1\.bin: token id {wrong} at position 3 .* vocabulary of 300"
    ):
        source.check_ids(source.read(8, 7), 8, 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": 3}, r"dataset\.json: splits: .*found 3"),
        ({"splits": {"train": {"shards": []}}}, r"dataset\.json: splits\.validation"),
        ({"version": "1"}, r"dataset\.json: version"),
        ({"version": 99}, "format version 99, this cktrain reads up to 1"),
        (
            {"splits": {"train": {"shards": [{"file": "../a.cktok"}]}, "validation": {"shards": []}}},
            "no name in its folder",
        ),
        (
            {
                "splits": {
                    "train": {"shards": [{"file": "a.cktok", "tokens": 3}]},
                    "validation": {"shards": []},
                }
            },
            r"a\.cktok: holds 2 tokens, and dataset\.json says 3",
        ),
        (
            {"splits": {"train": {"shards": [{"file": "b.cktok"}]}, "validation": {"shards": []}}},
            r"b\.cktok: no such file",
        ),
    ],
)
def test_a_summary_that_does_not_fit_is_named(tmp_path, change, message):
    write(tmp_path / "a.cktok", [1, 2])
    good = {
        "version": 1,
        "splits": {"train": {"shards": [{"file": "a.cktok", "tokens": 2}]}, "validation": {"shards": []}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(good))
    assert len(open_source(tmp_path)) == 2
    (tmp_path / "dataset.json").write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def packed(path: Path, row_length=4) -> Path:
    with ShardWriter(path, 300, 0, loss_mask=True, row_length=row_length) as writer:
        learned = [False, True, False, True, False, False, False, False]
        begins = [True, False, True, False, True, False, False, True]
        writer.append(range(8), 9, learned, begins)
    return path


def test_packed_rows_are_what_the_format_says(tmp_path):
    path = packed(tmp_path / "a.cktok")
    expected = b"CKTOKENS" + struct.pack("<IIIIQQqQQ", 2, 64, 2, 1, 8, 300, 0, 9, 4)
    expected += struct.pack("<8H", *range(8)) + bytes([2, 1, 2, 1, 2, 0, 0, 2])
    assert path.read_bytes() == expected
    source = TokenSource([read_shard(path)])
    assert source.row_length == 4 and source.has_loss_mask
    assert source.learned(0, 8).tolist() == [False, True, False, True, False, False, False, False]
    assert source.begins(1, 7).tolist() == [False, True, False, True, False, False, True]


def test_a_stream_has_no_borders(tmp_path):
    source = TokenSource([read_shard(write(tmp_path / "a.cktok", [1, 2, 3]))])
    assert source.row_length is None and not source.begins(0, 3).any() and source.learned(0, 3).all()


def test_rows_of_a_length_that_does_not_divide_the_tokens_are_refused(tmp_path):
    path = packed(tmp_path / "a.cktok")
    patch(path, 56, "<Q", 3)
    with pytest.raises(ValueError, match=r"damaged header .8 tokens are no packed rows of 3"):
        read_shard(path)


def test_shards_of_other_rows_do_not_go_together(tmp_path):
    shards = [read_shard(packed(tmp_path / "a.cktok", 4)), read_shard(packed(tmp_path / "b.cktok", 8))]
    with pytest.raises(ValueError, match=r"packed rows of 8 tokens, but .*a.cktok has packed rows of 4"):
        TokenSource(shards)
    with pytest.raises(ValueError, match=r"one stream, but .*a.cktok has packed rows of 4"):
        TokenSource([shards[0], read_shard(write(tmp_path / "c.cktok", [1, 2]))])
