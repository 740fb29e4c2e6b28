"""Llama and its relatives: Llama 2/3, Mistral (sliding window), Ministral (a window in some layers), Qwen2 (QKV biases),
Qwen3 (QK-norm), SmolLM3 (some layers without rotary embedding).

    embed_tokens -> N x [ input_layernorm -> self_attn (+)  post_attention_layernorm -> mlp (+) ] -> norm -> lm_head

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_decoder, read_windows, write_decoder, write_windows
from cktrain.models.family import Family, TensorNames, TransformersClass, WindowedConfig

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class LlamaConfig(WindowedConfig):
    """Llama, Mistral (sliding_window), Ministral (layer_types), Qwen2 (qkv_bias), Qwen3 (qk_norm) and SmolLM3
    (no_rope_layers)."""

    family: Literal["llama"] = "llama"
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections only (Qwen2)."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    qk_norm: bool = False
    """RMSNorm on each query and key head (Qwen3)."""
    no_rope_layers: list[Literal[0, 1]] | None = None
    """For each layer 1 where rotary embedding turns its queries and keys, 0 where it does not (SmolLM3). Default: all 1."""

    @model_validator(mode="after")
    def _check_no_rope_layers(self) -> LlamaConfig:
        if self.no_rope_layers is not None and len(self.no_rope_layers) != self.num_hidden_layers:
            raise ValueError(
                f"no_rope_layers has {len(self.no_rope_layers)} entries for {self.num_hidden_layers} num_hidden_layers"
            )
        return self

    @property
    def turned(self) -> list[bool]:
        """Whether each layer has rotary embedding."""
        return [bool(one) for one in self.no_rope_layers or [1] * self.num_hidden_layers]

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`."""
        return super().meaning(length) | {"no_rope_layers": None if all(self.turned) else self.no_rope_layers}


STYLES = {
    "model.embed_tokens": "vocabulary",
    "model.layers.self_attn.qkv_proj": "column",
    "model.layers.self_attn.o_proj": "row",
    "model.layers.mlp.gate_up_proj": "column",
    "model.layers.mlp.down_proj": "row",
    "lm_head": "vocabulary",
    "model.layers.self_attn.q_norm": "replicated",
    "model.layers.self_attn.k_norm": "replicated",
    "model.layers.input_layernorm": "replicated",
    "model.layers.post_attention_layernorm": "replicated",
    "model.norm": "replicated",
}


def build(
    config: LlamaConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, for sequences of up to `positions` tokens."""
    from cktrain.models.transformer import Transformer
    from cktrain.nn.attention import Attention, AttentionShape, Rotary
    from cktrain.nn.branch import Block, Branch
    from cktrain.nn.embedding import Embedding, TokenEmbedding
    from cktrain.nn.head import Head
    from cktrain.nn.linear import Linear
    from cktrain.nn.mlp import SwiGLU
    from cktrain.nn.norm import RMSNorm

    c, std, eps = config, config.initializer_range, config.rms_norm_eps
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    rotary = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_theta, c.rope_scaling)
    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i, (window, turned) in enumerate(zip(c.windows, c.turned, strict=True)):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(c.num_attention_heads, c.kv_heads, c.resolved_head_dim, window),
            rotary if turned else None,
            std=std,
            output_std=output_std,
            qkv_bias=c.attention_bias or c.qkv_bias,
            output_bias=c.attention_bias,
            qk_norm_eps=eps if c.qk_norm else None,
        )
        mlp = SwiGLU(
            f"{name}.mlp",
            numerics,
            c.hidden_size,
            c.intermediate_size,
            bias=c.mlp_bias,
            std=std,
            output_std=output_std,
        )
        input_norm = RMSNorm(f"{name}.input_layernorm", numerics, c.hidden_size, eps)
        mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", numerics, c.hidden_size, eps)
        blocks.append(Block(name, [Branch(input_norm, attention), Branch(mlp_norm, mlp)]))
    norm = RMSNorm("model.norm", numerics, c.hidden_size, eps)
    weight = embedding.weight if c.tied else None
    output = Linear("lm_head", numerics, c.hidden_size, c.vocab_size, bias=False, std=std, weight=weight)
    layers = [TokenEmbedding("model", numerics, embedding), *blocks, Head(norm, output)]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)


# ------------------------------------------------------------------------------------------------ config.json


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `LlamaConfig`. Raises ValueError for what is not computed."""
    kind = keys.model_type
    return (
        read_decoder(keys)
        | {
            "attention_bias": kind in ("llama", "qwen3", "smollm3") and keys.get("attention_bias", False),
            "mlp_bias": kind in ("llama", "smollm3") and keys.get("mlp_bias", False),
            "qkv_bias": kind == "qwen2",
            "qk_norm": kind == "qwen3",
            "no_rope_layers": _read_no_rope_layers(keys),
        }
        | _read_window(keys)
    )


def _read_no_rope_layers(keys: ConfigKeys) -> list[int] | None:
    """no_rope_layers, cut to the layers that there are; every fourth is without where SmolLM3 does not say."""
    given, layers = keys.get("no_rope_layers"), keys.layer_count("num_hidden_layers")
    if keys.model_type != "smollm3":
        if given is not None:
            raise ValueError(f"no_rope_layers is {shorten(given)} and {keys.model_type} has none. Remove it.")
        return None
    every = keys.layer_count("no_rope_layer_interval")
    if given is None:
        given = [int(every == 0 or (layer + 1) % every != 0) for layer in range(layers)]
    if not isinstance(given, list) or len(given) < layers or not all(one in (0, 1) for one in given):
        raise ValueError(f"no_rope_layers is {shorten(given)}, 0 or 1 for each of {layers} layers is needed.")
    return given[:layers] if 0 in given[:layers] else None


def _read_window(keys: ConfigKeys) -> dict[str, Any]:
    """sliding_window and layer_types."""
    window, types = keys.get("sliding_window"), keys.get("layer_types")
    layers = keys.layer_count("num_hidden_layers")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise ValueError(f"layer_types is {shorten(types)}, a list of names is needed.")
    if keys.model_type in ("qwen2", "qwen3"):
        used = keys.get("use_sliding_window", False)
        if not isinstance(used, bool):
            raise ValueError(f"use_sliding_window is {shorten(used)}, true or false is needed.")
        window = window if used else None
        if types is None:
            full = keys.layer_count("max_window_layers")  # the first so many layers see everything
            types = ["sliding_attention" if window and i >= full else "full_attention" for i in range(layers)]
    elif keys.model_type == "ministral":
        return read_windows(keys, lambda _: window is not None)
    elif keys.model_type == "smollm3":
        if keys.get("use_sliding_window") or "sliding_attention" in (types or ()):
            raise ValueError("use_sliding_window is true. Only false is supported. Give a model without it.")
        return {}
    elif keys.model_type == "llama" and window is not None:
        raise ValueError(f"sliding_window is {window} and llama has none. Is the model_type mistral?")
    else:  # these classes do not read layer_types: it may only say what they do
        kind = "full_attention" if window is None else "sliding_attention"
        if types is not None and set(types) != {kind}:
            raise ValueError(
                f"layer_types is {types!r}, and {keys.model_type}'s layers are all {kind}. Remove it."
            )
        types = [kind] * layers
    if "sliding_attention" not in types:
        return {}
    if window is None:
        raise ValueError(
            "layer_types has sliding_attention and no sliding_window is used. Correct one of them."
        )
    everywhere = set(types) == {"sliding_attention"}
    return {"sliding_window": window, "layer_types": None if everywhere else list(types)}


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The way back. Raises ValueError where no class has all of the parts."""
    c = config
    model_type = _model_type(c)
    found = {"model_type": model_type} | write_decoder(c)
    if model_type in ("llama", "qwen3", "smollm3"):
        found["attention_bias"] = c.attention_bias
    if model_type in ("llama", "smollm3"):
        found["mlp_bias"] = c.mlp_bias
    if model_type == "smollm3":
        found["no_rope_layers"] = c.no_rope_layers
    if model_type == "ministral":
        found |= write_windows(c)
    if model_type == "mistral":
        found["sliding_window"] = c.sliding_window
    if model_type in ("qwen2", "qwen3"):
        found |= _write_window(c)
    return found


def _write_window(config: LlamaConfig) -> dict[str, Any]:
    """Qwen's keys: `max_window_layers` says as much as `layer_types` where the full layers come first."""
    types = ["sliding_attention" if window else "full_attention" for window in config.windows]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": next((i for i, window in enumerate(config.windows) if window), len(types)),
        "layer_types": types,
    }


