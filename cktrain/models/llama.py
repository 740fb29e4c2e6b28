"""Llama and its relatives: Llama 2/3, Mistral (sliding window), Qwen2 (QKV biases), Qwen3 (QK-norm).

    embed_tokens -> N x [ input_layernorm -> self_attn (+)  post_attention_layernorm -> mlp (+) ] -> norm -> lm_head

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here
(`hugging_face.py` splits and joins them).
"""

from __future__ import annotations

import math

from cktrain.config import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.attention import Attention, AttentionShape, Rotary
from cktrain.nn.branch import Block, Branch
from cktrain.nn.embedding import Embedding, TokenEmbedding
from cktrain.nn.head import Head
from cktrain.nn.linear import Linear
from cktrain.nn.mlp import SwiGLU
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.nn.rope_tables import rope_tables

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
"""How tensor ranks divide each module, by role (`parallel/tensor.py`, `parallel/roles.py`)."""


def build_llama(
    config: ModelConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, its parameters without storage yet; `positions` is the longest sequence it will see."""
    c = config
    assert (
        c.hidden_size
        and c.num_hidden_layers
        and c.num_attention_heads
        and c.intermediate_size
        and c.vocab_size
    )
    std, head_dim = c.initializer_range, c.resolved_head_dim
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    cos, sin = rope_tables(positions, head_dim, c.rope_theta, c.rope_scaling)
    rotary = Rotary(cos.astype(numerics.f32), sin.astype(numerics.f32))
    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i in range(c.num_hidden_layers):
        name = f"model.layers.{i}"
        sliding = c.sliding_window and (c.layer_types is None or c.layer_types[i] == "sliding_attention")
        shape = AttentionShape(
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads or c.num_attention_heads,
            head_dim=head_dim,
            window=(c.sliding_window or 0) if sliding else 0,
        )
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            shape,
            rotary,
            std=std,
            output_std=output_std,
            qkv_bias=c.attention_bias or c.qkv_bias,
            output_bias=c.attention_bias,
            qk_norm_eps=c.rms_norm_eps if c.qk_norm else None,
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
        input_norm = RMSNorm(f"{name}.input_layernorm", numerics, c.hidden_size, c.rms_norm_eps)
        mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", numerics, c.hidden_size, c.rms_norm_eps)
        blocks.append(Block(name, [Branch(input_norm, attention), Branch(mlp_norm, mlp)]))
    norm = RMSNorm("model.norm", numerics, c.hidden_size, c.rms_norm_eps)
    tied = bool(c.tie_word_embeddings)
    output = Linear(
        "lm_head",
        numerics,
        c.hidden_size,
        c.vocab_size,
        bias=False,
        std=std,
        weight=embedding.weight if tied else None,
    )
    layers = [
        TokenEmbedding("model", numerics, embedding),
        *blocks,
        Head(norm, output),
    ]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)
