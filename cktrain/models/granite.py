"""Granite 3 (IBM 2024): Llama with four multipliers.

    embed_tokens · embedding_multiplier
        -> N x [ input_layernorm -> self_attn -> · residual_multiplier (+)
                 post_attention_layernorm -> mlp -> · residual_multiplier (+) ] -> norm -> lm_head / logits_scaling

Scores are multiplied by attention_multiplier itself, not by 1 / sqrt(D). Names follow Hugging Face, except that
query/key/value and gate/up are each one matrix here. Granite 4 is in `granite4.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from cktrain.config_types import FinitePositive
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_decoder, write_decoder
from cktrain.models.family import Family, RotaryConfig, TensorNames, TransformersClass

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class MultipliedConfig(RotaryConfig):
    """What Granite 3 and 4 share."""

    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    embedding_multiplier: FinitePositive = 1.0
    """Of the embedded tokens."""
    residual_multiplier: FinitePositive = 1.0
    """Of what attention and MLP add to the stream."""
    attention_multiplier: FinitePositive = 1.0
    """Of the scores, instead of 1 / sqrt(head_dim)."""
    logits_scaling: FinitePositive = 1.0
    """The logits are divided by it."""


class GraniteConfig(MultipliedConfig):
    """Granite 3, and Granite 4.1: Llama with multipliers."""

    family: Literal["granite"] = "granite"
    mlp_bias: bool = False
    """Biases in the MLP."""


STYLES = {
    "model.embed_tokens": "vocabulary",
    "model.layers.self_attn.qkv_proj": "column",
    "model.layers.self_attn.o_proj": "row",
    "model.layers.mlp.gate_up_proj": "column",
    "model.layers.mlp.down_proj": "row",
    "lm_head": "vocabulary",
    "model.layers.input_layernorm": "replicated",
    "model.layers.post_attention_layernorm": "replicated",
    "model.norm": "replicated",
}


def build(
    config: GraniteConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, for sequences of up to `positions` tokens."""
    return build_multiplied(config, numerics, positions, checkpointing, config.mlp_bias, rotary=True)


def build_multiplied(
    config: MultipliedConfig,
    numerics: Numerics,
    positions: int,
    checkpointing: bool,
    mlp_bias: bool,
    rotary: bool,
) -> Transformer:
    """The model of either Granite, with rotary embedding in all layers or in none."""
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
    tables = None
    if rotary:
        tables = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_theta, c.rope_scaling)
    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i in range(c.num_hidden_layers):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(c.num_attention_heads, c.kv_heads, c.resolved_head_dim),
            tables,
            std=std,
            output_std=output_std,
            qkv_bias=c.attention_bias,
            output_bias=c.attention_bias,
            scale=c.attention_multiplier,
        )
        mlp = SwiGLU(
            f"{name}.mlp",
            numerics,
            c.hidden_size,
            c.intermediate_size,
            bias=mlp_bias,
            std=std,
            output_std=output_std,
        )
        input_norm = RMSNorm(f"{name}.input_layernorm", numerics, c.hidden_size, eps)
        mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", numerics, c.hidden_size, eps)
        branches = [
            Branch(input_norm, attention, alpha=c.residual_multiplier),
            Branch(mlp_norm, mlp, alpha=c.residual_multiplier),
        ]
        blocks.append(Block(name, branches))
    norm = RMSNorm("model.norm", numerics, c.hidden_size, eps)
    weight = embedding.weight if c.tied else None
    output = Linear("lm_head", numerics, c.hidden_size, c.vocab_size, bias=False, std=std, weight=weight)
    layers = [
        TokenEmbedding("model", numerics, embedding, multiplier=c.embedding_multiplier),
        *blocks,
        Head(norm, output, multiplier=1 / c.logits_scaling),
    ]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)


# ------------------------------------------------------------------------------------------------ config.json

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def read_multiplied(keys: ConfigKeys) -> dict[str, Any]:
    """What Granite 3 and 4 share of config.json. Raises ValueError for what is not computed."""
    return (
        read_decoder(keys)
        | {"attention_bias": keys.get("attention_bias", False)}
        | {key: keys.get(key, 1.0) for key in MULTIPLIERS}
    )


def write_multiplied(config: MultipliedConfig) -> dict[str, Any]:
    """The way back."""
    return (
        write_decoder(config)
        | {"attention_bias": config.attention_bias}
        | {key: getattr(config, key) for key in MULTIPLIERS}
    )


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `GraniteConfig`. Raises ValueError for what is not computed."""
    return read_multiplied(keys) | {"mlp_bias": keys.get("mlp_bias", False)}


def write_config(config: GraniteConfig) -> dict[str, Any]:
    """The way back."""
    return {"model_type": "granite"} | write_multiplied(config) | {"mlp_bias": config.mlp_bias}


FAMILY = Family(
    config=GraniteConfig,
    build=build,
    styles=STYLES,
    model_types={"granite": TransformersClass("GraniteForCausalLM", {"rms_norm_eps": 1e-6})},
    read_config=read_config,
    write_config=write_config,
    computes=frozenset(MULTIPLIERS),
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    ),
)
