"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, GELU, tied head.

    wte + wpe -> N x [ ln_1 -> attn (+)  ln_2 -> mlp (+) ] -> ln_f -> wteᵀ

Names follow Hugging Face, except for the attention's projections. Its Conv1D matrices are (in, out) there and (out, in)
here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cktrain.config_types import FinitePositive, Size
from cktrain.hf.config_keys import ConfigKeys
from cktrain.models.family import Family, ModelConfig, TensorNames, TransformersClass

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class GPT2Config(ModelConfig):
    """GPT-2: learned positions, LayerNorm, biases everywhere, GELU."""

    TIED: ClassVar[bool] = True

    family: Literal["gpt2"] = "gpt2"
    intermediate_size: Size | None = None
    """Width inside the MLP. Default: 4 x hidden_size."""
    tie_word_embeddings: bool | None = None
    """Use the embedding as the output head too. Default: true."""
    layer_norm_epsilon: FinitePositive = 1e-5
    """Added to the variance in LayerNorm."""
    activation_function: Literal["gelu_new", "gelu"] = "gelu_new"
    """GELU's form: gelu_new is the tanh form, gelu the erf form."""

    @property
    def resolved_intermediate_size(self) -> int:
        """Width inside the MLP, given or derived."""
        return self.intermediate_size or 4 * self.hidden_size

    def meaning(self, length: int) -> dict[str, Any]:
        """As `ModelConfig.meaning`."""
        return super().meaning(length) | {"intermediate_size": self.resolved_intermediate_size}


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


def build(config: GPT2Config, numerics: Numerics, positions: int, checkpointing: bool = False) -> Transformer:
    """The model; it learns max_position_embeddings (or `positions`) positions."""
    from cktrain.models.transformer import Transformer
    from cktrain.nn.attention import Attention, AttentionShape
    from cktrain.nn.branch import Block, Branch
    from cktrain.nn.embedding import Embedding, TokenEmbedding
    from cktrain.nn.head import Head
    from cktrain.nn.linear import Linear
    from cktrain.nn.mlp import GeluMLP
    from cktrain.nn.norm import LayerNorm

    c, std, eps = config, config.initializer_range, config.layer_norm_epsilon
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
            c.resolved_intermediate_size,
            tanh=c.activation_function == "gelu_new",
            std=std,
            output_std=output_std,
        )
        ln_1 = LayerNorm(f"{name}.ln_1", numerics, c.hidden_size, eps)
        ln_2 = LayerNorm(f"{name}.ln_2", numerics, c.hidden_size, eps)
        blocks.append(Block(name, [Branch(ln_1, attention), Branch(ln_2, mlp)]))
    ln_f = LayerNorm("transformer.ln_f", numerics, c.hidden_size, eps)
    weight = tokens.weight if c.tied else None
    output = Linear("lm_head", numerics, c.hidden_size, c.vocab_size, bias=False, std=std, weight=weight)
    layers = [TokenEmbedding("transformer", numerics, tokens, wpe), *blocks, Head(ln_f, output)]
    return Transformer(numerics, layers, c.hidden_size, checkpointing)


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `GPT2Config`."""
    return {
        "activation_function": keys.choice("activation_function", ("gelu_new", "gelu")),
        "layer_norm_epsilon": keys.get("layer_norm_epsilon", 1e-5),
    }


def write_config(config: GPT2Config) -> dict[str, Any]:
    """The way back. Raises ValueError for heads that are not hidden_size wide together."""
    if config.resolved_head_dim * config.num_attention_heads != config.hidden_size:
        raise ValueError("[hugging_face] no model_type is gpt2 with head_dim. Export without.")
    return {
        "model_type": "gpt2",
        "activation_function": config.activation_function,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


FAMILY = Family(
    config=GPT2Config,
    build=build,
    styles=STYLES,
    model_types={"gpt2": TransformersClass("GPT2LMHeadModel", {"tie_word_embeddings": True})},
    read_config=read_config,
    write_config=write_config,
    size_keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
    tensors=TensorNames(
        base="transformer.",
        embedding="transformer.wte.weight",
        renamed={".attn.qkv_proj.": ".attn.c_attn.", ".attn.o_proj.": ".attn.c_proj."},
        transposed=r"transformer\.h\.\d+\.(attn|mlp)\.\w+\.weight",
        buffers=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    ),
)
