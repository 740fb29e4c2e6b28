"""Rotary scaling of a GGUF file: what belongs together, and numbers that are none."""

import numpy as np
import pytest

from cktrain.hf.gguf_file import rope_keys
from cktrain.hf.gguf_file.reader import GGUFFile, read_gguf
from cktrain.hf.gguf_file.rope_keys import LLAMA3, LONG, SHORT, read_rope

VALUES = {"head_dim": 8, "max_position_embeddings": 64, "rope_theta": 10000.0}
ONES = np.ones(4, np.float32)


@pytest.fixture
def file(gguf) -> GGUFFile:
    return read_gguf(gguf("llama"))


@pytest.mark.parametrize(
    ("kind", "divisors", "message"),
    [
        ("none", {LLAMA3: ONES[:3]}, r"rope_freqs\.weight is not 4 positive numbers"),
        ("none", {SHORT: ONES, LONG: ONES * np.nan}, r"rope_factors_long\.weight is not 4 positive numbers"),
        ("none", {SHORT: ONES, LONG: ONES * 0}, r"rope_factors_long\.weight is not 4 positive numbers"),
        ("none", {LONG: ONES}, r"it has rope_factors_long\.weight with llama\.rope\.scaling\.type 'none'"),
        ("yarn", {LLAMA3: ONES}, "which do not belong together"),
        ("none", {LLAMA3: np.array([1, 5, 2, 9], np.float32)}, "holds the divisors of no llama3 scaling"),
        ("su", {}, "rope.scaling.type is 'su', which is not computed here"),
        ("yarn", {}, "rope.scaling.factor"),
    ],
)
def test_what_is_damaged_or_does_not_belong_together_is_refused(file, kind, divisors, message):
    file.keys["llama.rope.scaling.type"] = kind
    file.keys["llama.rope.dimension_count"] = 8
    with pytest.raises(ValueError, match=message):
        read_rope(file, "llama", VALUES, divisors)


@pytest.mark.parametrize("key", ["attn_factor", "yarn_log_multiplier", "yarn_attn_factor", "yarn_ext_factor"])
def test_yarn_with_what_is_not_computed_is_refused(file, key):
    file.keys.update({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0})
    assert read_rope(file, "llama", VALUES, {})["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    file.keys[f"llama.rope.scaling.{key}"] = 0.5
    with pytest.raises(ValueError, match=rf"llama\.rope\.scaling\.{key} is 0\.5"):
        read_rope(file, "llama", VALUES, {})


def test_betas_and_an_attention_factor_of_its_own_come_along(file):
    file.keys.update({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0})
    file.keys.update({"llama.rope.scaling.yarn_beta_fast": 16.0})
    assert read_rope(file, "llama", VALUES, {})["rope_scaling"]["beta_fast"] == 16.0
    del file.keys["llama.rope.scaling.type"]
    file.keys.update(
        {"llama.rope.scaling.original_context_length": 16, "llama.rope.scaling.attn_factor": 1.5}
    )
    file.keys["llama.rope.dimension_count"] = 8
    found = read_rope(file, "llama", VALUES, {SHORT: ONES, LONG: ONES * 2})
    assert (
        found["rope_scaling"]["attention_factor"] == 1.5 and found["original_max_position_embeddings"] == 16
    )
    assert found["rope_scaling"]["factor"] == 4.0
    assert rope_keys.FACTORS == (LLAMA3, SHORT, LONG)
