"""Phi-3: frequencies by the length of the sequence, and fused projections in the files as here.

The parity of logits, loss and gradients, its layouts and its cache are tested with those of all families.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "hf"))
from hf_parity import golden_folder

import cktrain as ck
from cktrain import cython_kernels
from cktrain.hf.config_json import read_model_config
from cktrain.hf.tensors import hf_tensors
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

ORIGINAL = 12
"""Positions up to which the case's short factors hold."""


def ids(length: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 33, (1, length))


def test_a_sequences_length_alone_chooses_its_frequencies():
    model = ck.load(golden_folder("phi3_longrope"))
    short = model.logits(ids(ORIGINAL))
    long = model.logits(ids(ORIGINAL + 1))
    assert np.abs(long[:, :ORIGINAL] - short).max() > 0.1  # causal: only the frequencies differ
    assert np.array_equal(model.logits(ids(ORIGINAL)), short)


@pytest.mark.judge
@pytest.mark.parametrize("length", [3, ORIGINAL, ORIGINAL + 1, 30])
def test_short_and_long_sequences_are_those_of_transformers(length):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = golden_folder("phi3_longrope")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids(length))).logits.numpy()
    found = ck.load(folder).logits(ids(length))
    assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_its_fused_projections_are_one_tensor_each():
    config = read_model_config(golden_folder("phi3"))
    model = build_model(config, Numerics(cython_kernels.load("reference"), "fp32"), 8)
    names = {tensor.name for tensor in hf_tensors(config, model.params()) if "layers.0" in tensor.name}
    assert names == {
        f"model.layers.0.{module}.weight"
        for module in (
            "self_attn.qkv_proj",
            "self_attn.o_proj",
            "mlp.gate_up_proj",
            "mlp.down_proj",
            "input_layernorm",
            "post_attention_layernorm",
        )
    }
