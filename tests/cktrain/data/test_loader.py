"""Batches are a pure function of seed and sequences consumed, whatever the ranks and the place resumed at."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.data.loader import BatchLoader, ValidationBatches, document_bounds
from cktrain.data.shards import Shard, TokenSource


def stream(length, eos_id=None, ids=None, shards=1):
    """A source whose ids are their positions, unless given."""
    ids = np.arange(length) if ids is None else np.asarray(ids)
    parts = np.array_split(ids.astype(np.uint32), shards)
    return TokenSource(
        [Shard(Path(f"train-{i}.bin"), part, None, eos_id) for i, part in enumerate(parts) if len(part)]
    )


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("ids", "labels", "positions", "first"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or np.array_equal(x, y)


def test_shapes_and_targets():
    loader = BatchLoader(stream(1000), 8, 2, 6, seed=1)
    batches = loader.micro_batches(0)
    assert len(batches) == 3
    for batch in batches:
        assert batch.ids.shape == batch.labels.shape == (2, 8)
        assert batch.ids.dtype == batch.labels.dtype == np.int32
        assert batch.ids.flags.c_contiguous and batch.labels.flags.c_contiguous
        assert np.array_equal(batch.labels, batch.ids + 1)  # the ids are positions
        assert batch.first is None and batch.positions is None
    starts = np.concatenate([batch.ids[:, 0] for batch in batches])
    assert np.array_equal(starts, loader.rows(0) * 8)


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 6), st.integers(1, 4))
def test_sequential_windows_cover_the_stream_and_wrap(length, sequence_length, rows, shards):
    windows = (length - 1) // sequence_length
    if windows == 0:
        return
    loader = BatchLoader(stream(length, shards=shards), sequence_length, 1, rows, seed=0, shuffle=False)
    steps = -(-2 * windows // rows)
    tokens = np.concatenate([b.ids for step in range(steps) for b in loader.micro_batches(step * rows)])
    once = np.arange(windows * sequence_length)
    assert np.array_equal(tokens.ravel()[: 2 * len(once)], np.tile(once, 2))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**63))
def test_shuffled_epochs_have_every_window_once(windows, rows, seed):
    loader = BatchLoader(stream(windows * 4 + 1), 4, 1, rows, seed)
    steps = -(-3 * windows // rows)
    order = np.concatenate([loader.rows(step * rows) for step in range(steps)])[: 3 * windows]
    for epoch in order.reshape(3, windows):
        assert np.array_equal(np.sort(epoch), np.arange(windows))


def test_epochs_differ_and_seeds_differ():
    rows = [
        BatchLoader(stream(401), 4, 1, 100, seed).rows(consumed) for seed in (1, 2) for consumed in (0, 100)
    ]
    assert len({tuple(row) for row in rows}) == 4


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_ranks_together_are_one_rank(ranks, micro, accumulation, consumed, shuffle):
    source = stream(203, eos_id=7, ids=np.arange(203) % 11)
    size = ranks * micro * accumulation
    whole = BatchLoader(source, 5, micro, size, 3, shuffle, document_mask=True)
    parts = [BatchLoader(source, 5, micro, size, 3, shuffle, rank, ranks, True) for rank in range(ranks)]
    same(whole.micro_batches(consumed), [batch for part in parts for batch in part.micro_batches(consumed)])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.booleans())
def test_resume_at_any_step_gives_the_same_batches(step, shuffle):
    source = stream(500)
    with (
        BatchLoader(source, 7, 2, 4, 9, shuffle) as never_stopped,
        BatchLoader(source, 7, 2, 4, 9, shuffle) as new,
    ):
        for earlier in range(1, step):
            never_stopped.batch(4 * earlier)
        for later in range(4 * step, 4 * step + 12, 4):
            expected = never_stopped.batch(later)
            same(expected, new.batch(later))
            same(expected, new.micro_batches(later))


def test_the_wait_is_counted_and_close_is_safe():
    loader = BatchLoader(stream(100), 4, 1, 1, 0)
    assert loader.wait_seconds == 0
    loader.close()
    loader.batch(0)
    assert loader.wait_seconds > 0
    loader.close()


def test_an_id_beyond_the_vocabulary_reaches_the_caller():
    ids = np.zeros(101)
    ids[70] = 999
    loader = BatchLoader(stream(101, ids=ids, shards=2), 4, 1, 1, 0, shuffle=False, vocab_size=50)
    with loader:
        for consumed in range(17):
            loader.batch(consumed)
        # 101 ids in two shards of 51 and 50: 70 is the 19th of the second.
        message = r"train-1\.bin: token id 999 at position 19 is beyond the model's vocabulary of 50"
        with pytest.raises(ValueError, match=message):
            loader.batch(17)


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"global_batch_size 10 .* micro_batch_size 2 x 2 data ranks = 4"):
        BatchLoader(stream(100), 4, 2, 10, 0, data_ranks=2)
    with pytest.raises(ValueError, match=r"train-0\.bin: 8 tokens are fewer than the 9 that one sequence"):
        BatchLoader(stream(8), 8, 1, 1, 0)
    assert BatchLoader(stream(9), 8, 1, 1, 0).windows == 1
    with pytest.raises(ValueError, match="a document mask needs to know where documents end"):
        BatchLoader(stream(100), 8, 1, 1, 0, document_mask=True)
    with pytest.raises(ValueError, match="1 token gives nothing to predict"):
        ValidationBatches(stream(1), 4, 1, 1)


def test_document_bounds_by_hand():
    tokens = np.array([[5, 5, 0, 6, 0, 0, 7, 7], [0, 1, 1, 1, 1, 1, 1, 0]], dtype=np.int32)
    first, positions = document_bounds(tokens, eos_id=0)
    assert first.tolist() == [[0, 0, 0, 3, 3, 5, 6, 6], [0, 1, 1, 1, 1, 1, 1, 1]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert first.dtype == positions.dtype == np.int32


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_document_bounds_are_what_a_loop_finds(row):
    first, positions = document_bounds(np.array([row], dtype=np.int32), eos_id=0)
    start = 0
    for index, token in enumerate(row):
        assert first[0, index] == start and positions[0, index] == index - start
        if token == 0:
            start = index + 1


def test_the_mask_is_on_the_batch():
    source = stream(100, eos_id=3, ids=np.arange(100) % 5)
    (batch,) = BatchLoader(source, 10, 2, 2, 0, shuffle=False, document_mask=True).micro_batches(0)
    expected = document_bounds(batch.ids, 3)
    assert np.array_equal(batch.first, expected[0]) and np.array_equal(batch.positions, expected[1])
    assert batch.first.tolist()[0] == [0, 0, 0, 0, 4, 4, 4, 4, 4, 9]
    assert batch.labels.tolist()[0] == [1, 2, 3, -100, 0, 1, 2, 3, -100, 0]


@given(st.integers(2, 200), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
def test_the_whole_split_has_every_token_but_the_first_once(length, sequence_length, micro, ranks):
    source = stream(length)
    ranks_batches = [
        list(ValidationBatches(source, sequence_length, micro, micro * ranks, None, rank, ranks))
        for rank in range(ranks)
    ]
    assert len({len(batches) for batches in ranks_batches}) == 1  # collectives need as many on each rank
    targets = np.concatenate([b.labels.ravel() for batches in ranks_batches for b in batches])
    tokens = np.concatenate([b.ids.ravel() for batches in ranks_batches for b in batches])
    assert all(b.ids.shape == (micro, sequence_length) for batches in ranks_batches for b in batches)
    valid = targets != -100
    assert np.array_equal(np.sort(targets[valid]), np.arange(1, length))
    assert np.array_equal(tokens[valid] + 1, targets[valid])


@given(st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_the_first_batches_are_the_same_windows_on_any_ranks(batches, ranks):
    source = stream(201)
    found = []
    for rank in range(ranks):
        for batch in ValidationBatches(source, 5, 2, 8, batches, rank, ranks):
            found += batch.labels[batch.labels != -100].tolist()
    assert sorted(found) == list(range(1, 1 + min(200, batches * 8 * 5)))


def test_a_validation_split_shorter_than_a_sequence_is_padded():
    (batch,) = ValidationBatches(stream(4, eos_id=1), 6, 1, 1, document_mask=True)
    assert batch.ids.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert batch.labels.tolist() == [[1, -100, 3, -100, -100, -100]]  # 2 begins a document
    assert batch.first.tolist() == [[0, 0, 2, 2, 2, 2]]


def masked(ids, learned, shards=2):
    """A source with a loss mask on its first shard alone: the tokens of the others are all learned."""
    parts, masks = np.array_split(np.asarray(ids, np.uint32), shards), np.array_split(learned, shards)
    return TokenSource(
        [
            Shard(Path(f"{i}.cktok"), part, None, 3, 100, mask.astype(np.uint8) if i == 0 else None)
            for i, (part, mask) in enumerate(zip(parts, masks, strict=True))
        ]
    )


def test_tokens_that_are_only_read_are_no_labels():
    """The mask is of the token that is predicted, not of the one before it."""
    learned = np.array([1, 0, 1, 0, 0, 1, 0, 0, 0, 0], bool)
    source = masked(np.arange(10), learned)
    (batch,) = BatchLoader(source, 8, 1, 1, 0, shuffle=False).micro_batches(0)
    assert batch.ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.labels.tolist() == [[-100, 2, -100, -100, 5, 6, 7, 8]]
    (batch,) = ValidationBatches(source, 12, 1, 1)
    assert batch.labels.tolist() == [[-100, 2, -100, -100, 5, 6, 7, 8, 9, -100, -100, -100]]


def test_a_loss_mask_and_a_document_mask_both_take_labels():
    source = masked([0, 1, 2, 3, 4, 5, 6, 7, 0, 0], np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 1], bool), shards=1)
    (batch,) = BatchLoader(source, 8, 1, 1, 0, shuffle=False, document_mask=True).micro_batches(0)
    assert batch.labels.tolist() == [[1, -100, 3, -100, 5, 6, 7, 0]]
    assert batch.first.tolist() == [[0, 0, 0, 0, 4, 4, 4, 4]]


def test_a_mask_that_learns_all_changes_no_batch():
    ids = np.arange(50)
    same(
        BatchLoader(masked(ids, np.ones(50, bool)), 6, 1, 3, 1).micro_batches(3),
        BatchLoader(stream(50, eos_id=3), 6, 1, 3, 1).micro_batches(3),
    )


def packed_rows(rows=3, length=6):
    """Each sequence: a row of 4 tokens, of which the last 2 are labels, and one of 2 with the last a label."""
    ids = np.arange(10, 10 + rows * length).astype(np.uint32)
    mask = np.tile(np.array([2, 0, 1, 1, 2, 1], np.uint8), rows)
    return TokenSource([Shard(Path("train-00000.cktok"), ids, 300, 0, 9, mask, length)])


def test_packed_rows_are_windows_with_borders():
    loader = BatchLoader(packed_rows(), 6, 1, 3, seed=0, shuffle=False)
    assert loader.windows == 3
    for index, batch in enumerate(loader.micro_batches(0)):
        ids = 10 + 6 * index + np.arange(6)
        assert batch.ids.tolist() == [ids.tolist()]
        assert batch.labels.tolist() == [[-100, ids[2], ids[3], -100, ids[5], -100]]
        assert batch.first.tolist() == [[0, 0, 0, 0, 4, 4]]
        assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1]]
        assert {a.dtype for a in (batch.ids, batch.labels, batch.first, batch.positions)} == {
            np.dtype(np.int32)
        }


def test_validation_has_every_packed_row_once():
    batches = list(ValidationBatches(packed_rows(), 6, 2, 2))
    assert [int((batch.labels != -100).sum()) for batch in batches] == [6, 3]
    assert batches[1].labels[1].tolist() == [-100] * 6  # padding to the full shape


def test_the_sequence_length_is_that_of_the_packed_rows():
    with pytest.raises(ValueError, match=r"packed for sequences of 6 tokens, and data.sequence_length is 8"):
        BatchLoader(packed_rows(), 8, 1, 1, seed=0)
