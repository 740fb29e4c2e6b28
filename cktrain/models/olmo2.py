"""OLMo-2 (Team OLMo 2024): norms after attention and MLP instead of before, and QK-norm over the whole width.

    embed_tokens -> N x [ self_attn -> post_attention_layernorm (+)  mlp -> post_feedforward_layernorm (+) ]
                 -> norm -> lm_head

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_decoder, read_heads, read_windows, write_decoder, write_windows
from cktrain.hf.rope_settings import read_layered_rope
from cktrain.models.family import Family, TensorNames, TransformersClass, WindowedConfig

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class Olmo2Config(WindowedConfig):
    """OLMo-2: RMSNorm after attention and MLP, and over the whole width of queries and keys. OLMo-3: the same with layers
    that slide over a window (layer_types), in which rope_scaling does not apply."""

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

    c, std, eps = config, config.initializer_range, config.rms_norm_eps
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    full = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_theta, c.rope_scaling)
    sliding = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_theta) if c.rope_scaling else full
    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i, window in enumerate(c.windows):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(c.num_attention_heads, c.kv_heads, c.resolved_head_dim, window),
            sliding if window else full,
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
    bias = {"attention_bias": keys.get("attention_bias", False)}
    if keys.model_type == "olmo2":
        return read_decoder(keys) | bias
    keys.choice("hidden_act", ("silu",))
    rope = read_layered_rope(keys, keys.defaults["rope_theta"])
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    if sliding != {"rope_theta": full["rope_theta"]}:
        raise ValueError(
            f"rope_theta is {full['rope_theta']} in full layers, and sliding ones have {shorten(sliding)}. Only the same "
            "base without scaling is supported there: say it in rope_parameters if the model was trained so."
        )
    return read_heads(keys) | full | bias | read_windows(keys, lambda layer: (layer + 1) % 4 != 0)


def write_config(config: Olmo2Config) -> dict[str, Any]:
    """The way back: OLMo-3's class where layers slide."""
    found = write_decoder(config) | {"attention_bias": config.attention_bias}
    if not any(config.windows):
        return {"model_type": "olmo2"} | found
    full = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    # Without this block transformers 5 takes the base of its class in sliding layers, whatever rope_theta is.
    rope = {
        "full_attention": full,
        "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    return {"model_type": "olmo3"} | found | write_windows(config) | {"rope_parameters": rope}


FAMILY = Family(
    config=Olmo2Config,
    build=build,
    styles=STYLES,
    model_types={
        "olmo2": TransformersClass("Olmo2ForCausalLM", {"rms_norm_eps": 1e-5}),
        "olmo3": TransformersClass(
            "Olmo3ForCausalLM", {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "sliding_window": 4096}
        ),
    },
    read_config=read_config,
    write_config=write_config,
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    ),
)
