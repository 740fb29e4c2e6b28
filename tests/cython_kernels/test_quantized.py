"""Quantized weights: the formats against the packages that define them, and what the doors refuse."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases_quantized import random_blocks, values_of

from cktrain import cython_kernels
from cktrain.cython_kernels.block_formats import BLOCK_FORMATS, NOT_INTEGERS
from cktrain.cython_kernels.reference.quantized import NORMAL_FLOAT

OF_GGUF = [name for name in BLOCK_FORMATS if name != "nf4"]


@pytest.fixture(params=[isa for isa in cython_kernels.available() if isa != "reference"] + ["amx_emulated"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    kernels = cython_kernels.load(request.param)
    yield kernels
    kernels.set_num_threads(1)
    cython_kernels.load(cython_kernels.best())


@pytest.mark.parametrize("name", OF_GGUF)
def test_values_are_those_of_gguf(name: str, kernels: Any) -> None:
    """Every byte of a block takes every value somewhere; scales include subnormal fp16 and both ends of E8M0."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    found = BLOCK_FORMATS[name]
    width = 2 * found.values
    w = random_blocks(rng, name, 400, width)
    blocks = w.reshape(-1, found.bytes)
    if name == "mxfp4":
        blocks[:255, 0] = np.arange(255)
    elif name not in ("bf16", "f16"):
        at = 208 if name == "q6_k" else 0
        blocks[:64, at : at + 2] = rng.integers(0, 2**10, (64, 1), np.uint16).view(np.uint8)
    kind = gguf.GGMLQuantizationType[name.upper()]
    assert gguf.GGML_QUANT_SIZES[kind] == (found.values, found.bytes) or name in ("bf16", "f16")
    want = gguf.quants.dequantize(w, kind).astype(np.float32)
    got = np.empty((400, width), np.float32)
    kernels.dequantize(got, w, name)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    assert np.array_equal(values_of(w, name, width).view(np.uint32), want.view(np.uint32))


def test_codes_of_nf4(kernels: Any) -> None:
    """The largest magnitude times each code, at the places that the layout says."""
    block = np.zeros((1, 36), np.uint8)
    block[0, :4] = np.array([0.75], np.float32).view(np.uint8)
    codes = np.arange(64).reshape(4, 16) % 16
    block[0, 4:20] = codes[0] | codes[1][::-1] << 4
    block[0, 20:] = codes[2][::-1] | codes[3] << 4
    got = np.empty((1, 64), np.float32)
    kernels.dequantize(got, block, "nf4")
    up, down = NORMAL_FLOAT, NORMAL_FLOAT[::-1]
    assert np.array_equal(got[0], np.float32(0.75) * np.concatenate([up, down, down, up]))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(name: str, kernels: Any) -> None:
    """Among few rows, and for any number of threads."""
    rng = np.random.default_rng(1)
    width = 4 * BLOCK_FORMATS[name].values
    x, w = rng.standard_normal((8, width), np.float32), random_blocks(rng, name, 333, width)
    want = np.empty((8, 333), np.float32)
    kernels.quantized_forward(want, x, w, name)
    for rows, threads in ((slice(0, 1), 1), (slice(2, 5), 1), (slice(1, 7), 3)):
        kernels.set_num_threads(threads)
        got = np.empty((8, 333), np.float32)[rows]
        kernels.quantized_forward(got, x[rows], w, name)
        assert np.array_equal(got, want[rows])


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_row_of_w_gives_the_same_bits_alone_and_among_others(name: str, kernels: Any) -> None:
    """Eight rows are multiplied side by side, the last seven of 23 one by one."""
    rng = np.random.default_rng(3)
    width = 2 * BLOCK_FORMATS[name].values
    x, w = rng.standard_normal((5, width), np.float32), random_blocks(rng, name, 23, width)
    ops = [kernels.quantized_forward] + [kernels.quantized_forward_q8] * (name not in NOT_INTEGERS)
    for op in ops:
        among, alone = np.empty((5, 23), np.float32), np.empty((5, 1), np.float32)
        op(among, x, w, name)
        for row in (0, 5, 15, 16, 22):
            op(alone, x, w[row : row + 1], name)
            assert np.array_equal(alone[:, 0], among[:, row])


def test_rounded_rows_are_near_and_nothing_that_is_no_number_is_lost(kernels: Any) -> None:
    """Each group of 32 is off by half a 127th of its largest magnitude at most."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((3, 256), np.float32), random_blocks(rng, "q6_k", 50, 256)
    exact, rounded = np.empty((3, 50), np.float32), np.empty((3, 50), np.float32)
    kernels.quantized_forward(exact, x, w, "q6_k")
    kernels.quantized_forward_q8(rounded, x, w, "q6_k")
    largest = np.repeat(np.abs(x.reshape(3, 8, 32)).max(axis=2), 32, axis=1)
    bound = largest / 254 @ np.abs(values_of(w, "q6_k", 256)).T
    assert (np.abs(exact - rounded) <= bound * 1.001).all() and (exact != rounded).any()
    for bad in (np.nan, np.inf):
        for column in (0, 13, 255):
            x[1] = 1
            x[1, column] = bad
            kernels.quantized_forward_q8(rounded, x, w, "q6_k")
            assert np.isnan(rounded[1]).all() and np.isfinite(rounded[[0, 2]]).all()
    with pytest.raises(ValueError, match="the numbers of nf4 are no integers"):
        kernels.quantized_forward_q8(rounded, x, random_blocks(rng, "nf4", 50, 256), "nf4")


def test_what_does_not_fit_is_refused(kernels: Any) -> None:
    x, y = np.zeros((2, 64), np.float32), np.zeros((2, 3), np.float32)
    w = np.zeros((3, 68), np.uint8)
    kernels.quantized_forward(y, x, w, "q8_0")
    with pytest.raises(ValueError, match=r"format 'q3_x' is unknown.*q8_0"):
        kernels.quantized_forward(y, x, w, "q3_x")
    with pytest.raises(ValueError, match="rows of 64 values are no whole number of q4_k's blocks of 256"):
        kernels.quantized_forward(y, x, w, "q4_k")
    with pytest.raises(ValueError, match="w has 68 elements along axis 1, but the format asks for 36"):
        kernels.quantized_forward(y, x, w, "q4_0")
    with pytest.raises(ValueError, match="the dtype must be uint8"):
        kernels.quantized_forward(y, x, w.astype(np.int32), "q8_0")
    with pytest.raises(ValueError, match=r"ids\[1\] is 3, outside \[0, 3\)"):
        kernels.dequantize(x, w, "q8_0", np.array([0, 3], np.int32))
