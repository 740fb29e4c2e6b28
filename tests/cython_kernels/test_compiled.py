"""Compiled kernels against the reference, per instruction set, storage type and number of threads.

The reference runs in fp64 on the same numbers. Tolerances are those of the table of cases (case.py).
"""

import ctypes
import hashlib
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from case import gap_is_untouched
from cases import CASES, SEEDS, Case, convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from cktrain import cython_kernels


class Judge:
    """The reference, which computes each of its last calls once: sets and numbers of threads ask for the same ones."""

    def __init__(self) -> None:
        self._reference = cython_kernels.load("reference")
        self._known: dict[bytes, Any] = {}

    def forward(self, case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
        return self._once("forward", case, inputs)

    def backward(self, case: Case, inputs: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
        return self._once("backward", case, inputs, saved)

    def _once(self, call: str, case: Case, *arguments: dict[str, Any]) -> dict[str, Any]:
        asked = hashlib.sha256(f"{case.name} {call}".encode())
        for values in arguments:
            for name, value in values.items():
                is_array = isinstance(value, np.ndarray)
                asked.update(f"{name} {(value.shape, value.dtype) if is_array else value}".encode())
                if is_array:
                    asked.update(np.ascontiguousarray(value))
        key = asked.digest()
        found = self._known.pop(key, None)
        if found is None:
            found = getattr(case, call)(self._reference, *arguments)
        self._known[key] = found
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return found


MOST_KNOWN = 64
JUDGE = Judge()
COMPILED = [isa for isa in cython_kernels.available() if isa != "reference"]
PARAMETERS = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=COMPILED)
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each compiled set in turn, put back to one thread at the end."""
    kernels = cython_kernels.load(request.param)
    yield kernels
    kernels.set_num_threads(1)


def check(case: Case, kernels: Any, inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Every output of the case, which is returned, is within its tolerance of the reference in fp64.

    The reference's backward gets what the compiled forward saved: otherwise the rounding of a bf16 output
    would be counted again, magnified where the gradient cancels.
    """
    exact = convert(inputs, np.float64)
    saved = case.forward(kernels, inputs)
    got = {**saved, **case.backward(kernels, inputs, saved)}
    want = {**JUDGE.forward(case, exact), **JUDGE.backward(case, exact, convert(saved, np.float64))}
    assert got.keys() == want.keys()
    for name in want:
        assert gap_is_untouched(got[name]), name
        error = case.error(name, got[name], want[name], inputs)
        assert error <= case.tolerance(name, dtype), f"{name}: {error:.3g}"
    return got


@PARAMETERS
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
def test_any_shape(case: Case, kernels: Any, dtype: Any) -> None:
    @SETTINGS
    @given(st.data())
    def run(data: st.DataObject) -> None:
        inputs = case.draw(np.random.default_rng(data.draw(SEEDS)), data.draw(case.shapes), dtype)
        check(case, kernels, inputs, dtype)

    run()


@PARAMETERS
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
def test_examples(case: Case, kernels: Any, dtype: Any) -> None:
    """The few small shapes that cover the options: what an emulated CPU has the time for (tests/aarch64)."""
    for seed, shape in enumerate(case.examples):
        check(case, kernels, case.draw(np.random.default_rng(seed), shape, dtype), dtype)


@PARAMETERS
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(case: Case, kernels: Any, threads: int) -> None:
    """Large shapes on one thread, two, and more than there are cores; the same call twice, the same bits."""
    kernels.set_num_threads(threads)
    for seed, shape in enumerate(case.large):
        assert shape.keys() <= case.examples[0].keys()
        shape = {**case.examples[0], **shape}
        for dtype in (np.float32, bfloat16):
            inputs = case.draw(np.random.default_rng(seed), shape, dtype)
            once, again = check(case, kernels, inputs, dtype), case.run(kernels, inputs)
            for name in once:
                assert np.array_equal(once[name], again[name], equal_nan=True), name


def test_attention_whose_bf16_sums_do_not_fit_the_workspace(kernels: Any) -> None:
    """dq of one head in fp32 is larger than a thread's workspace: backward goes by tiles."""
    shape = {"b": 1, "s": 2100, "cached": 0, "k": 1, "group": 1, "d": 512, "window": 300, "documents": False}
    inputs = CASES["attention"].draw(np.random.default_rng(0), {**shape, "fused": False}, bfloat16)
    check(CASES["attention"], kernels, inputs, bfloat16)


def test_attention_is_the_same_for_any_number_of_threads(kernels: Any) -> None:
    case = CASES["attention"]
    shape = {**case.examples[0], **case.large[0]}
    inputs = case.draw(np.random.default_rng(0), shape, np.float32)
    alone = case.forward(kernels, inputs)
    for threads in (2, 3, 5):
        kernels.set_num_threads(threads)
        shared = case.forward(kernels, inputs)
        assert all(np.array_equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_matmul_of_views(kernels: Any, dtype: Any, ta: bool, tb: bool) -> None:
    """Operands and result are columns of wider arrays; what stands beside the result stays."""
    rng = np.random.default_rng(0)
    m, n, k = 70, 90, 530
    a = rng.standard_normal((k, m + 5) if ta else (m, k + 5)).astype(dtype)[:, 3 : 3 + (m if ta else k)]
    b = rng.standard_normal((n, k + 7) if tb else (k, n + 7)).astype(dtype)[:, 2 : 2 + (k if tb else n)]
    wide = np.full((m, n + 9), np.nan, dtype)
    out = wide[:, 4 : 4 + n]
    kernels.matmul(out, a, b, transpose_a=ta, transpose_b=tb)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    want = (a64.T if ta else a64) @ (b64.T if tb else b64)
    error = np.abs(out.astype(np.float64) - want).max() / np.abs(want).max()
    assert error <= (2.0**-8 if dtype == bfloat16 else 1e-5)  # one rounding; see Case.tolerance
    beside = np.delete(wide, np.s_[4 : 4 + n], axis=1).astype(np.float32)
    assert np.isnan(beside).all()


@pytest.mark.parametrize("m", range(1, 27))
def test_matmul_of_every_edge(kernels: Any, m: int) -> None:
    """Rows and columns around the register tiles (4x8, 6x16, 12x32), k around the block of 256."""
    rng = np.random.default_rng(m)
    for n in (1, 7, 8, 15, 16, 17, 31, 32, 33, 65):
        for k in (1, 3, 4, 255, 256, 257):
            a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
            out = np.full((m, n), np.nan, np.float32)
            kernels.matmul(out, a, b, transpose_b=True)
            want = a.astype(np.float64) @ b.T.astype(np.float64)
            assert np.abs(out - want).max() <= 1e-5 * k**0.5, (n, k)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_symmetric_product_is_the_whole_product(
    kernels: Any, dtype: Any, transpose: bool, threads: int
) -> None:
    """Bit for bit: an element's sum has one order, whichever tiles are left out."""
    kernels.set_num_threads(threads)
    rng = np.random.default_rng(0)
    for m, k in ((17, 40), (64, 1), (200, 33), (333, 900), (97, 2500)):
        x = rng.standard_normal((k, m) if transpose else (m, k)).astype(dtype)
        whole, half = np.empty((2, m, m), dtype)
        kernels.matmul(whole, x, x, transpose_a=transpose, transpose_b=not transpose)
        wide = np.full((m, m + 5), np.nan, dtype)
        kernels.symmetric_product(wide[:, 2 : m + 2], x, transpose)
        assert np.array_equal(wide[:, 2 : m + 2], whole), (m, k)
        assert np.isnan(np.delete(wide, np.s_[2 : m + 2], axis=1).astype(np.float32)).all()
        kernels.symmetric_product(half, x, transpose, scale=0.5, shift=7.0)
        want = (0.5 * whole.astype(np.float32) + 7.0 * np.eye(m, dtype=np.float32)).astype(dtype)
        assert np.array_equal(half, want), (m, k)


@pytest.mark.parametrize("threads", [1, 2])
def test_nan_reaches_the_result(kernels: Any, threads: int) -> None:
    """One NaN among the inputs of each op is in what depends on it, whatever lane it stands in."""
    kernels.set_num_threads(threads)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 1031), np.float32)
    w = rng.standard_normal((9, 1031), np.float32)
    rstd, mean, ones = np.ones(40, np.float32), np.ones(40, np.float32), np.ones(1031, np.float32)
    targets = np.zeros(40, np.int32)
    for column in (0, 15, 500, 1023, 1024, 1030):
        bad = x.copy()
        bad[7, column] = np.nan
        y, out = np.zeros_like(x), np.zeros((40, 9), np.float32)
        kernels.linear_forward(out, bad, w)
        assert np.isnan(out[7]).all() and np.isfinite(np.delete(out, 7, axis=0)).all()
        kernels.rms_norm_forward(y, rstd, bad, ones, 1e-5)
        assert np.isnan(y[7]).all() and np.isnan(rstd[7])
        kernels.layer_norm_forward(y, mean, rstd, bad, ones, ones, 1e-5)
        assert np.isnan(y[7]).all() and np.isnan(mean[7])
        kernels.cross_entropy_forward(mean, rstd, np.zeros(40, np.float32), bad, targets)
        assert np.isnan(rstd[7]) and np.isfinite(np.delete(rstd, 7)).all()
        for tanh in (False, True):
            kernels.gelu_forward(y, bad, tanh)
            assert np.isnan(y[7, column]) and np.isnan(y).sum() == 1
        half = np.zeros((40, 515), np.float32)
        kernels.swiglu_forward(half, bad[:, :1030] if column < 1030 else bad[:, 1:])
        assert np.isnan(half).sum() == 1
        assert np.isnan(kernels.sum_of_squares(bad))
        narrow = np.zeros(x.shape, bfloat16)
        kernels.cast(narrow, bad)
        assert np.isnan(narrow[7, column])
    for part in range(3):
        qkv = rng.standard_normal((3, 1, 130, 2, 16), np.float32)
        qkv[part, 0, 100, 1, 3] = np.nan
        o, lse = np.zeros_like(qkv[0]), np.zeros((1, 2, 130), np.float32)
        kernels.attention_forward(o, lse, *qkv, 0.25)
        assert np.isnan(o[0, 100, 1]).any() and np.isfinite(o[0, :, 0]).all()
        if part == 1:  # a key that is NaN spoils every query that sees it
            assert np.isnan(o[0, 100:, 1]).all() and np.isfinite(o[0, :96, 1]).all()


