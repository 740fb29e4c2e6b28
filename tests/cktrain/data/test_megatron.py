"""Megatron's .bin and .idx, written here by its published layout: ids of every width, borders of documents, damage."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.data.loader import BatchLoader
from cktrain.data.shards import open_source

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
RNG = np.random.default_rng(5)


def write(folder, rows, kind=8, name="text_document", **changed):
    """PREFIX.bin and .idx of documents, each a list of sequences, each a list of ids; `changed` fields of the index."""
    sequences = [sequence for document in rows for sequence in document]
    dtype = np.dtype(CODES.get(kind, "<u2"))
    (folder / f"{name}.bin").write_bytes(b"".join(np.array(s, dtype).tobytes() for s in sequences))
    lengths = [len(sequence) for sequence in sequences]
    parts = {
        "magic": b"MMIDIDX\0\0",
        "version": struct.pack("<Q", 1),
        "code": struct.pack("<B", kind),
        "counts": struct.pack("<QQ", len(sequences), len(rows) + 1),
        "lengths": np.array(lengths, "<i4").tobytes(),
        "pointers": (np.cumsum([0, *lengths])[:-1] * dtype.itemsize).astype("<i8").tobytes(),
        "documents": np.cumsum([0, *map(len, rows)]).astype("<i8").tobytes(),
        "modes": b"",
    }
    (folder / f"{name}.idx").write_bytes(b"".join((parts | changed).values()))
    return folder / name


def some_documents(count=40, largest=100):
    return [
        [RNG.integers(1, largest, RNG.integers(1, 9)).tolist() for _ in range(RNG.integers(1, 4))]
        for _ in range(count)
    ]


def flat(documents):
    return [index for document in documents for sequence in document for index in sequence]


@pytest.mark.parametrize("code", CODES)
def test_the_index_says_the_type_and_any_of_the_three_names_is_understood(tmp_path, code):
    documents = some_documents()
    prefix = write(tmp_path, documents, code)
    for path in (prefix, prefix.with_suffix(".bin"), prefix.with_suffix(".idx"), tmp_path):
        source = open_source(path, vocab_size=300)
        assert source.read(0, len(source)).tolist() == flat(documents)
    with pytest.raises(
        ValueError, match=r"text_document\.bin: token id \d+ at position \d+ is beyond .* 3\D"
    ):
        open_source(prefix, vocab_size=3)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=3), min_size=1, max_size=12),
    st.data(),
)
def test_a_document_begins_where_its_first_sequence_does(tmp_path_factory, documents, data):
    ids = flat(documents)
    if not ids:
        return
    source = open_source(write(tmp_path_factory.mktemp("m"), documents), vocab_size=100)
    expected = np.zeros(len(ids) + 1, bool)
    place = 0
    for document in documents:
        expected[place] = True
        place += sum(map(len, document))
    start = data.draw(st.integers(0, len(ids)))
    count = data.draw(st.integers(0, len(ids) - start))
    assert np.array_equal(source.document_begins(start, count), expected[:-1][start : start + count])


def test_a_document_mask_needs_no_end_token_where_the_index_says_the_borders(tmp_path):
    documents = [[[1, 2, 3], [4]], [[5, 6]], [[7, 8, 9, 10, 11]]]
    source = open_source(write(tmp_path, documents), vocab_size=100)
    (batch,) = BatchLoader(source, 5, 2, 2, 0, shuffle=False, document_mask=True).micro_batches(0)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert batch.labels.tolist() == [[2, 3, 4, -100, 6], [-100, 8, 9, 10, 11]]
    assert batch.first.tolist() == [[0, 0, 0, 0, 4], [0, 1, 1, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]


def test_borders_by_the_index_and_by_an_end_token_give_one_mask(tmp_path):
    documents = [[[*sequence, 0] for sequence in document][:1] for document in some_documents(80)]
    write(tmp_path, documents)
    by_index = open_source(tmp_path / "text_document", vocab_size=100)
    np.array(flat(documents), "<u2").tofile(tmp_path / "raw.bin")
    by_token = open_source(tmp_path / "raw.bin", vocab_size=100, eos_id=0)
    assert by_index.has_documents and by_index.eos_id is None and by_token.eos_id == 0
    loaders = [BatchLoader(source, 11, 4, 4, 3, document_mask=True) for source in (by_index, by_token)]
    for consumed in range(0, 40, 4):
        (one,), (other,) = (loader.micro_batches(consumed) for loader in loaders)
        for name in ("ids", "labels", "positions", "first"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_two_files_are_one_stream_with_the_borders_of_both(tmp_path):
    first, second = [[[1, 2, 3]], [[4]]], [[[5, 6]], [[7]]]
    write(tmp_path, first, name="a_train")
    write(tmp_path, second, name="b_train")
    write(tmp_path, [[[9, 9, 9]]], name="c_valid")
    source = open_source(tmp_path, vocab_size=100)
    assert source.read(0, len(source)).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert source.document_begins(2, 4).tolist() == [False, True, True, False]
    assert open_source(tmp_path, "validation", vocab_size=100).read(0, 3).tolist() == [9, 9, 9]


DOCUMENTS = [[[1, 2, 3], [4]], [[5, 6]]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": struct.pack("<Q", 2)}, "version 2 of Megatron's index, and version 1 is read"),
        ({"magic": b"TNTIDX\0\0\0"}, "an index of an older Megatron"),
        ({"code": b"\7"}, "says that the ids are float32"),
        ({"code": b"\x63"}, "of an unknown type, code 99"),
        ({"code": b"\4"}, r"begins at byte 6 and has 1 ids, and the ones before end at byte 12"),
        ({"documents": b""}, r"truncated, it holds 70 bytes, and 3 sequences and 3 borders .* need 94"),
        ({"lengths": b"", "pointers": b"", "documents": b""}, "truncated, it holds 34 bytes"),
        ({"modes": b"\0\0\0"}, "of text and images"),
        ({"modes": bytes(8)}, "too long, it holds 102 bytes"),
        ({"lengths": np.array([3, 2, 2], "<i4").tobytes()}, "sequence 2 begins at byte 8 and has 2 ids"),
        ({"lengths": np.array([-3, 2, 2], "<i4").tobytes()}, "sequence 0 begins at byte 0 and has -3 ids"),
        (
            {"documents": np.array([0, 3, 2], "<i8").tobytes()},
            "document 2 begins with sequence 2, out of order",
        ),
        (
            {"documents": np.array([1, 2, 3], "<i8").tobytes()},
            "document 0 begins with sequence 1, out of order",
        ),
        ({"documents": np.array([0, 2, 2], "<i8").tobytes()}, "its documents end with sequence 2 of 3"),
        ({"counts": struct.pack("<QQ", 2**60, 3)}, "truncated, it holds 94 bytes"),
    ],
)
def test_a_damaged_index_is_named_with_the_place(tmp_path, changed, message):
    prefix = write(tmp_path, DOCUMENTS, **changed)
    with pytest.raises(ValueError, match=rf"text_document\.idx: .*{message}"):
        open_source(prefix, vocab_size=100)


def test_an_index_that_is_cut_in_its_header_and_ids_that_are_cut(tmp_path):
    prefix = write(tmp_path, DOCUMENTS)
    ids = prefix.with_suffix(".bin").read_bytes()
    for held, what in (
        (ids[:-1], "truncated, it holds 11 bytes"),
        (ids + b"\0", "too long, it holds 13 bytes"),
    ):
        prefix.with_suffix(".bin").write_bytes(held)
        with pytest.raises(
            ValueError, match=rf"\.bin: {what}, and the sequences of text_document\.idx have 12"
        ):
            open_source(prefix, vocab_size=100)
    prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0\1")
    with pytest.raises(ValueError, match="truncated, it holds 10 bytes and its header alone has 34"):
        open_source(prefix, vocab_size=100)


def test_a_dtype_that_contradicts_the_index(tmp_path):
    prefix = write(tmp_path, DOCUMENTS)
    assert len(open_source(prefix, vocab_size=100, dtype="uint16")) == 6
    with pytest.raises(ValueError, match=r"says that the ids are uint16, and data\.dtype says uint32"):
        open_source(prefix, vocab_size=100, dtype="uint32")
