"""OLMo-2 (Team OLMo 2024): norms after attention and MLP instead of before, and QK-norm over the whole width.

    embed_tokens -> N x [ self_attn -> post_attention_layernorm (+)  mlp -> post_feedforward_layernorm (+) ]
                 -> norm -> lm_head

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_decoder, write_decoder
from cktrain.models.family import Family, RotaryConfig, TensorNames, TransformersClass

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class Olmo2Config(RotaryConfig):
    """OLMo-2: RMSNorm after attention and MLP, and over the whole width of queries and keys."""

    family: Literal["olmo2"] = "olmo2"
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""


STYLES = {
    "model.embed_tokens": "vocabulary",
    "model.layers.self_attn.qkv_proj": "column",
    "model.layers.self_attn.o_proj": "row",
    "model.layers.mlp.gate_up_proj": "column",
    "model.layers.mlp.down_proj": "row",
    "lm_head": "vocabulary",
    "model.layers.self_attn.q_norm": "width",
    "model.layers.self_attn.k_norm": "width",
    "model.layers.post_attention_layernorm": "replicated",
    "model.layers.post_feedforward_layernorm": "replicated",
    "model.norm": "replicated",
}


def build(
    config: Olmo2Config, numerics: Numerics, positions: int, checkpointing: bool = False
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
    for i in range(c.num_hidden_layers):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(c.num_attention_heads, c.kv_heads, c.resolved_head_dim),
            rotary,
            std=std,
            output_std=output_std,
            qkv_bias=c.attention_bias,
            output_bias=c.attention_bias,
            qk_norm_eps=eps,
            qk_norm_width=True,
        )
        mlp = SwiGLU(
            f"{name}.mlp",
            numerics,
            c.hidden_size,
            c.intermediate_size,
            bias=False,
            std=std,
            output_std=output_std,
        )
        attention_norm = RMSNorm(f"{name}.post_attention_layernorm", numerics, c.hidden_size, eps)
        mlp_norm = RMSNorm(f"{name}.post_feedforward_layernorm", numerics, c.hidden_size, eps)
        blocks.append(Block(name, [Branch(None, attention, attention_norm), Branch(None, mlp, mlp_norm)]))
    norm = RMSNorm("model.norm", numerics, c.hidden_size, eps)
    weight = embedding.weight if c.tied else None
    output = Linear("lm_head", numerics, c.hidden_size, c.vocab_size, bias=False, std=std, weight=weight)
    layers = [TokenEmbedding("model", numerics, embedding), *blocks, Head(norm, output)]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `Olmo2Config`. Raises ValueError for what is not computed."""
    return read_decoder(keys) | {"attention_bias": keys.get("attention_bias", False)}


def write_config(config: Olmo2Config) -> dict[str, Any]:
    """The way back."""
    return {"model_type": "olmo2"} | write_decoder(config) | {"attention_bias": config.attention_bias}


FAMILY = Family(
    config=Olmo2Config,
    build=build,
    styles=STYLES,
    model_types={"olmo2": TransformersClass("Olmo2ForCausalLM", {"rms_norm_eps": 1e-5})},
    read_config=read_config,
    write_config=write_config,
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    ),
)
