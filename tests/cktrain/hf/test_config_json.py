"""config.json: spellings and defaults of transformers 4 and 5, and everything that must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cktrain.hf.config_json import model_type_of, read_model_config, write_model_config
from cktrain.hf.folder import resolve_model
from cktrain.models import parse_model
from cktrain.models.family import ModelConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read(folder: Path, values: dict[str, Any], **more: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**values, **more}))
    return read_model_config(folder)


def test_llama_with_the_defaults_of_its_class(tmp_path):
    config = read(tmp_path, LLAMA)
    assert (config.family, config.hidden_size, config.intermediate_size, config.vocab_size) == (
        "llama",
        24,
        40,
        100,
    )
    assert (config.num_hidden_layers, config.num_attention_heads, config.max_position_embeddings) == (
        3,
        4,
        64,
    )
    assert (config.num_key_value_heads, config.resolved_head_dim, config.rms_norm_eps) == (4, 6, 1e-6)
    assert (config.rope_theta, config.rope_scaling, config.tie_word_embeddings) == (10000.0, None, False)
    assert not (
        config.attention_bias or config.mlp_bias or config.qkv_bias or config.qk_norm or config.sliding_window
    )


def test_defaults_that_differ_between_the_classes(tmp_path):
    heads = {"num_attention_heads": 32, "hidden_size": 192}
    mistral = read(tmp_path, LLAMA, model_type="mistral", **heads)
    assert (mistral.num_key_value_heads, mistral.sliding_window, mistral.layer_types) == (8, 4096, None)
    assert read(tmp_path, LLAMA, model_type="mistral", sliding_window=None, **heads).sliding_window is None
    qwen2 = read(tmp_path, LLAMA, model_type="qwen2", **heads)
    assert (qwen2.num_key_value_heads, qwen2.qkv_bias, qwen2.attention_bias, qwen2.sliding_window) == (
        32,
        True,
        False,
        None,
    )
    qwen3 = read(tmp_path, LLAMA, model_type="qwen3", **heads)
    assert (qwen3.num_key_value_heads, qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (
        32,
        128,
        True,
        False,
    )


def test_gpt2_in_its_own_names(tmp_path):
    config = read(tmp_path, GPT2)
    assert (config.family, config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        "gpt2",
        24,
        3,
        4,
    )
    assert (config.max_position_embeddings, config.intermediate_size, config.tie_word_embeddings) == (
        64,
        None,
        True,
    )
    assert config.activation_function == "gelu_new"
    other = read(
        tmp_path,
        GPT2,
        n_inner=50,
        activation_function="gelu",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-6,
    )
    assert (other.intermediate_size, other.activation_function, other.tie_word_embeddings) == (
        50,
        "gelu",
        False,
    )
    assert other.layer_norm_epsilon == 1e-6


@pytest.mark.parametrize(
    "spelling",
    [
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32, **SCALED},
        },
        {
            "rope_theta": 5e5,
            "rope_scaling": {"type": "llama3", "original_max_position_embeddings": 32, **SCALED},
        },
        {
            "rope_parameters": {
                "rope_theta": 5e5,
                "rope_type": "llama3",
                "original_max_position_embeddings": 32,
                **SCALED,
            }
        },
        {
            "rope_theta": 5e5,
            "original_max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "llama3", **SCALED},
        },
    ],
    ids=["4", "before 2024", "5", "outside"],
)
def test_rope_in_every_spelling(tmp_path, spelling):
    config = read(tmp_path, LLAMA, **spelling)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == {"rope_type": "llama3", "original_max_position_embeddings": 32, **SCALED}


def test_llama3_without_its_original_length_takes_the_longest(tmp_path):
    config = read(tmp_path, LLAMA, rope_scaling={"rope_type": "llama3", **SCALED})
    assert config.rope_scaling is not None and config.rope_scaling["original_max_position_embeddings"] == 64


def test_rope_of_type_default_is_no_scaling(tmp_path):
    config = read(tmp_path, LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_scaling_without_its_kind_is_refused(tmp_path, key):
    with pytest.raises(
        ValueError, match=r"have 'factor' and no rope_type, .* Name the kind, one of default, linear"
    ):
        read(tmp_path, LLAMA, **{key: {"factor": 8.0}})
    assert read(tmp_path, LLAMA, **{key: {"factor": None}}).rope_scaling is None


def test_windows_of_qwen(tmp_path):
    def window(**keys: Any) -> tuple[int | None, list[str] | None]:
        config = read(tmp_path, LLAMA, model_type="qwen2", num_key_value_heads=4, sliding_window=8, **keys)
        return config.sliding_window, config.layer_types

    full, sliding = "full_attention", "sliding_attention"
    assert window() == (None, None)
    assert window(use_sliding_window=False, max_window_layers=1) == (None, None)
    assert window(use_sliding_window=True) == (None, None)  # its default of 28 full layers
    assert window(use_sliding_window=True, max_window_layers=0) == (8, None)
    assert window(use_sliding_window=True, max_window_layers=1) == (8, [full, sliding, sliding])
    assert window(use_sliding_window=True, max_window_layers=0, layer_types=[sliding, full, full]) == (
        8,
        [sliding, full, full],
    )


@pytest.mark.parametrize(
    ("base", "keys", "message"),
    [
        (
            LLAMA,
            {"model_type": "bert"},
            "model_type 'bert' is not supported. Use one of gemma3_text, gemma2, gpt2",
        ),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'. Only silu"),
        (GPT2, {"activation_function": "relu"}, "activation_function is 'relu'. Only gelu_new and gelu"),
        (
            GPT2,
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True. Only False",
        ),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights is False. Only True"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5. Only 1"),
        (
            LLAMA,
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
            "rope_type is 'dynamic'. Only default, linear, llama3, yarn, longrope",
        ),
        (
            LLAMA,
            {"rope_scaling": {"type": "longrope", "factor": 4.0}},
            "short_factor is None, and longrope needs a list",
        ),
        (
            LLAMA,
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}},
            "'finetuned' is no key",
        ),
        (LLAMA, {"no_rope_layers": [1, 0, 1]}, "no_rope_layers is [1, 0, 1] and llama has none"),
        (
            LLAMA,
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "One mapping for all layers",
        ),
        (LLAMA, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0. It is not supported"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts is 8"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"sliding_window": 8}, "sliding_window is 8 and llama has none"),
        (LLAMA, {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (LLAMA, {"vocab_size": None}, "vocab_size is missing"),
        (
            LLAMA,
            {"num_key_value_heads": 3},
            "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
        ),
        (LLAMA, {"hidden_size": "24"}, "hidden_size: input should be a valid integer"),
        (
            {**LLAMA, "model_type": "qwen2"},
            {"num_key_value_heads": 4, "layer_types": ["sliding_attention"] * 3},
            "no sliding_window",
        ),
    ],
)
def test_what_would_change_results_is_refused(tmp_path, base, keys, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, base, **keys)
    assert message in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


def test_no_folder_and_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: it cannot be read: No such file"):
        read_model_config(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_model_config(tmp_path)


FRESH = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "llama"),
        ({"attention_bias": True, "mlp_bias": True, "head_dim": 10}, "llama"),
        ({"attention_bias": True, "qkv_bias": True}, "llama"),
        ({"sliding_window": 5}, "mistral"),
        ({"num_attention_heads": 5, "head_dim": 6}, "mistral"),
        (MIXED, "ministral"),
        ({"no_rope_layers": [1, 0], "attention_bias": True, "mlp_bias": True}, "smollm3"),
        ({"no_rope_layers": [1, 1]}, "llama"),
        ({"qkv_bias": True, **MIXED}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({"qk_norm": True, "attention_bias": True, **MIXED}, "qwen3"),
        ({"family": "gpt2"}, "gpt2"),
    ],
)
def test_the_class_that_has_the_parts_and_the_way_back(tmp_path, keys, expected):
    config = parse_model({**FRESH, **keys})
    assert model_type_of(config) == expected
    values = write_model_config(config, "float32", {})
    back = read(tmp_path, values)
    before, after = config.meaning(32), back.meaning(32)
    if config.family == "llama":  # with attention_bias, qkv_bias says nothing
        assert before["attention_bias"] or before.pop("qkv_bias") == after.pop("qkv_bias")
        before.pop("qkv_bias", None), after.pop("qkv_bias", None)
    assert before == after
    assert back.max_position_embeddings == config.max_position_embeddings


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"qk_norm": True, "qkv_bias": True}, ["qkv_bias", "qk_norm"]),
        ({"qk_norm": True, "mlp_bias": True}, ["mlp_bias", "qk_norm"]),
        ({"attention_bias": True, "sliding_window": 5}, ["attention_bias", "sliding_window"]),
        ({**MIXED, "mlp_bias": True}, ["mlp_bias", "sliding_window on some layers"]),
        ({"no_rope_layers": [1, 0], "sliding_window": 5}, ["sliding_window", "no_rope_layers"]),
    ],
)
def test_no_class_has_these_parts(keys, parts):
    with pytest.raises(ValueError, match="no model_type") as error:
        model_type_of(parse_model({**FRESH, **keys}))
    assert all(part in str(error.value) for part in parts)


def test_resolve_model(tmp_path):
    fresh = parse_model(FRESH)
    assert resolve_model(fresh) == (fresh, None)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config, folder = resolve_model(parse_model({"from_pretrained": str(tmp_path)}))
    assert (config.hidden_size, folder) == (24, tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": {"a": 1}}, "model_type {'a': 1} is not supported"),
        ({"hidden_size": 24.0}, "hidden_size: .*integer, found 24.0"),
        ({"hidden_size": True}, "hidden_size: .*integer, found True"),
        ({"hidden_size": [24]}, r"hidden_size: .*integer, found \[24\]"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": 0}, "vocab_size: .*greater than 0"),
        ({"vocab_size": 10**18}, "vocab_size: .*more than 2"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers.*'3'"),
        ({"num_hidden_layers": {}}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: .*greater than 0"),
        ({"head_dim": "6"}, "head_dim: .*integer"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: .*number, found '1e-6'"),
        ({"rms_norm_eps": [1e-6]}, "rms_norm_eps: .*number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: .*greater than 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps: .*number, found True"),
        ({"rope_theta": 0}, "rope_theta: .*greater than 0"),
        ({"rope_theta": -1e4}, "rope_theta: .*greater than 0"),
        ({"rope_theta": {}}, "rope_theta: .*number"),
        ({"rope_theta": 1e300}, "rope_theta: .*infinite in fp32"),
        ({"initializer_range": "0.02"}, "initializer_range: .*number"),
        ({"initializer_range": {}}, "initializer_range: .*number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: .*boolean, found 'false'"),
        ({"attention_bias": "no"}, "attention_bias: .*boolean"),
        ({"mlp_bias": 1}, "mlp_bias: .*boolean"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'. Write one mapping"),
        ({"rope_scaling": "null"}, "rope_scaling is 'null'. Write one mapping for all layers, or null without quotes"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\]. Write one mapping"),
        ({"rope_scaling": False}, "rope_scaling is False. Write one mapping"),
        ({"rope_parameters": 3}, "rope_parameters is 3. Write one mapping"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "factor is -2"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type is"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is None"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention', a list"),
        ({"layer_types": [1, 2]}, "layer_types is .*, a list of names"),
        ({"layer_types": [["a"]]}, "layer_types is .*, a list of names"),
        ({"model_type": "qwen2", "max_window_layers": "2", "use_sliding_window": True}, "max_window_layers is '2'"),
        ({"model_type": "qwen2", "use_sliding_window": "false"}, "use_sliding_window is 'false'"),
        ({"model_type": "mistral", "sliding_window": "9"}, "sliding_window: .*integer"),
        ({"model_type": "mistral", "sliding_window": -1}, "sliding_window: .*greater than 0"),
        ({"text_config": {"hidden_size": 24}}, "text_config is .*not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "predicts no tokens. Give a LlamaForCausalLM"),
        ({"quantization_config": "fp8"}, "quantization_config is 'fp8'.*Give the model before its quantization"),
    ],
)  # fmt: skip
def test_odd_types_and_numbers_are_refused_by_key(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, {**LLAMA, "num_key_value_heads": 4} | keys)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '"llama"', '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 99999, "", "\x00"]
)
def test_json_that_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^\[hugging_face\] .*config\.json: "):
        read_model_config(tmp_path)


def test_a_name_of_the_hub_comes_with_the_command_that_fetches_it():
    with pytest.raises(ValueError, match=r"hf download nobody/no-such-model --local-dir FOLDER"):
        read_model_config("nobody/no-such-model")


def test_an_adapter_and_a_folder_of_the_cache_are_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"an adapter .LoRA., not a model: give the model"):
        read_model_config(tmp_path)
    (tmp_path / "cache" / "snapshots").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"hub's cache: give one of those in .*snapshots"):
        read_model_config(tmp_path / "cache")
