"""Gemma 2 and Gemma 3 (text): norms before and after attention and MLP, GeGLU, a scaled embedding, a tied head.

    embed_tokens · sqrt(C) -> N x [ input_layernorm -> self_attn -> post_attention_layernorm (+)
                                    pre_feedforward_layernorm -> mlp -> post_feedforward_layernorm (+) ] -> norm -> head

Norms multiply by 1 + weight: weights are kept as they are stored and the kernel adds the 1, so that what is saved equals
what was loaded. Layers are full or slide over a window. Gemma 2 caps its scores and its logits; Gemma 3 norms queries and
keys instead, and its sliding layers have rotary frequencies of their own, which are never scaled.

Names follow Hugging Face, except that query/key/value and gate/up are each one matrix here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cktrain.config_types import FinitePositive, Positive
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_heads, read_windows, write_decoder, write_windows
from cktrain.hf.rope_settings import read_layered_rope, read_rope
from cktrain.models.family import Family, TensorNames, TransformersClass, WindowedConfig

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class GemmaConfig(WindowedConfig):
    """Gemma 3 (text); Gemma 2 with qk_norm false and its softcaps. Both slide over a window in most layers: give
    sliding_window and layer_types."""

    TIED: ClassVar[bool] = True

    family: Literal["gemma"] = "gemma"
    rms_norm_eps: FinitePositive = 1e-6
    """Added to the mean square in RMSNorm."""
    attention_bias: bool = False
    """Biases on the query, key, value and output projections."""
    qk_norm: bool = True
    """RMSNorm on each query and key head (Gemma 3)."""
    query_pre_attn_scalar: Positive | None = None
    """Scores are divided by its square root. Default: head_dim."""
    attn_logit_softcapping: FinitePositive | None = None
    """Scores s become c tanh(s / c) (Gemma 2: 50). Default: they stay."""
    final_logit_softcapping: FinitePositive | None = None
    """Logits l become c tanh(l / c) (Gemma 2: 30). Default: they stay."""
    rope_local_base_freq: FinitePositive | None = None
    """Base of the sliding layers' rotary frequencies, which are then not scaled (Gemma 3: 10000). Default: rotary
    embedding as in the full layers."""

    @property
    def resolved_scalar(self) -> int:
        """What the scores are divided by the square root of, given or derived."""
        return self.query_pre_attn_scalar or self.resolved_head_dim

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`."""
        slides = any(self.windows)
        return super().meaning(length) | {
            "query_pre_attn_scalar": self.resolved_scalar,
            "rope_local_base_freq": self.rope_local_base_freq if slides else None,
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
    "model.layers.pre_feedforward_layernorm": "replicated",
    "model.layers.post_feedforward_layernorm": "replicated",
    "model.norm": "replicated",
}


