"""Batches of a mixture: each part's own order by its shares, the same whatever the ranks and the place resumed at."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.data.loader import BatchLoader
from cktrain.data.mixed_loader import MixedLoader, check_alike, mixed_fingerprint
from cktrain.data.mixture import Mixture, Stage
from cktrain.data.shards import Shard, TokenSource

T = 4


def stream(windows, begin, eos_id=None, **more):
    """A source whose ids say which part and place they are."""
    ids = begin + np.arange(windows * T + 1, dtype=np.uint32)
    return TokenSource([Shard(Path(f"{begin}.bin"), ids, None, eos_id, **more)])


def sources(*windows):
    return {f"part{i}": stream(count, 10_000 * (i + 1)) for i, count in enumerate(windows)}


def mixture(*weights, until=None, then=None):
    return Mixture([Stage(weights)] if until is None else [Stage(weights, until), Stage(then)])


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)
        assert np.array_equal(a.keys, b.keys)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**63),
    st.lists(st.floats(0.01, 10), min_size=2, max_size=4),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(0, 200),
    st.booleans(),
)
def test_ranks_together_are_one_rank_wherever_it_goes_on(seed, weights, ranks, micro, consumed, shuffle):
    parts, mix = sources(*range(3, 3 + len(weights))), mixture(*weights, until=50, then=weights[::-1])
    size = 4 * micro
    whole = MixedLoader(parts, mix, T, micro, size, seed, shuffle=shuffle)
    shares = [
        MixedLoader(parts, mix, T, micro, size, seed, shuffle=shuffle, data_rank=rank, data_ranks=ranks)
        for rank in range(ranks)
    ]
    same(whole.micro_batches(consumed), [batch for each in shares for batch in each.micro_batches(consumed)])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20), st.sampled_from([2, 3, 6]))
def test_a_run_that_goes_on_reads_what_one_that_never_stopped_reads(seed, step, size):
    parts, mix = sources(5, 7, 3), mixture(0.5, 0.3, 0.2, until=31, then=(0.0, 1.0, 2.0))
    with (
        MixedLoader(parts, mix, T, 1, 2, seed) as never_stopped,
        MixedLoader(parts, mix, T, 1, size, seed) as new,
    ):
        straight = [batch.ids[0].tolist() for at in range(0, 100, 2) for batch in never_stopped.batch(at)]
        resumed = [batch.ids[0].tolist() for batch in new.batch(step)]  # with another batch size, too
    assert resumed == straight[step : step + size]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 0.95))
def test_each_part_goes_through_epochs_of_its_own(seed, first, second, weight):
    parts = sources(first, second)
    loader = MixedLoader(parts, mixture(weight, 1 - weight), T, 1, 10, seed)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for consumed in range(0, 200, 10):
        for batch in loader.micro_batches(consumed):
            begin = int(batch.ids[0, 0])
            seen[begin // 10_000 - 1].append((begin % 10_000) // T)
    for part, windows in ((0, first), (1, second)):
        whole = len(seen[part]) // windows * windows
        for epoch in np.array(seen[part][:whole], int).reshape(-1, windows):
            assert np.array_equal(np.sort(epoch), np.arange(windows))
    counts = loader.mixture.counts(200)
    assert [len(seen[0]), len(seen[1])] == counts
    assert loader.shares(200) == {"part0": counts[0] / 200, "part1": counts[1] / 200}


def test_parts_of_one_length_come_in_orders_of_their_own():
    loader = MixedLoader(sources(64, 64), mixture(1.0, 1.0), T, 1, 128, seed=5)
    rows = [window for _, window in loader.sequences(0)]
    assert rows[::2] != rows[1::2]


def test_a_part_does_not_notice_what_is_mixed_with_it():
    """Its n-th window is the same in any mixture in which it stands at the same place."""

    def of_first(weights, others):
        loader = MixedLoader({**sources(20), **others}, mixture(*weights), T, 1, 100, seed=8)
        return [window for source, window in loader.sequences(0) if source is loader.sources[0]]

    one = of_first((1.0,), {})
    other = of_first((0.3, 0.7), {"b": stream(9, 70_000)})
    assert 20 < len(other) < 40 and one[: len(other)] == other


def test_a_document_mask_holds_in_every_part():
    ids = np.array([1, 2, 0, 3, 4, 0, 5, 6, 7] * 3, np.uint32)
    parts = {
        name: TokenSource([Shard(Path(name), ids + add * (ids > 0), None, 0)])
        for name, add in (("a", 0), ("b", 10))
    }
    mixed = MixedLoader(parts, mixture(1.0, 1.0), T, 2, 2, 0, document_mask=True, shuffle=False)
    (batch,) = mixed.micro_batches(0)
    for row, name in enumerate("ab" if batch.ids[0, 0] == 1 else "ba"):
        (alone,) = BatchLoader(parts[name], T, 1, 1, 0, shuffle=False, document_mask=True).micro_batches(0)
        for key in ("ids", "labels", "first", "positions"):
            assert np.array_equal(getattr(batch, key)[row], getattr(alone, key)[0])


def test_parts_that_cannot_be_mixed():
    packed = stream(4, 5, loss_mask=np.zeros(17, np.uint8))
    packed.row_length = T
    for other, message in (
        (packed, r"b is packed rows of 4 tokens, and a is one stream"),
        (stream(4, 5, eos_id=7), "documents of b end with id 7, and those of a with 3"),
        (stream(4, 10_000, eos_id=3), "a and b hold the same tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alike({"a": stream(4, 10_000, eos_id=3), "b": other})
    with pytest.raises(ValueError, match=r"b: 1 tokens are no sequence of data\.sequence_length 4"):
        MixedLoader({"a": stream(4, 10_000), "b": stream(0, 5)}, mixture(1.0, 1.0), T, 1, 1, 0)
    with pytest.raises(ValueError, match="a document mask needs to know where documents end"):
        MixedLoader(
            {"a": stream(4, 10_000, eos_id=3), "b": stream(4, 5)},
            mixture(1.0, 1.0),
            T,
            1,
            1,
            0,
            document_mask=True,
        )


def test_the_fingerprint_is_of_all_parts_in_their_order():
    a, b = stream(4, 10_000), stream(4, 20_000)
    found = [mixed_fingerprint(dict(enumerate(parts))) for parts in ((a,), (b,), (a, b), (b, a))]
    assert len(set(found)) == 4 and all(len(each) == 16 for each in found)
