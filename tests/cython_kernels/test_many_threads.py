"""How work is divided among 1 to 192 threads, by its pure functions; how often the threads of a call wait for each other.

Shares are counted in the units that a thread takes whole: a grain of a range, a tile of a product or of attention. One unit
more than the others is a tenth of a share of ten; on few threads a product's last items have two tiles. So the largest
share is at most 1.1 of the mean wherever there are ten units for each thread (of a product on few threads twenty), and
every thread has work wherever it has a unit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from case import Case
from cases import CASES
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from cktrain import cython_kernels
from cktrain.cython_kernels import _runtime

THREADS = st.integers(1, 192)
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
CACHES = st.sampled_from(
    [(256 << 10, 4 << 20), (512 << 10, 16 << 20), (1 << 20, 32 << 20), (2 << 20, 300 << 20)]
)
TILES = st.sampled_from([(6, 16), (14, 32), (4, 8), (32, 32)])
WORK_PER_THREAD = 32768
"""csrc/split.h: what a thread that is woken has to do, in elements of a pointwise op."""
MANY_THREADS = 8
"""csrc/gemm_plan.h: above so many a product's last items have one tile."""
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
    if sum(items) >= (10 if threads > MANY_THREADS else 20) * threads:
        assert min(shares) > 0
        assert max(shares) <= MOST * sum(items) / threads, shares


# ---------------------------------------------------------------------------------------------- attention

BLOCK_TILES = 4
"""csrc/attention_plan.h: tiles of an item at most."""
PAIRS = st.sampled_from([1, 2, 3, 4, 8, 9, 12, 16, 32, 64, 200])
ROW_TILES = st.sampled_from([1, 2, 4, 8, 16, 17, 32, 64, 100, 128])


def attention_shares(pairs: int, tiles: int, threads: int, causal: bool) -> list[int]:
    """Forward's products of a tile of rows with one of keys, of each thread: the last rows, which see most, come first."""
    each = _runtime.attention_tiles(pairs, tiles, threads)
    assert 1 <= each <= BLOCK_TILES
    blocks = -(-tiles // each)
    shares = [0] * threads
    for item, owner in enumerate(_runtime.deal(pairs * blocks, threads)):
        first = (blocks - 1 - item // pairs) * each
        rows = range(first, min(first + each, tiles))
        shares[owner] += sum(row + 1 for row in rows) if causal else len(rows) * tiles
    assert sum(shares) == pairs * (tiles * (tiles + 1) // 2 if causal else tiles * tiles)
    return shares


@PROPERTY
@given(PAIRS, ROW_TILES, THREADS, st.booleans())
@example(1, 20, 2, True)
@example(12, 16, 19, False)
@example(64, 16, 82, True)
def test_shares_of_attention(pairs: int, tiles: int, threads: int, causal: bool) -> None:
    """Backward's tiles of keys are dealt by the same two functions, from the first, which most rows see."""
    shares = attention_shares(pairs, tiles, threads, causal)
    if pairs * tiles >= threads:
        assert min(shares) > 0
    if pairs * tiles >= 10 * threads:
        assert max(shares) <= MOST * sum(shares) / threads


@PROPERTY
@given(st.integers(1, 2000), THREADS)
def test_backward_takes_whole_heads_where_that_ends_sooner(pairs: int, threads: int) -> None:
    """Whole, a tile has five products and whoever has most pairs ends last; cut, seven, in shares as even as can be."""
    whole, cut = 5 * -(-pairs // threads), 7 * pairs / threads
    assert _runtime.attention_by_pairs(pairs, threads) == (whole <= cut)


# ----------------------------------------------------------------------------------------------- barriers

BARRIERS = {
    "attention_backward": 1,  # between the rows' sums of dout . o and their use
    "attention_cached": 2,  # the new keys are there; all parts are there
    "layer_norm_backward": 1,  # all threads' sums for the weight are there
    "rms_norm_backward": 1,
    "sum_of_squares": 1,
}
"""How often the threads of one call wait for each other; of ops that are not named never."""
PRODUCTS = ("linear_", "matmul", "symmetric_product", "quantized_")
"""How the names of ops begin that wait as often as their product has steps."""


class Counting:
    """A kernel set, and how often the threads of each op waited at most."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.waits: dict[str, int] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(self.kernels, name)

        def counted(*args: Any, **options: Any) -> Any:
            before = _runtime.barriers()
            result = op(*args, **options)
            self.waits[name] = max(self.waits.get(name, 0), _runtime.barriers() - before)
            return result

        return counted


@pytest.fixture
def two_threads() -> Iterator[Callable[[str | None], Counting]]:
    """Loads a set on two threads, and puts it back to one."""
    loaded = []

    def load(isa: str | None) -> Counting:
        loaded.append(cython_kernels.load(isa))
        loaded[-1].set_num_threads(2)
        return Counting(loaded[-1])

    yield load
    for kernels in loaded:
        kernels.set_num_threads(1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_how_often_threads_wait(case: Case, two_threads: Callable[[str | None], Counting]) -> None:
    counting = two_threads(None)
    for shape in case.large:
        for dtype in (np.float32, bfloat16):
            case.run(counting, case.draw(np.random.default_rng(0), {**case.examples[0], **shape}, dtype))
    assert counting.waits
    for name, waits in counting.waits.items():
        assert name.startswith(PRODUCTS) or waits == BARRIERS.get(name, 0), name


@pytest.mark.parametrize(
    ("m", "n", "k", "together"), [(2500, 200, 300, True), (5000, 400, 1400, True), (512, 512, 700, False)]
)
def test_a_product_waits_once_a_step(
    m: int, n: int, k: int, together: bool, two_threads: Callable[[str | None], Counting]
) -> None:
    """Once for each block of the other side that is packed, where the threads share it; alone they never wait."""
    counting = two_threads("generic")
    mr, nr, (_, *caches) = 4, 8, _runtime.caches()
    plan = _runtime.plan_gemm(m, n, k, mr, nr, 1, True, 2, False, *caches)
    down, _ = _runtime.cut_gemm(m, n, k, mr, nr, 1, True, 2, *caches)
    assert (down == 0) == together
    counting.matmul(np.empty((m, n), np.float32), np.ones((m, k), np.float32), np.ones((k, n), np.float32))
    steps = -(-m // plan["rows"]) * -(-n // plan["cols"]) * -(-k // plan["depth"])
    assert counting.waits["matmul"] == (steps if together else 0)