def _model_type(config: LlamaConfig) -> str:
    """The model_type whose class has this architecture's parts, the plainest one."""
    c = config
    uneven = c.hidden_size % c.num_attention_heads != 0
    sliding = c.sliding_window is not None
    mixed = sliding and c.layer_types is not None and "full_attention" in c.layer_types
    qkv_only = c.qkv_bias and not c.attention_bias
    unturned = not all(c.turned)
    # What each class has: the parts that it must and may have, from the plainest class on.
    if not (qkv_only or c.qk_norm or sliding or uneven or unturned):
        return "llama"
    if not (qkv_only or c.qk_norm or mixed or c.attention_bias or c.mlp_bias or unturned):
        return "mistral"
    if not (qkv_only or c.qk_norm or c.attention_bias or c.mlp_bias or unturned):
        return "ministral"
    if not (qkv_only or c.qk_norm or sliding):
        return "smollm3"
    if qkv_only and not (c.qk_norm or c.mlp_bias or unturned):
        return "qwen2"
    if c.qk_norm and not (qkv_only or c.mlp_bias or unturned):
        return "qwen3"
    parts = {
        "attention_bias": c.attention_bias,
        "qkv_bias": qkv_only,
        "mlp_bias": c.mlp_bias,
        "qk_norm": c.qk_norm,
        "sliding_window": sliding and not mixed,
        "sliding_window on some layers": mixed,
        "no_rope_layers": unturned,
        f"hidden_size {c.hidden_size} for {c.num_attention_heads} heads": uneven,
    }
    raise ValueError(
        f"[hugging_face] no model_type of {', '.join(MODEL_TYPES)} has all of "
        f"{', '.join(part for part, used in parts.items() if used)}. Train with a combination that one has to export."
    )


_QWEN = {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
MODEL_TYPES = {
    "llama": TransformersClass("LlamaForCausalLM", {"rms_norm_eps": 1e-6}),
    "mistral": TransformersClass(
        "MistralForCausalLM", {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "ministral": TransformersClass(
        "MinistralForCausalLM", {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "smollm3": TransformersClass(
        "SmolLM3ForCausalLM",
        {
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2e6,
            "no_rope_layer_interval": 4,
        },
    ),
    "qwen2": TransformersClass("Qwen2ForCausalLM", _QWEN),
    "qwen3": TransformersClass("Qwen3ForCausalLM", {**_QWEN, "head_dim": 128}),
}

FAMILY = Family(
    config=LlamaConfig,
    build=build,
    styles=STYLES,
    model_types=MODEL_TYPES,
    read_config=read_config,
    write_config=write_config,
    computes=frozenset({"no_rope_layers"}),
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    ),
)
