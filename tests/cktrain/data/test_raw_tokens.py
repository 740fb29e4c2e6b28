"""A raw file of ids is read as what it is, or named: other programs' headers, other widths, other kinds of file."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from cktrain.data.shards import ShardWriter, open_source, read_raw
from cktrain.data.token_file import TokenFile

RNG = np.random.default_rng(3)
IDS = RNG.integers(0, 50257, 5000)
WIDE = RNG.integers(0, 128_000, 5000)


def write(path, ids, dtype, head=b""):
    path.write_bytes(head + np.asarray(ids).astype(dtype).tobytes())
    return path


def llm_c(magic, version, count):
    return struct.pack("<iii", magic, version, count).ljust(1024, b"\0")


@pytest.mark.parametrize(
    ("magic", "version", "ids", "dtype", "vocab"),
    [
        (20240520, 1, IDS, "<u2", 50257),
        (20240801, 7, WIDE, "<u4", 128_000),
        (20240520, 1, IDS, "<u2", 128_000),
    ],
)
def test_llm_c_s_header_is_not_trained(tmp_path, magic, version, ids, dtype, vocab):
    path = write(tmp_path / "a.bin", ids, dtype, llm_c(magic, version, len(ids)))
    source = open_source(path, vocab_size=vocab)
    assert np.array_equal(source.read(0, len(source)), ids)
    with pytest.raises(ValueError, match=r"header is llm\.c's for uint\d\d ids, and data\.dtype says"):
        open_source(path, vocab_size=vocab, dtype="uint32" if dtype == "<u2" else "uint16")
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(
        ValueError, match=r"header is llm\.c's, of version \d and 5,000 ids, and it holds 4,9"
    ):
        open_source(path, vocab_size=vocab)


@pytest.mark.parametrize(
    ("ids", "dtype", "options", "message"),
    [
        (
            IDS,
            "<i4",
            {"vocab_size": 50257},
            "look like int32 and are read as uint16.* Set data.dtype: uint32",
        ),
        (IDS, "<i8", {"vocab_size": 50257}, "look like int64 and are read as uint16.*astype"),
        (WIDE, "<i8", {"vocab_size": 128_000}, "look like int64 and are read as uint32"),
        (WIDE, "<i4", {"vocab_size": 128_000, "dtype": "uint16"}, "look like int32 and are read as uint16"),
        (WIDE, "<i8", {"vocab_size": 128_000, "dtype": "uint16"}, "look like int64 and are read as uint16"),
        (np.where(IDS < 9000, -100, IDS), "<i4", {"vocab_size": 65536}, "look like int32"),
        (IDS[:40], "<i4", {"vocab_size": 50257}, "look like int32"),
        (IDS % 300, ">u2", {"vocab_size": 300}, "beyond .* They look big-endian.*'>u2'"),
        (WIDE, ">u4", {"vocab_size": 128_000}, "They look big-endian"),
        (IDS, "<u2", {"vocab_size": 50257, "dtype": "uint32"}, "look like uint16: set data.dtype: uint16"),
        (
            IDS,
            "<u2",
            {"vocab_size": 300},
            r"token id \d+ at position 0 is beyond .* vocabulary of 300, and so are 9\d%",
        ),
        (IDS / 3, "<f4", {"vocab_size": 300}, "is beyond the model's vocabulary"),
    ],
)
def test_ids_of_another_type_are_found(tmp_path, ids, dtype, options, message):
    path = write(tmp_path / "a.bin", ids, dtype)
    with pytest.raises(ValueError, match=rf"a\.bin: .*{message}"):
        open_source(path, **options)


@pytest.mark.parametrize(
    ("ids", "dtype", "vocab"),
    [
        (IDS, "<u2", 50257),
        (IDS % 2, "<u2", 300),
        (np.arange(5000) % 256, "<u2", 256),
        (np.zeros(5000), "<u2", 300),
        (np.repeat(IDS, 2), "<u2", 50257),
        (IDS, "<u4", 128_000),
        (WIDE, "<u4", 128_000),
        (np.tile([7, 0], 10), "<u2", 300),  # too few to tell
        ([35615, 8, 300], "<u2", 50257),  # the bytes of gzip's sign
        ([0xFEFF, 5, 9], "<u2", 65536),
    ],
)
def test_ids_that_are_right_are_read(tmp_path, ids, dtype, vocab):
    source = open_source(write(tmp_path / "a.bin", ids, dtype), vocab_size=vocab)
    assert np.array_equal(source.read(0, len(source)), np.asarray(ids))


def test_a_file_that_was_allocated_and_not_written_is_told(tmp_path, caplog):
    open_source(write(tmp_path / "a.bin", np.zeros(5000), "<u2"), vocab_size=300)
    assert "ids that were looked at are 0. Was it written" in caplog.text
    caplog.clear()
    open_source(write(tmp_path / "b.bin", IDS, "<u2"), vocab_size=50257)
    assert not caplog.text


def test_a_few_ids_beyond_the_vocabulary_are_told_where_they_are_met(tmp_path):
    ids = IDS % 300
    ids[17] = 999
    assert len(open_source(write(tmp_path / "a.bin", ids, "<u2"), vocab_size=300)) == 5000


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4", "<u4", "<i8", "u1"])
def test_an_array_that_numpy_saved_says_its_type(tmp_path, dtype):
    ids = IDS % 200 if dtype == "u1" else IDS
    np.save(tmp_path / "a.npy", ids.astype(dtype))
    source = open_source(tmp_path / "a.npy", vocab_size=50257)
    assert np.array_equal(source.read(0, len(source)), ids)
    with pytest.raises(ValueError, match=r"token id \d+ at position \d+ is beyond .*and so are \d+%"):
        open_source(tmp_path / "a.npy", vocab_size=100)
    if dtype != "<u4":
        with pytest.raises(
            ValueError, match=r"header is numpy's for u?int\d+ ids, and data\.dtype says uint32"
        ):
            open_source(tmp_path / "a.npy", vocab_size=50257, dtype="uint32")
    os.truncate(tmp_path / "a.npy", (tmp_path / "a.npy").stat().st_size - 8)
    with pytest.raises(ValueError, match=r"a\.npy: its header says 5,000 ids of u?int\d+, and it holds 4,99"):
        open_source(tmp_path / "a.npy", vocab_size=50257)


def test_what_olmo_core_calls_npy_are_ids_without_a_header(tmp_path):
    path = write(tmp_path / "part-0.npy", WIDE, "<u4")
    assert np.array_equal(open_source(path, vocab_size=128_000).read(0, 5000), WIDE)
    with pytest.raises(ValueError, match=r"look like int32 and are read as uint16"):
        open_source(path, vocab_size=128_000, dtype="uint16")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((7, 3), np.uint16), r"a numpy array of 7 x 3, and ids are one stream.*reshape\(-1\)"),
        (np.zeros(7), "a numpy array of float64, and ids are integers"),
        (np.zeros(0, np.uint16), "empty, it holds 0 ids"),
        (np.array(7, np.uint16), "a numpy array of no axis"),
    ],
)
def test_an_array_that_is_no_stream_of_ids(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.npy", vocab_size=300)


def test_an_array_of_objects_and_a_meta_pkl_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.array([Bomb(), 1], dtype=object))
    with pytest.raises(ValueError, match="a numpy array of Python objects, which only unpickling reads"):
        open_source(tmp_path / "a.npy", vocab_size=300)
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    write(folder / "train.bin", IDS, "<u2")
    (folder / "meta.pkl").write_bytes(pickle.dumps(Bomb()))
    assert len(open_source(folder, vocab_size=50257)) == 5000
    assert not (tmp_path / "exploded").exists()
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert (tmp_path / "exploded").exists()  # so that the two above could have failed


@pytest.mark.parametrize(
    "head", [b"\x93NUMPY", b"\x93NUMPY\x01\0\x10\0{'descr': '<u2', ", b"\x93NUMPY\x09\0" + bytes(60)]
)
def test_a_damaged_header_of_numpy(tmp_path, head):
    (tmp_path / "a.npy").write_bytes(head)
    with pytest.raises(ValueError, match=r"a\.npy: damaged header of a numpy array"):
        open_source(tmp_path / "a.npy", vocab_size=300)


def test_ids_that_no_vocabulary_has_are_no_other_ids(tmp_path):
    ids = IDS.astype(np.int64)
    ids[4321] = 2**32 + 5  # 5 in 32 bits
    np.save(tmp_path / "a.npy", ids)
    source = open_source(tmp_path / "a.npy", vocab_size=50257)
    with pytest.raises(ValueError, match=r"a\.npy: token id 4294967301 at position 4,321 is none"):
        source.read(4000, 1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(IDS.astype("<u2").tobytes(), mtime=0), "a gzip file.*gunzip"),
        (b"(\xb5/\xfd" + bytes(60), "a zstd file"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (
            b"PAR1\x15\x04" + bytes(60),
            r"a Parquet file, not ids\. It is read by: cktrain data prepare .*train\.bin OUT",
        ),
        (b"GGUF\x03\0\0\0" + bytes(60), "a GGUF model"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9999\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (("words of é text\n" * 9).encode(), "text, not ids.*cktrain data prepare"),
        (b'{"text": "hello", "n": 1}\n' * 9, "text, not ids"),
    ],
)
def test_other_files_named_as_ids(tmp_path, content, message):
    (tmp_path / "train.bin").write_bytes(content)
    for path in (tmp_path, tmp_path / "train.bin"):
        with pytest.raises(ValueError, match=rf"train\.bin: {message}"):
            open_source(path, vocab_size=50257)


def test_an_arrow_file_given_as_ids(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"\xff\xff\xff\xff\x10\x01\0\0" + bytes(60))
    with pytest.raises(ValueError, match=r"a\.arrow: an Arrow stream, or binary, not ids\. .*data prepare"):
        open_source(tmp_path / "a.arrow", vocab_size=50257)


def test_a_shard_under_another_name_is_a_shard(tmp_path):
    with ShardWriter(tmp_path / "a.cktok", 300, eos_id=0) as writer:
        writer.append([1, 2, 3], 3)
    (tmp_path / "a.cktok").rename(tmp_path / "a.bin")
    source = open_source(tmp_path / "a.bin", vocab_size=300)
    assert source.read(0, 3).tolist() == [1, 2, 3] and source.eos_id == 0


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    source = open_source(write(tmp_path / "a.bin", IDS, "<u2"), vocab_size=50257)
    os.truncate(tmp_path / "a.bin", 2000)
    assert np.array_equal(source.read(0, 1000), IDS[:1000])
    with pytest.raises(ValueError, match=r"a\.bin: ends at byte 2,000, and had 5,000 ids when it was opened"):
        source.read(990, 20)


def test_a_disk_that_fails_is_named(tmp_path, monkeypatch):
    source = open_source(write(tmp_path / "a.bin", IDS, "<u2"), vocab_size=50257)

    def fails(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(ValueError, match=r"a\.bin: cannot be read at byte 20 \(Input/output error\)"):
        source.read(10, 5)


def test_too_many_open_files_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.bin", IDS, "<u2")

    def fails(*arguments):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(ValueError, match=r"a\.bin: cannot be opened \(Too many open files\).*ulimit -n"):
        TokenFile(path, np.dtype("<u2"), 0, 5)


def test_files_are_closed_with_their_source(tmp_path):
    path = write(tmp_path / "a.bin", IDS, "<u2")
    before = len(os.listdir("/proc/self/fd"))
    source = read_raw(path, "uint16")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_file_of_ids(tmp_path):
    os.mkfifo(tmp_path / "pipe.bin")
    for path in (tmp_path / "pipe.bin", "/dev/zero"):
        with pytest.raises(ValueError, match="no file of ids, but a folder, pipe or device"):
            open_source(path, vocab_size=300)