def test_infinity_in_the_sum_of_squares(kernels: Any) -> None:
    x = np.ones(1000, np.float32)
    x[999] = -np.inf
    assert kernels.sum_of_squares(x) == np.inf
    x[:] = 3e38  # beyond fp32 once squared
    assert kernels.sum_of_squares(x) == pytest.approx(1000 * float(np.float32(3e38)) ** 2, rel=1e-12)


def test_cast_rounds_as_ml_dtypes_does(kernels: Any) -> None:
    """Every upper half of an fp32, lower halves around the tie: subnormals, infinities and NaN included."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        src = (upper | lower).view(np.float32)
        dst, back = np.zeros(src.shape, bfloat16), np.zeros(src.shape, np.float32)
        kernels.cast(dst, src)
        with np.errstate(all="ignore"):
            want = src.astype(bfloat16)
        nan = np.isnan(src)
        assert np.array_equal(dst.view(np.uint16)[~nan], want.view(np.uint16)[~nan])
        assert np.isnan(dst[nan].astype(np.float32)).all()
        kernels.cast(back, dst)
        assert np.array_equal(back, dst.astype(np.float32), equal_nan=True)


def sparse(count: int, dtype: Any) -> Any:
    """Zeros that take no memory until they are written."""
    no_reserve = 0x4000  # MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return np.frombuffer(mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=flags), np.uint8).view(dtype)


def test_rows_more_than_2_to_the_31_elements_apart(kernels: Any) -> None:
    """Thirteen rows, so that every register tile's second one lies beyond."""
    apart, n = 2**28, 13
    flat = sparse(n * apart, np.float32)
    rows = np.lib.stride_tricks.as_strided(flat, (n, 64), (4 * apart, 4))
    rows[:] = near = np.random.default_rng(0).standard_normal((n, 64), np.float32)
    kernels.add(rows, rows, near)
    near = near + near
    assert np.array_equal(rows, near)
    for ta, tb in ((False, True), (True, False)):
        want = np.empty((64, 64) if ta else (n, n), np.float32)
        got = want.copy()
        kernels.matmul(want, near, near, transpose_a=ta, transpose_b=tb)
        kernels.matmul(got, rows, rows, transpose_a=ta, transpose_b=tb)
        assert np.array_equal(got, want)
    kernels.linear_backward_input(rows, near, np.eye(64, dtype=np.float32))
    assert np.array_equal(rows, near)
    table, last = flat.reshape(-1, 16), (n - 1) * apart // 16
    y = np.empty((2, 16), np.float32)
    kernels.embedding_forward(y, np.array([0, last], np.int32), table)
    assert np.array_equal(y, near[[0, n - 1], :16])
    kernels.embedding_backward(table, y, np.array([last], np.int32).repeat(2))
    assert np.array_equal(rows[n - 1, :16], near[n - 1, :16] + y[0] + y[1])


