"""What config.json of each family's real checkpoints means here, and what of it is refused by name.

The values are those of the published files, as far as they are the architecture's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cktrain.hf.config_json import ARCHITECTURES, read_model_config, write_model_config
from cktrain.hf.missing_families import MISSING
from cktrain.hf.text_part import TEXT_PARTS
from cktrain.models.family import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA_3_4B = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"},
}
GEMMA_2_27B = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
SMOLLM3_3B = {
    "model_type": "smollm3",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
OLMO3_7B = {
    "model_type": "olmo3",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 8,
    "max_position_embeddings": 65536,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500000,
    "sliding_window": 4096,
    "vocab_size": 100278,
}
PHI_4_MINI = {
    "model_type": "phi3",
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GRANITE_33_2B = {
    "model_type": "granite",
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49159,
}
GRANITE_4_1B = {
    "model_type": "granitemoehybrid",
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "layer_types": ["attention"] * 40,
    "logits_scaling": 8,
    "max_position_embeddings": 131072,
    "num_attention_heads": 16,
    "num_experts_per_tok": 0,
    "num_hidden_layers": 40,
    "num_key_value_heads": 4,
    "num_local_experts": 0,
    "position_embedding_type": "rope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000,
    "shared_intermediate_size": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 100352,
}
MINISTRAL_8B = {
    "model_type": "ministral",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "layer_types": [FULL, SLIDING, SLIDING, SLIDING] * 9,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000000.0,
    "sliding_window": 32768,
    "vocab_size": 131072,
}


def read(folder: Path, values: dict[str, Any], **more: Any) -> ModelConfig:
    given = {key: value for key, value in {**values, **more}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(given))
    return read_model_config(folder)


MEANINGS = {
    "gemma 3 1b": (
        GEMMA_3_1B,
        {
            "layer_types": [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(26)],
            "sliding_window": 512,
            "tied": True,
            "qk_norm": True,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "query_pre_attn_scalar": 256,
            "final_logit_softcapping": None,
        },
    ),
    "gemma 3 4b": (
        GEMMA_3_4B,
        {
            "layer_types": [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(34)],
            "sliding_window": 1024,
            "tied": True,
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "rope_theta": 1e6,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_local_base_freq": 1e4,
        },
    ),
    "gemma 2 27b": (
        GEMMA_2_27B,
        {
            "layer_types": [SLIDING, FULL] * 23,
            "tied": True,
            "qk_norm": False,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 144,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "rope_local_base_freq": None,
        },
    ),
    "smollm3 3b": (SMOLLM3_3B, {"tied": True, "turned": [True, True, True, False] * 9, "windows": [0] * 36}),
    "olmo3 7b": (
        OLMO3_7B,
        {"windows": [4096, 4096, 4096, 0] * 8, "rope_scaling": OLMO3_7B["rope_scaling"], "rope_theta": 5e5},
    ),
    "phi 4 mini": (
        PHI_4_MINI,
        {
            "turned": 96,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "long_factor": [2.0] * 48,
                "short_factor": [1.0] * 48,
            },
            "windows": [262144] * 32,
        },
    ),
    "granite 3.3 2b": (
        GRANITE_33_2B,
        {"attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    ),
    "granite 4 1b": (
        GRANITE_4_1B,
        {"intermediate_size": 4096, "residual_multiplier": 0.22, "position_embedding_type": "rope"},
    ),
    "ministral 8b": (MINISTRAL_8B, {"windows": [0, 32768, 32768, 32768] * 9}),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_published_config_is_read_and_written_back(name, tmp_path):
    values, wanted = MEANINGS[name]
    config = read(tmp_path, values)
    assert {key: getattr(config, key) for key in wanted} == wanted
    written = write_model_config(config, "bfloat16", {})
    assert written["model_type"] == TEXT_PARTS.get(values["model_type"], values["model_type"])
    assert read(tmp_path, written).meaning(64) == config.meaning(64)


def test_layer_types_and_rotary_blocks_of_transformers_5(tmp_path):
    old = read(tmp_path, GEMMA_3_1B, rope_scaling={"rope_type": "linear", "factor": 8.0})
    blocks = {
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    }
    gone = dict.fromkeys(("rope_theta", "rope_local_base_freq", "sliding_window_pattern"), ...)
    new = read(tmp_path, GEMMA_3_1B, rope_parameters=blocks, layer_types=old.layer_types, **gone)
    assert new == old
    bare = read(tmp_path, GEMMA_3_1B, **gone)
    assert bare == old.model_copy(update={"rope_scaling": None})


def test_what_the_class_of_a_phi_calls_yarn_is_longrope(tmp_path):
    wanted = read(tmp_path, PHI_4_MINI)
    for name in ("su", "yarn"):
        scaling = PHI_4_MINI["rope_scaling"] | {"type": name}
        assert read(tmp_path, PHI_4_MINI, rope_scaling=scaling) == wanted


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (GEMMA_3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0. It is not supported beside"),
        (GEMMA_3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True. Only False"),
        (GEMMA_3_1B, {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'. Only gelu_pytorch_tanh"),
        (GEMMA_3_1B, {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "scales sliding_attention"),
        (GEMMA_3_1B, {"rope_parameters": {"global": {}}}, "rope_parameters has 'global'. It has full_attention and"),
        (GEMMA_3_1B, {"layer_types": ["chunked_attention"] * 26}, "layer_types has 'chunked_attention'. Only"),
        (GEMMA_3_1B, {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        (GEMMA_3_4B, {"text_config": [1]}, "text_config is list, an object is needed"),
        (GEMMA_3_4B, {"text_config": ...}, "text_config is NoneType, an object is needed"),
        (GEMMA_3_4B, {"text_config": {"model_type": "llama"}}, "model_type 'llama'. Only 'gemma3_text'"),
        (GEMMA_3_4B, {"text_config": {"use_bidirectional_attention": True}}, "use_bidirectional_attention is True"),
        (GEMMA_3_1B, {"model_type": "gemma4_text"}, "The nearest that is, is Gemma 3 (gemma3_text)."),
        (SMOLLM3_3B, {"model_type": "qwen3_5_text"}, "gated DeltaNet, a recurrence over the tokens"),
        (GEMMA_2_27B, {"sliding_window": None}, "sliding_window is missing"),
        (SMOLLM3_3B, {"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0], 0 or 1 for each of 36 layers"),
        (SMOLLM3_3B, {"no_rope_layers": [2] * 36}, "no_rope_layers is"),
        (SMOLLM3_3B, {"use_sliding_window": True}, "use_sliding_window is true. Only false"),
        (OLMO3_7B, {"rope_theta": 1e6}, "rope_theta is 1000000.0 in full layers, and sliding ones have"),
        (OLMO3_7B, {"layer_types": [SLIDING] * 3}, "layer_types has 3 entries for 32"),
        (PHI_4_MINI, {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
         "short_factor has 1 numbers, and 96 numbers of a head turn"),
        (PHI_4_MINI, {"rope_scaling": None, "partial_rotary_factor": 0.76}, "are 97 numbers, which rotary"),
        (PHI_4_MINI, {"rope_scaling": None, "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (GRANITE_4_1B, {"num_local_experts": 8}, "num_local_experts is 8. Only 0 is supported: give a dense"),
        (GRANITE_4_1B, {"layer_types": ["mamba"] * 40}, "Only attention in all 40 layers is supported"),
        (GRANITE_4_1B, {"position_embedding_type": "learned"}, "position_embedding_type is 'learned'. Only rope"),
        (GRANITE_33_2B, {"residual_multiplier": 0}, "residual_multiplier: "),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(values, keys, message, tmp_path):
    with pytest.raises(ValueError) as error:
        read(tmp_path, values, **keys)
    assert message in str(error.value) and str(tmp_path / "config.json") in str(error.value)


def test_what_is_called_missing_is_missing_and_the_nearest_is_not():
    assert not set(MISSING) & set(ARCHITECTURES)
    for _, nearest in MISSING.values():
        assert set(nearest.rpartition("(")[2].rstrip(")").split(", ")) <= set(ARCHITECTURES), nearest


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma 2 27b", {"rope_local_base_freq": 100.0}),
        ("gemma 3 1b", {"attn_logit_softcapping": 50.0}),
        (
            "gemma 3 1b",
            {"rope_local_base_freq": None, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ("phi 4 mini", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("smollm3 3b", {"qk_norm": True, "qkv_bias": True}),
    ],
)
def test_a_combination_that_no_class_has_is_not_written(name, changes, tmp_path):
    config = read(tmp_path, MEANINGS[name][0]).model_copy(update=changes)
    with pytest.raises(ValueError, match="Train with"):
        write_model_config(config, "float32", {})
