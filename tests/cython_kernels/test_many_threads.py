"""How work is divided among 1 to 192 threads: pure functions, tested as such.

Shares are counted in the units that a thread takes whole: a grain of a range, a tile of a product. One unit more than the
others is a tenth of a share of ten; a product's last items have two tiles. So the largest share is at most 1.1 of the mean
wherever there are ten grains, or twenty tiles, for each thread, and every thread has work wherever it has a unit.
"""

from __future__ import annotations

import heapq

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cktrain.cython_kernels import _runtime

THREADS = st.integers(1, 192)
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
CACHES = st.sampled_from(
    [(256 << 10, 4 << 20), (512 << 10, 16 << 20), (1 << 20, 32 << 20), (2 << 20, 300 << 20)]
)
TILES = st.sampled_from([(6, 16), (14, 32), (4, 8), (32, 32)])
WORK_PER_THREAD = 32768
"""csrc/split.h: what a thread that is woken has to do, in elements of a pointwise op."""
MOST = 1.1
"""The largest share over the mean."""


@PROPERTY
@given(st.integers(0, 2**36), THREADS)
def test_no_thread_is_woken_for_less_than_it_costs(work: int, threads: int) -> None:
    team = _runtime.team_size(work, threads)
    assert 1 <= team <= threads
    assert team == 1 or work // team >= WORK_PER_THREAD
    assert team == threads or work // (team + 1) < WORK_PER_THREAD


@PROPERTY
@given(st.integers(1, 2**34), st.sampled_from([1, 2, 16, 64, 256, 1024]), THREADS)
def test_shares_of_a_range(n: int, grain: int, threads: int) -> None:
    """Norms, activations, rotary embeddings, cross-entropy, optimizers, casts and sums all split so."""
    sizes = [end - begin for begin, end in _runtime.split(n, grain, threads)]
    units = -(-n // grain)
    assert sum(sizes) == n
    if units >= threads:
        assert min(sizes) > 0
    if units >= 10 * threads:
        assert max(sizes) <= MOST * n / threads


def parts(total: int, unit: int, count: int) -> list[int]:
    """The units of each part of a range."""
    return [-(-(end - begin) // unit) for begin, end in _runtime.split(total, unit, count)]


@PROPERTY
@given(
    st.sampled_from([17, 64, 512, 768, 2048, 4096]),
    st.sampled_from([192, 576, 768, 2048, 4096, 32000]),
    st.sampled_from([192, 768, 2048, 4096]),
    TILES,
    THREADS,
    CACHES,
)
@example(2048, 768, 768, (14, 32), 187, (1 << 20, 32 << 20))
@example(768, 768, 2048, (14, 32), 173, (1 << 20, 32 << 20))
def test_shares_of_a_product(
    m: int, n: int, k: int, tile: tuple[int, int], threads: int, caches: tuple[int, int]
) -> None:
    """Together, whoever is free takes the next item of a block. Alone, parts differ by a tile either way: where packing a
    shared block would cost more than that.
    """
    mr, nr = tile
    down, across = _runtime.cut_gemm(m, n, k, mr, nr, 1, True, threads, *caches)
    if down:
        rows, columns = parts(m, mr, down), parts(n, nr, across)
        assert max(rows) - min(rows) <= 1 and max(columns) - min(columns) <= 1
        if min(sum(rows) // down, sum(columns) // across) >= 21:
            assert max(rows) * max(columns) <= MOST * sum(rows) * sum(columns) / threads
        return
    items = [tiles for _, tiles in _runtime.gemm_items(m, n, k, mr, nr, 1, threads, *caches)]
    shares = [0] * threads
    for tiles in items:
        heapq.heapreplace(shares, shares[0] + tiles)
    if sum(items) >= 20 * threads:
        assert min(shares) > 0
        assert max(shares) <= MOST * sum(items) / threads, shares