def build(
    config: GemmaConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, for sequences of up to `positions` tokens."""
    import numpy as np

    from cktrain.models.transformer import Transformer
    from cktrain.nn.attention import Attention, AttentionShape, Rotary
    from cktrain.nn.branch import Block, Branch
    from cktrain.nn.embedding import Embedding, TokenEmbedding
    from cktrain.nn.head import Head
    from cktrain.nn.linear import Linear
    from cktrain.nn.mlp import GeGLU
    from cktrain.nn.norm import RMSNorm

    c, std = config, config.initializer_range
    output_std = std / math.sqrt(2 * c.num_hidden_layers)
    full = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_theta, c.rope_scaling)
    sliding = full
    if c.rope_local_base_freq is not None:
        sliding = Rotary.of(numerics, positions, c.resolved_head_dim, c.rope_local_base_freq)

    def norm(name: str) -> RMSNorm:
        return RMSNorm(name, numerics, c.hidden_size, c.rms_norm_eps, unit_offset=True)

    embedding = Embedding("model.embed_tokens", numerics, c.vocab_size, c.hidden_size, std)
    blocks = []
    for i, window in enumerate(c.windows):
        name = f"model.layers.{i}"
        attention = Attention(
            f"{name}.self_attn",
            numerics,
            c.hidden_size,
            AttentionShape(
                c.num_attention_heads,
                c.kv_heads,
                c.resolved_head_dim,
                window,
                c.attn_logit_softcapping or 0.0,
            ),
            sliding if window else full,
            std=std,
            output_std=output_std,
            qkv_bias=c.attention_bias,
            output_bias=c.attention_bias,
            qk_norm_eps=c.rms_norm_eps if c.qk_norm else None,
            qk_norm_unit_offset=True,
            scale=c.resolved_scalar**-0.5,
        )
        mlp = GeGLU(
            f"{name}.mlp",
            numerics,
            c.hidden_size,
            c.intermediate_size,
            bias=False,
            std=std,
            output_std=output_std,
        )
        around_attention = (f"{name}.input_layernorm", f"{name}.post_attention_layernorm")
        around_mlp = (f"{name}.pre_feedforward_layernorm", f"{name}.post_feedforward_layernorm")
        branches = [
            Branch(norm(before), body, norm(after))
            for body, (before, after) in ((attention, around_attention), (mlp, around_mlp))
        ]
        blocks.append(Block(name, branches))
    weight = embedding.weight if c.tied else None
    output = Linear("lm_head", numerics, c.hidden_size, c.vocab_size, bias=False, std=std, weight=weight)
    # Rounded twice, as transformers rounds it: to fp32, and to the dtype of the table.
    multiplier = float(np.float32(math.sqrt(c.hidden_size)).astype(numerics.compute_dtype))
    layers = [
        TokenEmbedding("model", numerics, embedding, multiplier=multiplier),
        *blocks,
        Head(norm("model.norm"), output, softcap=c.final_logit_softcapping or 0.0),
    ]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)


# ------------------------------------------------------------------------------------------------ config.json


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `GemmaConfig`. Raises ValueError for what is not computed."""
    keys.choice("hidden_activation", ("gelu_pytorch_tanh",))
    found = read_heads(keys) | {
        "attention_bias": keys.get("attention_bias", False),
        "query_pre_attn_scalar": keys.get("query_pre_attn_scalar"),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }
    if keys.model_type == "gemma2":
        return (
            found
            | {"qk_norm": False, "attn_logit_softcapping": keys.get("attn_logit_softcapping")}
            | read_rope(keys)
            | read_windows(keys, lambda layer: layer % 2 == 0)
        )
    if keys.get("attn_logit_softcapping") is not None:
        raise ValueError(
            f"attn_logit_softcapping is {keys.get('attn_logit_softcapping')}. It is not supported beside the norms of "
            "queries and keys. Give a model without it."
        )
    rope = read_layered_rope(keys, keys.get("rope_local_base_freq"))
    if "rope_scaling" in rope["sliding_attention"]:
        raise ValueError("rope_parameters scales sliding_attention. Only full_attention can be scaled.")
    every = keys.values["sliding_window_pattern"]
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"sliding_window_pattern is {every!r}, a number of layers is needed.")
    return (
        found
        | rope["full_attention"]
        | {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
        | read_windows(keys, lambda layer: (layer + 1) % every != 0)
    )


def write_config(config: GemmaConfig) -> dict[str, Any]:
    """The way back. Raises ValueError where no class has all of the parts."""
    c = config
    found = write_decoder(c) | write_windows(c)
    del found["hidden_act"]
    found |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": c.sliding_window
        or c.max_position_embeddings,  # transformers needs one, used or not
        "attention_bias": c.attention_bias,
        "query_pre_attn_scalar": c.resolved_scalar,
        "attn_logit_softcapping": c.attn_logit_softcapping,
        "final_logit_softcapping": c.final_logit_softcapping,
    }
    local = c.rope_local_base_freq
    if not c.qk_norm and local is None:
        return {"model_type": "gemma2"} | found
    if (
        not c.qk_norm
        or c.attn_logit_softcapping is not None
        or (local is None and c.rope_scaling is not None)
    ):
        raise ValueError(
            "[hugging_face] Gemma 3 norms queries and keys, does not cap scores and does not scale the rotary embedding of "
            "sliding layers; Gemma 2 has no qk_norm and no rope_local_base_freq. Train with one of the two to export."
        )
    return (
        {"model_type": "gemma3_text"}
        | found
        | {"rope_local_base_freq": c.rope_theta if local is None else local}
    )


_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
"""What Gemma 3's class has where a config.json leaves it out, as those of Google do."""

FAMILY = Family(
    config=GemmaConfig,
    build=build,
    styles=STYLES,
    model_types={
        "gemma3_text": TransformersClass(
            "Gemma3ForCausalLM",
            {**_SIZES, "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6},
        ),
        "gemma2": TransformersClass(
            "Gemma2ForCausalLM",
            {
                **_SIZES,
                "vocab_size": 256_000,
                "max_position_embeddings": 8192,
                "rope_theta": 10000.0,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
        ),
    },
    read_config=read_config,
    write_config=write_config,
    computes=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
        # Of Gemma 3 4B and larger: as transformers saves it, and as its class names it.
        text_bases={
            "language_model.model.": "model.",
            "model.language_model.": "model.",
            "language_model.lm_head.": "lm_head.",
        },
        left_out=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    ),
)
