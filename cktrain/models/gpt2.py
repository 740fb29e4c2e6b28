"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, GELU, tied head.

    wte + wpe -> N x [ ln_1 -> attn (+)  ln_2 -> mlp (+) ] -> ln_f -> wteᵀ

Names follow Hugging Face. Its Conv1D matrices are (in, out) there and (out, in) here (`hugging_face.py` transposes).
"""

from __future__ import annotations

import math

from cktrain.config import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.attention import Attention, AttentionShape
from cktrain.nn.branch import Block, Branch
from cktrain.nn.embedding import Embedding, TokenEmbedding
from cktrain.nn.head import Head
from cktrain.nn.linear import Linear
from cktrain.nn.mlp import GeluMLP
from cktrain.nn.norm import LayerNorm
from cktrain.nn.numerics import Numerics

STYLES = {
    "transformer.wte": "vocabulary",
    "transformer.wpe": "sequence",
    "transformer.h.attn.qkv_proj": "column",
    "transformer.h.attn.o_proj": "row",
    "transformer.h.mlp.c_fc": "column",
    "transformer.h.mlp.c_proj": "row",
    "lm_head": "vocabulary",
    "transformer.h.ln_1": "replicated",
    "transformer.h.ln_2": "replicated",
    "transformer.ln_f": "replicated",
}
"""How tensor ranks divide each module, by role (`parallel/tensor.py`, `parallel/roles.py`)."""


def build_gpt2(
    config: ModelConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, its parameters without storage yet; it learns max_position_embeddings (or `positions`) positions."""
    c = config
    assert c.hidden_size and c.num_hidden_layers and c.num_attention_heads and c.vocab_size
    std, eps = c.initializer_range, c.layer_norm_epsilon
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    tokens = Embedding("transformer.wte", numerics, c.vocab_size, c.hidden_size, std)
    wpe = Embedding("transformer.wpe", numerics, c.max_position_embeddings or positions, c.hidden_size, std)
    shape = AttentionShape(c.num_attention_heads, c.num_attention_heads, c.resolved_head_dim)
    blocks = []
    for i in range(c.num_hidden_layers):
        name = f"transformer.h.{i}"
        attention = Attention(
            f"{name}.attn",
            numerics,
            c.hidden_size,
            shape,
            None,
            std=std,
            output_std=output_std,
            qkv_bias=True,
            output_bias=True,
        )
        mlp = GeluMLP(
            f"{name}.mlp",
            numerics,
            c.hidden_size,
            c.intermediate_size or 4 * c.hidden_size,
            tanh=c.activation_function == "gelu_new",
            std=std,
            output_std=output_std,
        )
        ln_1 = LayerNorm(f"{name}.ln_1", numerics, c.hidden_size, eps)
        ln_2 = LayerNorm(f"{name}.ln_2", numerics, c.hidden_size, eps)
        blocks.append(Block(name, [Branch(ln_1, attention), Branch(ln_2, mlp)]))
    ln_f = LayerNorm("transformer.ln_f", numerics, c.hidden_size, eps)
    tied = c.tie_word_embeddings is not False
    output = Linear(
        "lm_head",
        numerics,
        c.hidden_size,
        c.vocab_size,
        bias=False,
        std=std,
        weight=tokens.weight if tied else None,
    )
    layers = [
        TokenEmbedding("transformer", numerics, tokens, wpe),
        *blocks,
        Head(ln_f, output),
    ]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)
