"""K-quants encoded here: what the package gguf decodes is near, and no farther than from llama.cpp's own encoder."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from cktrain.hf.k_quants import encode_k

gguf = pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.judge

FORMATS = ("q4_k", "q5_k", "q6_k")
STEPS = {"q4_k": 15, "q5_k": 31, "q6_k": 63}
NOT_WORSE = {"q4_k": 1.0, "q5_k": 1.0, "q6_k": 0.97}
"""Our root mean square error over llama.cpp's: 0.98 to 0.99, 0.96 and 0.94 to 0.95 were measured."""


def decoded(blocks: np.ndarray, format: str) -> np.ndarray:
    found: np.ndarray = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[format.upper()])
    return found


def encoded_by_llama_cpp(values: np.ndarray, format: str) -> np.ndarray:
    library = ctypes.CDLL(str(Path(xllamacpp.__file__).parent / "xllamacpp.abi3.so"))
    kind = gguf.GGMLQuantizationType[format.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.empty((len(values), values.shape[1] // block * size), np.uint8)
    encode = library.ggml_quantize_chunk
    encode.restype = ctypes.c_size_t
    encode.argtypes = [ctypes.c_int, *2 * [ctypes.c_void_p], *3 * [ctypes.c_int64], ctypes.c_void_p]
    assert encode(kind, values.ctypes.data, blocks.ctypes.data, 0, *values.shape, None) == blocks.size
    return blocks


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", ["normal", "long tails", "shifted"])
def test_errors_are_no_larger_than_llama_cpps(format: str, shape: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal((96, 1024)) * 0.02,
        "long tails": rng.standard_t(4, (96, 1024)) * 0.02,
        "shifted": rng.standard_normal((96, 1024)) * 0.02 + 0.01,
    }[shape].astype(np.float32)

    def error(blocks: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(decoded(blocks, format) - values))))

    assert error(encode_k(values, format)) <= NOT_WORSE[format] * error(encoded_by_llama_cpp(values, format))


@pytest.mark.parametrize("format", FORMATS)
def test_every_group_is_within_a_step_of_its_range(format: str) -> None:
    """Also where the groups of a block differ much: a group's scale is an integer of 6 (8) bits of the block's."""
    rng = np.random.default_rng(4)
    sizes = np.repeat(2.0 ** rng.integers(-4, 1, (64, 32)), 32, axis=1)
    values = (rng.standard_normal((64, 1024)) * sizes).astype(np.float32)
    off = np.abs(decoded(encode_k(values, format), format) - values).reshape(64, 4, 8, 32)
    groups = values.reshape(64, 4, 8, 32)
    span = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)
    if format == "q6_k":
        span = 2 * np.abs(groups).max(-1)
    assert np.all(off.max(-1) <= span / STEPS[format] + span.max(-1, keepdims=True) / 63)


@pytest.mark.parametrize("format", FORMATS)
def test_unusual_blocks(format: str) -> None:
    values = np.zeros((7, 256), np.float32)
    values[1] = 3.0  # one number throughout
    values[2] = -3.0
    values[3, 40] = 1.0  # a single one
    values[4] = 1e-30  # below what fp16 scales hold
    values[5] = 60000.0
    values[6, ::2] = -(2.0**-20)
    found = decoded(encode_k(values, format), format)
    assert np.isfinite(found).all()
    assert not found[0].any() and not found[4].any()
    for row in (1, 2, 5):
        np.testing.assert_allclose(found[row], values[row], rtol=0.02)
    assert found[3, 40] == pytest.approx(1.0, rel=0.02) and np.abs(np.delete(found[3], 40)).max() < 0.02
    assert np.abs(found[6] - values[6]).max() <= 2.0**-20


def test_rows_are_encoded_alone_and_whole() -> None:
    values = np.random.default_rng(5).standard_normal((1030, 512)).astype(np.float32)
    whole = encode_k(values, "q4_k")
    assert whole.shape == (1030, 288) and whole.dtype == np.uint8
    np.testing.assert_array_equal(whole[1000:], encode_k(values[1000:], "q4_k"))
