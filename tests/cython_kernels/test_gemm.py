"""Matmul beyond the table of cases: every layout over many shapes, depths and threads, and what it promises.

Tolerances are relative to the largest element of the exact product, or to sqrt(k), the size of a sum of k products of
standard normal numbers, where that is larger. fp32: 1e-5, some hundred roundings of 6e-8. bf16: the products of
bf16 numbers are exact in fp32, their sum is rounded once to bf16, 2^-9; 2^-8 leaves room for the fp32 sum.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from cktrain import cython_kernels
from cktrain.cython_kernels import _runtime

COMPILED = [isa for isa in cython_kernels.available() if isa != "reference"]
SETTINGS = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TOLERANCE = {np.float32: 1e-5, bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])

# Around the tiles, around few rows (16), beyond one step along k (1024 units, 2048 elements of bf16 pairs).
ROWS = st.sampled_from([0, 1, 2, 5, 8, 13, 14, 15, 16, 17, 28, 29, 61, 130])
COLUMNS = st.sampled_from([0, 1, 3, 8, 15, 16, 17, 31, 32, 33, 48, 65, 100, 257])
DEPTHS = st.sampled_from([0, 1, 2, 3, 7, 16, 17, 33, 129, 255, 1024, 1025, 2047, 2049, 4099])


@pytest.fixture(params=COMPILED)
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each compiled set in turn, put back to one thread at the end."""
    kernels = cython_kernels.load(request.param)
    yield kernels
    kernels.set_num_threads(1)


def view(rng: np.random.Generator, shape: tuple[int, int], dtype: Any, wide: bool) -> Any:
    """A random matrix; with `wide`, the middle columns of a wider one."""
    if not wide:
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return rng.standard_normal((shape[0], shape[1] + 9), np.float32).astype(dtype)[:, 3 : 3 + shape[1]]


def nan_view(shape: tuple[int, int], dtype: Any, wide: bool) -> Any:
    whole = np.full((shape[0], shape[1] + 9), np.nan, dtype)
    return whole[:, 3 : 3 + shape[1]] if wide else np.full(shape, np.nan, dtype)


