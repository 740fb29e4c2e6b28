"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Microsoft 2024, 2025): Llama with fused projections, of whose heads a part may turn.

    embed_tokens -> N x [ input_layernorm -> self_attn (+)  post_attention_layernorm -> mlp (+) ] -> norm -> lm_head

Query, key and value are one matrix and gate and up another, in the files as here, so an adapter stands beside the whole
matrix, as PEFT's does. `partial_rotary_factor` of a head's numbers turn (Phi-4-mini: 96 of 128). Long contexts are reached
by `longrope`, whose old names are `su` and `yarn`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.decoder_keys import read_heads, write_decoder
from cktrain.hf.rope_settings import read_rope
from cktrain.models.family import Family, TensorNames, TransformersClass, WindowedConfig
from cktrain.rope_kinds import kind_of

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class Phi3Config(WindowedConfig):
    """Phi-3, Phi-3.5, Phi-4 and Phi-4-mini."""

    family: Literal["phi3"] = "phi3"
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of a head's numbers, the first of them, that rotary embedding turns."""

    @property
    def turned(self) -> int:
        """How many numbers of a head turn."""
        return int(self.resolved_head_dim * self.partial_rotary_factor)

    @model_validator(mode="after")
    def _check_turned(self) -> Phi3Config:
        if self.turned % 2 or not self.turned:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.resolved_head_dim} are "
                f"{self.turned} numbers, which rotary embedding cannot pair. Choose a share that gives an even number"
            )
        scaling = self.rope_scaling
        if (
            scaling is not None
            and kind_of(scaling) == "longrope"
            and len(scaling["short_factor"]) != self.turned // 2
        ):
            raise ValueError(
                f"rope_scaling: short_factor has {len(scaling['short_factor'])} numbers, and {self.turned} numbers of a "
                f"head turn in {self.turned // 2} pairs. Give one for each pair"
            )
        return self


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


def build(config: Phi3Config, numerics: Numerics, positions: int, checkpointing: bool = False) -> Transformer:
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
    rotary = Rotary.of(numerics, positions, c.turned, c.rope_theta, c.rope_scaling)
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
    """config.json to the keys of `Phi3Config`. Raises ValueError for what is not computed."""
    keys.choice("hidden_act", ("silu",))
    rope = read_rope(keys, renamed={"su": "longrope", "yarn": "longrope"}, partial=True)
    return read_heads(keys) | rope | {"sliding_window": keys.get("sliding_window")}


def write_config(config: Phi3Config) -> dict[str, Any]:
    """The way back. Raises ValueError for what the class has not."""
    c, kind = config, kind_of(config.rope_scaling)
    mixed = any(c.windows) and not all(c.windows)
    if (
        kind not in ("default", "longrope")
        or mixed
        or c.resolved_head_dim * c.num_attention_heads != c.hidden_size
    ):
        raise ValueError(
            "[hugging_face] Phi-3's class has no rotary scaling but longrope, one window for all layers, and heads of "
            f"hidden_size / num_attention_heads; this model has {kind}{', windows in some layers' if mixed else ''} and "
            f"{c.num_attention_heads} heads of {c.resolved_head_dim} for {c.hidden_size}. Train with what it has to export."
        )
    found = {
        "model_type": "phi3",
        **write_decoder(c),
        "partial_rotary_factor": c.partial_rotary_factor,
        "sliding_window": c.sliding_window if any(c.windows) else None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    if c.rope_scaling is not None and kind == "longrope":  # the class takes the one outside
        found["original_max_position_embeddings"] = c.rope_scaling["original_max_position_embeddings"]
    return found


FAMILY = Family(
    config=Phi3Config,
    build=build,
    styles=STYLES,
    model_types={
        "phi3": TransformersClass(
            "Phi3ForCausalLM", {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}
        )
    },
    read_config=read_config,
    write_config=write_config,
    computes=frozenset({"partial_rotary_factor"}),
    tensors=TensorNames(),
)
