"""The reduction that is lent to comm: the same bits as comm's plain one, for every dtype, operation and alignment."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.comm import _engine
from cktrain.comm.reduction import DTYPES, OPS, reduce_in_rank_order

STREAM = 256
SETS = [isa for isa in cython_kernels.available() if isa != "reference"]


@pytest.fixture(params=["plain", *SETS])
def capsule(request):
    if request.param == "plain":
        yield _engine.plain_reduction()
        return
    yield cython_kernels.load(request.param).reduction
    cython_kernels.load()


def values(rank: int, length: int, dtype: np.dtype) -> np.ndarray:
    generator = np.random.default_rng([rank, length])
    x = (generator.standard_normal(length) * 10.0 ** generator.integers(-2, 3, length)).astype(dtype)
    if dtype.kind != "i" and length > 3:
        x[1 + rank % 2] = np.nan
        x[3] = np.inf if rank else -np.inf
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_as_in_numpy(capsule, dtype, op):
    if op == "mean" and dtype.kind == "i":
        return  # not an operation: Group refuses it
    for length in (0, 1, 7, 64, 1023, 1024, 1025, 5003):
        for size in (2, 3, 5):
            given = [values(r, length, dtype) for r in range(size)]
            wanted = np.empty(length, dtype)
            reduce_in_rank_order(wanted, given, op)
            for flags in (0, STREAM):
                out = [np.zeros(length, dtype) for _ in range(2)]
                _engine.reduce_n(capsule, out, given, DTYPES.index(dtype), OPS.index(op) | flags)
                for y in out:
                    nans = np.isnan(wanted.astype(np.float64))
                    assert np.array_equal(nans, np.isnan(y.astype(np.float64)))
                    assert y[~nans].tobytes() == wanted[~nans].tobytes(), (length, size, flags)


@pytest.mark.parametrize("offsets", [(0, 0), (1, 1), (0, 1), (5, 13)])
def test_any_alignment_in_place_and_nothing_beside(capsule, offsets):
    """Outputs that are the inputs, aligned alike or not; streaming stores must not touch the neighbours."""
    length = 3001
    wanted = np.empty(length, np.float32)
    given = [values(r, length, np.dtype(np.float32)) for r in range(2)]
    with np.errstate(invalid="ignore"):
        reduce_in_rank_order(wanted, given, "max")
    for flags in (0, STREAM):
        memory = [np.full(length + 64, 7, np.float32) for _ in range(2)]
        arrays = [m[16 + o : 16 + o + length] for m, o in zip(memory, offsets, strict=True)]
        for array, x in zip(arrays, given, strict=True):
            array[:] = x
        _engine.reduce_n(capsule, arrays, arrays, 0, OPS.index("max") | flags)
        for m, o, array in zip(memory, offsets, arrays, strict=True):
            assert np.array_equal(array, wanted, equal_nan=True)
            assert np.all(m[: 16 + o] == 7) and np.all(m[16 + o + length :] == 7)


def test_integers_wrap_around(capsule):
    given = [np.full(100, 2**31 - 1, np.int32), np.full(100, 5, np.int32)]
    out = np.empty(100, np.int32)
    _engine.reduce_n(capsule, [out], given, 3, 0)
    assert np.all(out == np.int32(-(2**31) + 4))