def assert_close(got: Any, want: Any, k: int, tolerance: float) -> None:
    assert got.shape == want.shape
    if got.size:
        scale = max(np.abs(want).max(), k**0.5, 1e-30)  # a sum of nothing must be 0
        error = np.abs(got.astype(np.float64) - want).max() / scale
        assert error <= tolerance, f"{error:.3g}"  # a NaN fails too


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_layout(kernels: Any, dtype: Any, threads: int) -> None:
    kernels.set_num_threads(threads)

    @SETTINGS
    @given(
        ROWS, COLUMNS, DEPTHS, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99)
    )
    @example(130, 257, 4099, False, True, True, True, 0)
    @example(130, 257, 4099, True, False, False, True, 0)
    @example(13, 257, 4099, False, True, False, True, 0)
    def run(m: int, n: int, k: int, ta: bool, tb: bool, wide: bool, add: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        a = view(rng, (k, m) if ta else (m, k), dtype, wide)
        b = view(rng, (n, k) if tb else (k, n), dtype, wide)
        out = nan_view((m, n), dtype, wide)
        want = (a.T if ta else a).astype(np.float64) @ (b.T if tb else b).astype(np.float64)
        if add:
            out[...] = rng.standard_normal((m, n)).astype(dtype)
            want = want + out.astype(np.float64)
        kernels.matmul(out, a, b, transpose_a=ta, transpose_b=tb, accumulate=add)
        assert_close(out, want, k, TOLERANCE[dtype])
        if wide and out.size:
            beside = np.delete(out.base, np.s_[3 : 3 + n], axis=1).astype(np.float32)
            assert np.isnan(beside).all()

    run()


@DTYPES
@pytest.mark.parametrize("y_dtype", [np.float32, bfloat16], ids=["y_fp32", "y_bf16"])
@pytest.mark.parametrize("in_place", [False, True])
def test_bias_and_residual(kernels: Any, dtype: Any, y_dtype: Any, in_place: bool) -> None:
    """y is of x's type or float32; the residual may be y."""
    if dtype == np.float32 and y_dtype == bfloat16:
        with pytest.raises(ValueError, match="x is float32, but y is bfloat16"):
            kernels.linear_forward(np.empty((1, 1), bfloat16), *np.empty((2, 1, 1), np.float32))
        return
    rng = np.random.default_rng(0)
    for n, i, o in (
        (0, 3, 5),
        (3, 0, 5),
        (3, 5, 0),
        (5, 40, 33),
        (14, 2100, 48),
        (75, 2100, 50),
        (40, 4100, 70),
    ):
        x, w = view(rng, (n, i), dtype, True), view(rng, (o, i), dtype, True)
        bias = rng.standard_normal(o, np.float32)
        residual = rng.standard_normal((n, o)).astype(y_dtype)
        y = residual.copy() if in_place else np.full((n, o), np.nan, y_dtype)
        want = x.astype(np.float64) @ w.astype(np.float64).T + bias + residual.astype(np.float64)
        kernels.linear_forward(y, x, w, bias, y if in_place else residual)
        assert_close(y, want, i, TOLERANCE[y_dtype])


@DTYPES
@pytest.mark.parametrize("in_place", [False, True])
def test_residual_alone(kernels: Any, dtype: Any, in_place: bool) -> None:
    """Without a bias whole tiles are rounded as they leave the registers."""
    rng = np.random.default_rng(0)
    kernels.set_num_threads(2)
    for n, i, o in ((75, 40, 96), (61, 2100, 80), (40, 4100, 64)):
        x, w = view(rng, (n, i), dtype, True), view(rng, (o, i), dtype, True)
        residual = view(rng, (n, o), dtype, True)
        y = residual if in_place else np.full((n, o), np.nan, dtype)
        want = x.astype(np.float64) @ w.astype(np.float64).T + residual.astype(np.float64)
        kernels.linear_forward(y, x, w, None, residual)
        assert_close(y, want, i, TOLERANCE[dtype])


@DTYPES
def test_a_row_is_the_same_in_any_company(kernels: Any, dtype: Any) -> None:
    """Bit for bit, whatever the number of rows and of threads."""
    rng = np.random.default_rng(0)
    for i, o in ((70, 45), (2300, 100), (4500, 33)):
        x, w = view(rng, (150, i), dtype, False), view(rng, (o, i), dtype, False)
        dy, bias = view(rng, (150, o), dtype, False), rng.standard_normal(o, np.float32)
        want_y, want_dx = np.empty((150, o), dtype), np.empty((150, i), dtype)
        kernels.set_num_threads(1)
        kernels.linear_forward(want_y, x, w, bias)
        kernels.linear_backward_input(want_dx, dy, w)
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            for begin, end in ((0, 150), (0, 1), (7, 23), (3, 20), (100, 141)):
                y, dx = np.empty((end - begin, o), dtype), np.empty((end - begin, i), dtype)
                kernels.linear_forward(y, x[begin:end], w, bias)
                kernels.linear_backward_input(dx, dy[begin:end], w)
                assert np.array_equal(y, want_y[begin:end])
                assert np.array_equal(dx, want_dx[begin:end])


@DTYPES
def test_weight_gradients_are_added_and_the_same_on_any_number_of_threads(kernels: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for n, i, o in ((8, 70, 300), (2100, 33, 130), (0, 5, 7)):
        x, dy = view(rng, (n, i), dtype, True), view(rng, (n, o), dtype, True)
        before, bias_before = rng.standard_normal((o, i), np.float32), rng.standard_normal(o, np.float32)
        found = []
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            dw, dbias = before.copy(), bias_before.copy()
            kernels.linear_backward_weight(dw, dbias, dy, x)
            found.append((dw, dbias))
        wide = dy.astype(np.float64)
        assert_close(found[0][0], before + wide.T @ x.astype(np.float64), n, 1e-5)
        assert_close(found[0][1], bias_before + wide.sum(axis=0), n, 1e-5)
        assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


SIZES = st.integers(0, 50_000)
MACHINES = st.tuples(st.sampled_from([1 << 18, 1 << 20, 2 << 20]), st.sampled_from([4 << 20, 32 << 20]))
TILES = st.sampled_from([(14, 32, 1), (6, 16, 1), (4, 8, 1), (32, 32, 16)])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, TILES, st.booleans(), st.integers(1, 192), st.booleans(), MACHINES)
def test_blocks_fit_the_workspace(
    m: int,
    n: int,
    k: int,
    tile: tuple[int, int, int],
    f32: bool,
    threads: int,
    alone: bool,
    caches: tuple[int, int],
) -> None:
    mr, nr, kr = tile
    plan = _runtime.plan_gemm(m, n, k, mr, nr, kr, f32, threads, alone, *caches)
    own, shared = _runtime.workspace()
    room = _runtime.gemm_room(threads, caches[0])
    assert all(size > 0 for size in plan.values())
    assert plan["cols"] % nr == 0 and plan["item_cols"] % nr == 0 and plan["item_rows"] % mr == 0
    assert plan["depth"] <= max(k, 1)
    gap = 64  # bytes between panels, which packing may write
    assert plan["item_rows"] // mr * (mr * plan["depth"] * 4 + gap) <= room["left"]
    block = plan["cols"] // nr * (nr * plan["depth"] * 4 + gap)
    sums = 0 if f32 or plan["depth"] >= k else plan["rows"] * plan["cols"] * 4
    if not alone:
        assert room["notes"] + 2 * (block + gap) + sums <= shared
        return
    assert all(room[name] % 64 == 0 for name in ("left", "notes", "block", "sums"))
    assert threads * (room["notes"] + room["sums"] + room["shared"] * room["block"]) <= shared
    assert room["shared"] or room["left"] + room["block"] <= own
    assert block <= room["block"]
    assert sums <= room["sums"] or plan["rows"] == mr  # which `cut_gemm` does not take


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, TILES, st.booleans(), st.integers(1, 192), MACHINES)
def test_a_part_of_its_own_for_every_thread_or_none(
    m: int, n: int, k: int, tile: tuple[int, int, int], f32: bool, threads: int, caches: tuple[int, int]
) -> None:
    mr, nr, kr = tile
    m, n = max(m, 1), max(n, 1)
    down, across = _runtime.cut_gemm(m, n, k, mr, nr, kr, f32, threads, *caches)
    assert down * across == threads or (down, across) == (0, 0) != (threads, 1)
    if down == 0:
        return
    room = _runtime.gemm_room(threads, caches[0])
    for rows in {end - begin for begin, end in _runtime.split(m, mr, down)} - {0}:
        for cols in {end - begin for begin, end in _runtime.split(n, nr, across)} - {0}:
            plan = _runtime.plan_gemm(rows, cols, k, mr, nr, kr, f32, threads, True, *caches)
            assert plan["rows"] >= rows or threads == 1  # so that b is packed once
            if not f32 and plan["depth"] < k:
                assert plan["rows"] * plan["cols"] * 4 <= room["sums"]


