"""A raw file of ids is read as what it is, or named: other programs' headers, other widths, other kinds of file."""

import gzip
import io
import os
import struct

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


def saved():
    buffer = io.BytesIO()
    np.save(buffer, IDS.astype(np.uint16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(), r"a numpy array \(\.npy\), not ids\. "),
        (gzip.compress(IDS.astype("<u2").tobytes(), mtime=0), "a gzip file.*gunzip"),
        (b"(\xb5/\xfd" + bytes(60), "a zstd file"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"PAR1\x15\x04" + bytes(60), "a Parquet file"),
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


def test_a_shard_under_another_name_is_a_shard(tmp_path):
    with ShardWriter(tmp_path / "a.cktok", 300, eos_id=0) as writer:
        writer.append([1, 2, 3], 3)
    (tmp_path / "a.cktok").rename(tmp_path / "a.bin")
    source = open_source(tmp_path / "a.bin", vocab_size=300)
    assert source.read(0, 3).tolist() == [1, 2, 3] and source.eos_id == 0


@pytest.mark.parametrize(
    ("code", "stored", "vocab", "message"),
    [
        (8, "<u2", 50257, None),
        (4, "<i4", 128_000, None),
        (4, "<i4", 50257, r"Megatron's a\.idx says that the ids are int32.* Set data.dtype: uint32"),
        (8, "<u2", 128_000, "the ids are uint16.* Set data.dtype: uint16"),
        (5, "<i8", 128_000, "the ids are int64.*astype"),
        (1, "u1", 256, "the ids are uint8"),
    ],
)
def test_megatron_s_index_says_the_type(tmp_path, code, stored, vocab, message):
    write(tmp_path / "a.bin", IDS % 256 if code == 1 else IDS, stored)
    (tmp_path / "a.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QB", 1, code) + bytes(50))
    if message is None:
        assert np.array_equal(open_source(tmp_path / "a.bin", vocab_size=vocab).read(0, 5000), IDS)
        return
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "a.bin", vocab_size=vocab)


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
