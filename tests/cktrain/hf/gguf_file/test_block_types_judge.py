"""Block types: llama.cpp and cktrain take the same file for the same model.

Blocks of the K-quants are drawn, so that all of their bits are used. llama.cpp rounds activations to 8 bits beside
such matrices, so log-probabilities differ by about a hundredth of their spread; a tenth tells right from wrong.
"""

import gguf
import numpy as np
import pytest
from gguf_made_here import SIZES, byte_level, side_files
from test_llama_cpp_judge import IDS, log_probabilities, ours

from cktrain import cython_kernels
from cktrain.hf.gguf_file import export
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

pytestmark = pytest.mark.judge
# Of a block of 256: where its scales in F16 stand, and values that make weights of about 0.05.
SCALES = {
    "Q2_K": {80: 0.004, 82: 0.006},
    "Q3_K": {108: 0.001},
    "Q4_K": {0: 0.0002, 2: 0.0015},
    "Q5_K": {0: 0.0001, 2: 0.0015},
    "Q6_K": {208: 0.00005},
}


def blocks(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """As `export._stored`, for these types."""
    known = gguf.GGMLQuantizationType[kind]
    if kind not in SCALES:
        return values.view(np.uint8) if kind == "F32" else gguf.quants.quantize(values, known)
    block, size = gguf.GGML_QUANT_SIZES[known]
    shape = values.shape[0], values.shape[1] // block, size
    data = np.random.default_rng(len(name)).integers(0, 256, shape, dtype=np.uint8)
    for place, scale in SCALES[kind].items():
        data[..., place : place + 2] = np.array([scale], np.float16).view(np.uint8)
    return data.reshape(values.shape[0], -1)


@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "q6_k", "mxfp4"])
def test_files_of_few_bits_that_are_written_here(kind, gguf):
    """The widths are 256 and 96, so that K-quants and what takes their place are there."""
    path = gguf("llama", kind, hidden_size=256, head_dim=64)
    theirs = log_probabilities(path, IDS)
    assert np.abs(theirs - ours(path, IDS)).max() < 0.1 * np.ptp(theirs)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", *SCALES])
def test_blocks_are_the_numbers_that_llama_cpp_takes_them_for(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_stored", blocks)
    monkeypatch.setattr(export, "wanted_type", lambda name, shape, *_: "F32" if len(shape) == 1 else kind)
    config = parse_model({**SIZES, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1})
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    params = ParamStore(build_model(config, numerics, 64).params(), numerics)
    params.initialize(seed=7)
    path = tmp_path / "m.gguf"
    export.export_gguf(path, config, params, side_files(tmp_path / "side", byte_level()), "f16")
    theirs = log_probabilities(path, IDS)
    assert np.abs(theirs - ours(path, IDS)).max() < 0.1 * np.ptp(theirs)