def test_where_threads_compute_alone() -> None:
    """Two threads on the reference model: where few rows share a packed b, or few columns are left to each."""
    cuts = {
        (m, n, k): _runtime.cut_gemm(m, n, k, 14, 32, 1, False, 2, 1 << 20, 32 << 20)
        for m, n, k in ((512, 32000, 384), (512, 768, 16000), (768, 2048, 1024), (2048, 768, 1152))
    }
    assert list(cuts.values()) == [(1, 2), (1, 2), (1, 2), (0, 0)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, TILES, MACHINES)
def test_the_order_of_a_sum_depends_on_k_alone(
    m: int, n: int, k: int, tile: tuple[int, int, int], caches: tuple[int, int]
) -> None:
    depths = {
        _runtime.plan_gemm(rows, cols, k, *tile, f32, threads, alone, *caches)["depth"]
        for rows, cols in ((m, n), (1, n), (m, 1))
        for f32 in (False, True)
        for threads in (1, 2, 64, 192)
        for alone in (False, True)
    }
    assert len(depths) == 1


def test_the_caches_are_those_of_this_machine() -> None:
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            sizes[int((index / "level").read_text())] = int((index / "size").read_text().strip("K\n")) << 10
    found = dict(enumerate(_runtime.caches(), 1))
    assert all(found[level] == size for level, size in sizes.items() if level in found)
    assert all(size >= 1 << 12 for size in found.values())


@pytest.mark.parametrize("threads", range(1, 193))
def test_there_is_work_for_every_thread(threads: int) -> None:
    """Together, every tile is in one item; with several threads each finds two at least, and the last are small."""
    for m, n, k in ((2048, 4096, 768), (2048, 768, 1024), (512, 9000, 384)):
        items = _runtime.gemm_items(m, n, k, 14, 32, 1, threads, 1 << 20, 32 << 20)
        begins, counts = zip(*items, strict=True)
        assert list(begins) == [sum(counts[:i]) for i in range(len(counts))]
        plan = _runtime.plan_gemm(m, n, k, 14, 32, 1, True, threads, False, 1 << 20, 32 << 20)
        assert sum(counts) == -(-m // 14) * -(-min(plan["cols"], n) // plan["item_cols"])
        assert min(counts) > 0 and max(counts) * 14 <= plan["item_rows"]
        if threads > 1:
            assert len(items) >= 2 * threads
            assert counts[-1] <= 2


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("wide", [False, True], ids=["whole", "view"])
def test_thin_results_have_the_bits_of_wide_ones(kernels: Any, threads: int, wide: bool) -> None:
    """Operands of few columns are read where they lie, packed beside more columns; the order of the sums is the same."""
    rng = np.random.default_rng(0)
    kernels.set_num_threads(threads)
    for n, i in ((150, 2300), (2500, 1100), (131, 129)):
        x = view(rng, (n, i), np.float32, wide)
        w, dy = view(rng, (100, i), np.float32, wide), view(rng, (n, 100), np.float32, wide)
        y, dw = np.empty((n, 100), np.float32), np.empty((100, i), np.float32)
        kernels.linear_forward(y, x, w)
        kernels.linear_backward_weight(dw, None, dy, x, False)
        assert_close(dw, dy.astype(np.float64).T @ x, n, TOLERANCE[np.float32])
        for few in (1, 5, 8, 16, 48, 64):
            thin = nan_view((n, few), np.float32, True)
            kernels.linear_forward(thin, x, w[:few])
            assert np.array_equal(thin, y[:, :few])
            base = view(rng, (n, few), np.float32, True)
            apart = np.empty((n, few), np.float32)
            kernels.linear_forward(apart, x, w[:few], None, base)
            kernels.linear_forward(base, x, w[:few], None, base)
            assert np.array_equal(base, apart)
            gradient = nan_view((few, i), np.float32, True)
            kernels.linear_backward_weight(gradient, None, dy[:, :few], x, False)
            assert np.array_equal(gradient, dw[:few])
            kernels.linear_backward_weight(gradient, None, dy[:, :few], x, True)
            assert_close(gradient, 2 * dw[:few].astype(np.float64), n, TOLERANCE[np.float32])
            assert np.isnan(gradient.base[:, [2, 3 + i]]).all()
