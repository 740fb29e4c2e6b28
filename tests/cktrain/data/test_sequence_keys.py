"""Keys of sequences and rows: pure functions, all different, the same however the batch is divided."""

from __future__ import annotations

import numpy as np

from cktrain import cython_kernels
from cktrain.data.loader import BatchLoader
from cktrain.data.sequence_keys import mix, row_keys, sequence_keys
from cktrain.data.shards import open_source

ROWS, COLUMNS = 400, 300


def mask(keys: np.ndarray, p: float, first_column: int = 0) -> np.ndarray:
    """Which of ROWS x COLUMNS ones are kept."""
    out = np.empty((len(keys), COLUMNS), np.float32)
    cython_kernels.load().dropout(out, np.ones_like(out), keys, p, first_column)
    assert set(np.unique(out)) <= {np.float32(0), np.float32(1 / (1 - p))}
    return out > 0


def test_keys_are_splitmix64s():
    """The first outputs of the published generator for the seed 0, whose first counter is 1."""
    found = [f"{key:016x}" for key in mix(np.arange(1, 4, dtype=np.uint64)).tolist()]
    assert found == ["e220a8397b1dcdaf", "6e789e6aa1b965f4", "06c45d188009454f"]


def test_every_sequence_row_and_module_has_a_key_of_its_own():
    sequences = sequence_keys(3, 0, 50)
    assert len(set(sequences.tolist())) == 50
    np.testing.assert_array_equal(sequence_keys(3, 20, 10), sequences[20:30])
    assert not set(sequence_keys(4, 0, 50).tolist()) & set(sequences.tolist())
    rows = [row_keys(sequences, 16, f"model.layers.{i}.mlp") for i in range(3)]
    assert len(set(np.concatenate(rows).tolist())) > 3 * 50 * 16 - 5  # of 32 bits: one pair in 2^32 / n meets
    np.testing.assert_array_equal(
        row_keys(sequences[7:9], 16, "model.layers.1.mlp"), rows[1][7 * 16 : 9 * 16]
    )


def test_the_loader_gives_each_sequence_its_key_in_any_layout(tmp_path):
    (np.arange(2000) % 61).astype(np.uint16).tofile(tmp_path / "ids.bin")
    source = open_source(tmp_path / "ids.bin", "train", 61, "uint16")

    def keys(consumed: int, micro: int, batch: int, rank: int = 0, ranks: int = 1) -> list[int]:
        loader = BatchLoader(source, 8, micro, batch, 3, data_rank=rank, data_ranks=ranks)
        return [key for part in loader.micro_batches(consumed) for key in part.keys.tolist()]

    whole = sequence_keys(3, 0, 600).tolist()
    assert keys(0, 2, 8) == whole[:8]
    assert keys(8, 1, 8, 0, 2) + keys(8, 1, 8, 1, 2) == whole[8:16]
    assert keys(8, 4, 4) == whole[8:12]
    assert keys(504, 1, 4) == whole[504:508]  # the third pass over the data draws anew


def test_the_rate_is_p_and_no_rows_or_columns_go_together():
    for p in (0.05, 0.5, 0.9):
        rows = row_keys(sequence_keys(1, 0, ROWS // 20), 20, "linear")
        kept = mask(rows, p)
        deviation = np.sqrt(p * (1 - p) / kept.size)
        assert abs(kept.mean() - (1 - p)) < 5 * deviation
        for axis, count in ((0, ROWS), (1, COLUMNS)):  # every column and every row
            assert np.abs(kept.mean(axis=axis) - (1 - p)).max() < 5 * np.sqrt(p * (1 - p) / count)
        noise = (kept - kept.mean()) / kept.std()
        other = mask(row_keys(sequence_keys(1, 0, ROWS // 20), 20, "another"), p)
        beside = (other - other.mean()) / other.std()
        for a, b in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:]), (noise, beside)):
            assert abs((a * b).mean()) < 5 / np.sqrt(a.size)
        np.testing.assert_array_equal(mask(rows, p, 100)[:, :200], kept[:, 100:])
