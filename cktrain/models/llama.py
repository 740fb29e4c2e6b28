"""Llama and its relatives: Llama 2/3, Mistral (sliding window), Qwen2 (QKV biases), Qwen3 (QK-norm).

    embed_tokens -> N x [ input_layernorm -> self_attn (+)  post_attention_layernorm -> mlp (+) ] -> norm -> lm_head

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cktrain.config_types import Positive
from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_decoder, write_decoder
from cktrain.models.family import Family, RotaryConfig, TensorNames, TransformersClass

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class LlamaConfig(RotaryConfig):
    """Llama, Mistral (sliding_window), Qwen2 (qkv_bias) and Qwen3 (qk_norm)."""

    family: Literal["llama"] = "llama"
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections only (Qwen2)."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    qk_norm: bool = False
    """RMSNorm on each query and key head (Qwen3)."""
    sliding_window: Positive | None = None
    """A token attends to the last so many tokens, itself included. Default: to all."""
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    """Which layers use the sliding window. Default: all of them when sliding_window is set."""

    @model_validator(mode="after")
    def _check_layer_types(self) -> LlamaConfig:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} num_hidden_layers"
            )
        return self

    @property
    def windows(self) -> list[int]:
        """The sliding window of each layer; 0: none."""
        window = self.sliding_window or 0
        types = self.layer_types or ["sliding_attention"] * self.num_hidden_layers
        return [window if kind == "sliding_attention" else 0 for kind in types]

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`."""
        slides = any(self.windows)
        return super().meaning(length) | {
            "sliding_window": self.sliding_window if slides else None,
            "layer_types": self.layer_types if slides and not all(self.windows) else None,
        }


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
    from cktrain.nn.rope_tables import rope_tables

    c, std, eps = config, config.initializer_range, config.rms_norm_eps
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    cos, sin = rope_tables(positions, c.resolved_head_dim, c.rope_theta, c.rope_scaling)
    rotary = Rotary(cos.astype(numerics.master_dtype), sin.astype(numerics.master_dtype))
    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i, window in enumerate(c.windows):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(c.num_attention_heads, c.kv_heads, c.resolved_head_dim, window),
            rotary,
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
            "attention_bias": kind in ("llama", "qwen3") and keys.get("attention_bias", False),
            "mlp_bias": kind == "llama" and keys.get("mlp_bias", False),
            "qkv_bias": kind == "qwen2",
            "qk_norm": kind == "qwen3",
        }
        | _read_window(keys)
    )


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
    if model_type in ("llama", "qwen3"):
        found["attention_bias"] = c.attention_bias
    if model_type == "llama":
        found["mlp_bias"] = c.mlp_bias
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
        f"[hugging_face] no model_type of {', '.join(MODEL_TYPES)} has all of "
        f"{', '.join(part for part, used in parts.items() if used)}. Train with a combination that one has to export."
    )


_QWEN = {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
MODEL_TYPES = {
    "llama": TransformersClass("LlamaForCausalLM", {"rms_norm_eps": 1e-6}),
    "mistral": TransformersClass(
        "MistralForCausalLM", {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}
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
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    ),
)
