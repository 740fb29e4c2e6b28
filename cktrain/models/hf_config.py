"""config.json of Hugging Face to a `ModelConfig` and back: llama, mistral, qwen2, qwen3, gpt2.

What would change the model's results and is not computed here is an error, never ignored. Dropout is the
exception: it is not applied in training here, and is written as zero. A missing key has the default of
transformers' class.

Rotary settings are read in both spellings: `rope_theta` with `rope_scaling`, and the `rope_parameters` of
transformers 5; the first is written, which both versions read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cktrain.config import MOST_LAYERS, ModelConfig
from cktrain.foreign_file import read_json, shorten, spell
from cktrain.rope_scaling import ROPE_KINDS

CONFIG_FILE = "config.json"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

# Defaults of transformers' classes where they are not ModelConfig's.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "gpt2": {"tie_word_embeddings": True},
}

# Keys that change results, with the values that mean "not used"; None means so in all of them.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_chunk_size": (),
    "no_rope_layers": (),
    "clip_qkv": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_multiplier": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "quantization_config": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "text_config": (),
    "vision_config": (),
}

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def read_model_config(folder: str | Path) -> ModelConfig:
    """The architecture that a folder's config.json describes. Raises ValueError for what is not supported."""
    path = Path(folder) / CONFIG_FILE
    remedy = "Give a folder with a Hugging Face model in it, or fetch the file again."
    if not path.exists():
        remedy = _what_it_holds(Path(folder)) or remedy
    values = read_json(path, dict[str, Any], area="hugging_face", remedy=remedy)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ValueError(
            f"[hugging_face] {path}: model_type {shorten(model_type)} is not supported. Use one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    try:
        return _read(model_type, {**_DEFAULTS[model_type], **values})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(
            f"[hugging_face] {path}: {key + ': ' if key else ''}{spell(problem)}. Correct the file."
        ) from None
    except ValueError as error:
        raise ValueError(f"[hugging_face] {path}: {error}") from None


def _what_it_holds(folder: Path) -> str | None:
    """What to do with a folder that has no config.json and is known to be something else."""
    if (folder / "adapter_config.json").exists():
        return "The folder holds an adapter (LoRA), not a model: merge it with peft's merge_and_unload and save that."
    snapshots = folder / "snapshots"
    if snapshots.is_dir():
        return f"The folder is one of the hub's cache: give one of those in {snapshots}."
    return None


def _read(model_type: str, values: Mapping[str, Any]) -> ModelConfig:
    for key, unused in _REFUSED.items():
        if values.get(key) is not None and values[key] not in unused:
            allowed = f"Only {unused[0]!r} is" if unused else "It is not"
            raise ValueError(f"{key} is {shorten(values[key])}. {allowed} supported.")
    names = _GPT2_NAMES if model_type == "gpt2" else {}
    found: dict[str, Any] = {"family": "gpt2" if model_type == "gpt2" else "llama"}
    for key in (*_SIZES, "intermediate_size"):
        value = values.get(names.get(key, key), values.get(key))
        if value is not None:
            found[key] = value
        elif key != "intermediate_size" or model_type != "gpt2":
            raise ValueError(f"{names.get(key, key)} is missing. Fetch the file again.")
    if values.get("initializer_range") is not None:
        found["initializer_range"] = values["initializer_range"]
    found["tie_word_embeddings"] = _given(values, "tie_word_embeddings", False)
    if model_type == "gpt2":
        found["activation_function"] = _activation(
            values, "activation_function", ("gelu_new", "gelu"), "gelu_new"
        )
        found["layer_norm_epsilon"] = _given(values, "layer_norm_epsilon", 1e-5)
        return ModelConfig(**found)
    _activation(values, "hidden_act", ("silu",), "silu")
    found["num_key_value_heads"] = _given(values, "num_key_value_heads", found["num_attention_heads"])
    if values.get("head_dim") is not None:
        found["head_dim"] = values["head_dim"]
    found["rms_norm_eps"] = _given(values, "rms_norm_eps", _DEFAULTS[model_type]["rms_norm_eps"])
    found["attention_bias"] = model_type in ("llama", "qwen3") and _given(values, "attention_bias", False)
    found["mlp_bias"] = model_type == "llama" and _given(values, "mlp_bias", False)
    found["qkv_bias"] = model_type == "qwen2"
    found["qk_norm"] = model_type == "qwen3"
    return ModelConfig(**found, **_read_rope(values), **_read_window(model_type, values))


def _given(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """The key's value; null is as good as none. Its type is checked with the whole."""
    value = values.get(key)
    return default if value is None else value


def _layer_count(values: Mapping[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_LAYERS:
        raise ValueError(f"{key} is {shorten(value)}, a number of layers up to {MOST_LAYERS:,} is needed.")
    return value


def _activation(values: Mapping[str, Any], key: str, supported: tuple[str, ...], default: str) -> str:
    name = values.get(key, default)
    if name not in supported:
        raise ValueError(f"{key} is {name!r}. Only {' and '.join(supported)} are supported.")
    return str(name)


def _read_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling out of either spelling; the older wins where both stand, as there."""
    for key in ("rope_scaling", "rope_parameters"):
        nested = values.get(key)
        if nested is not None and not isinstance(nested, Mapping):
            raise ValueError(f"{key} is {shorten(nested)}. One mapping for all layers is supported.")
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(f"rope parameters are {shorten(given)}. One mapping for all layers is supported.")
    rope = dict(given)
    theta = _given(
        {"rope_theta": rope.pop("rope_theta", None)}, "rope_theta", _given(values, "rope_theta", 10000.0)
    )
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ValueError(f"rope_type is {shorten(kind)}. Only {', '.join(ROPE_KINDS)} are supported.")
    if rope.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
        raise ValueError("partial_rotary_factor is not 1. Only 1 is supported.")
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "llama3":
        positions = values.get("original_max_position_embeddings")
        if positions is not None:
            rope["original_max_position_embeddings"] = positions
        rope.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **rope}}


def _read_window(model_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """sliding_window and layer_types."""
    window, types = values.get("sliding_window"), values.get("layer_types")
    layers = _layer_count(values, "num_hidden_layers")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise ValueError(f"layer_types is {shorten(types)}, a list of names is needed.")
    if model_type in ("qwen2", "qwen3"):
        used = _given(values, "use_sliding_window", False)
        if not isinstance(used, bool):
            raise ValueError(f"use_sliding_window is {shorten(used)}, true or false is needed.")
        window = window if used else None
        if types is None:
            full = _layer_count(values, "max_window_layers")  # the first so many layers see everything
            types = ["sliding_attention" if window and i >= full else "full_attention" for i in range(layers)]
    elif model_type == "llama" and window is not None:
        raise ValueError(f"sliding_window is {window} and llama has none. Is the model_type mistral?")
    else:  # these classes do not read layer_types: it may only say what they do
        kind = "full_attention" if window is None else "sliding_attention"
        if types is not None and set(types) != {kind}:
            raise ValueError(
                f"layer_types is {types!r}, and {model_type}'s layers are all {kind}. Remove it."
            )
        types = [kind] * layers
    if "sliding_attention" not in types:
        return {}
    if window is None:
        raise ValueError(
            "layer_types has sliding_attention and no sliding_window is used. Correct one of them."
        )
    return {
        "sliding_window": window,
        "layer_types": None if set(types) == {"sliding_attention"} else list(types),
    }


def model_type_of(config: ModelConfig) -> str:
    """The model_type that has this architecture's parts. Raises ValueError where none has them all."""
    c = config
    assert c.hidden_size and c.num_attention_heads
    uneven = c.hidden_size % c.num_attention_heads != 0
    if c.family == "gpt2":
        other_heads = (c.num_key_value_heads or c.num_attention_heads) != c.num_attention_heads
        given = {
            "num_key_value_heads": other_heads,
            "head_dim": c.resolved_head_dim * c.num_attention_heads != c.hidden_size,
            "qk_norm": c.qk_norm,
            "attention_bias": c.attention_bias,
            "qkv_bias": c.qkv_bias,
            "mlp_bias": c.mlp_bias,
            "sliding_window": c.sliding_window is not None,
            "rope_scaling": c.rope_scaling is not None,
        }
        extra = [key for key, is_given in given.items() if is_given]
        if extra:
            raise ValueError(f"[hugging_face] no model_type is gpt2 with {', '.join(extra)}. Export without.")
        return "gpt2"
    sliding = c.sliding_window is not None
    mixed = sliding and c.layer_types is not None and "full_attention" in c.layer_types
    qkv_only = c.qkv_bias and not c.attention_bias
    # What each class has: the parts that it must and may have, from the plainest class on.
    if not (qkv_only or c.qk_norm or sliding or uneven):
        return "llama"
    if not (qkv_only or c.qk_norm or mixed or c.attention_bias or c.mlp_bias):
        return "mistral"
    if qkv_only and not (c.qk_norm or c.mlp_bias):
        return "qwen2"
    if c.qk_norm and not (qkv_only or c.mlp_bias):
        return "qwen3"
    parts = {
        "attention_bias": c.attention_bias,
        "qkv_bias": qkv_only,
        "mlp_bias": c.mlp_bias,
        "qk_norm": c.qk_norm,
        "sliding_window": sliding and not mixed,
        "sliding_window on some layers": mixed,
        f"hidden_size {c.hidden_size} for {c.num_attention_heads} heads": uneven,
    }
    raise ValueError(
        f"[hugging_face] no model_type of {', '.join(ARCHITECTURES)} has all of "
        f"{', '.join(part for part, used in parts.items() if used)}. Train with a combination that one has "
        "to export."
    )


def write_model_config(config: ModelConfig, dtype: str, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's content. `dtype` is float32 or bfloat16; `special_ids` are bos_token_id and so on.

    Raises ValueError when no Hugging Face class has this architecture.
    """
    c = config
    model_type = model_type_of(c)
    if c.max_position_embeddings is None:
        raise ValueError("[hugging_face] the model has no max_position_embeddings. Give it before saving.")
    common = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "initializer_range": c.initializer_range,
        "tie_word_embeddings": c.tie_word_embeddings
        if c.tie_word_embeddings is not None
        else model_type == "gpt2",
        "torch_dtype": dtype,
        "use_cache": True,
        **{key: special_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    sizes = {key: getattr(c, key) for key in (*_SIZES, "intermediate_size") if key != "vocab_size"}
    if model_type == "gpt2":
        return (
            common
            | {_GPT2_NAMES[key]: value for key, value in sizes.items()}
            | {
                "activation_function": c.activation_function,
                "layer_norm_epsilon": c.layer_norm_epsilon,
                "attn_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "resid_pdrop": 0.0,
            }
        )
    found = (
        common
        | sizes
        | {
            "num_key_value_heads": c.num_key_value_heads or c.num_attention_heads,
            "head_dim": c.resolved_head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope_theta,
            "rope_scaling": c.rope_scaling,
            "attention_dropout": 0.0,
        }
    )
    if model_type in ("llama", "qwen3"):
        found["attention_bias"] = c.attention_bias
    if model_type == "llama":
        found["mlp_bias"] = c.mlp_bias
    if model_type == "mistral":
        found["sliding_window"] = c.sliding_window
    if model_type in ("qwen2", "qwen3"):
        found |= _write_window(c)
    return found


def _write_window(config: ModelConfig) -> dict[str, Any]:
    """Qwen's keys: `max_window_layers` says as much as `layer_types` where the full layers come first."""
    assert config.num_hidden_layers
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    types = (
        config.layer_types
        if kind == "sliding_attention" and config.layer_types
        else [kind] * config.num_hidden_layers
    )
    full = next((i for i, kind in enumerate(types) if kind == "sliding_attention"), len(types))
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": full,
        "layer_types": types,
    }