def guarded(array: Any) -> Any:
    """A copy that ends where the next page may not be touched: reading beyond it is a segmentation fault."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(page), 0) == 0
    copy = whole[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@PARAMETERS
def test_nothing_is_read_beyond_the_inputs(case: Case, kernels: Any) -> None:
    """Every input ends at a guard page; in a forked child, which a fault would kill."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for seed, shape in enumerate((*case.examples, *case.large)):
                for dtype in (np.float32, bfloat16):
                    inputs = case.draw(np.random.default_rng(seed), {**case.examples[0], **shape}, dtype)
                    for name, value in inputs.items():
                        if isinstance(value, np.ndarray):
                            inputs[name] = guarded(value)
                    case.run(kernels, inputs)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", [0, 700])
def test_attention_over_long_sequences(kernels: Any, dtype: Any, window: int) -> None:
    """Sixty-four tiles of rows and of keys, by heads and by tiles, within the tolerance of short sequences."""
    shape = {"b": 1, "s": 4096, "cached": 0, "k": 1, "group": 1, "d": 24, "window": window}
    inputs = CASES["attention"].draw(
        np.random.default_rng(0), {**shape, "documents": window > 0, "fused": False}, dtype
    )
    kernels.set_num_threads(1 if window else 2)  # one head: one thread takes it whole, two go by tiles
    check(CASES["attention"], kernels, inputs, dtype)
