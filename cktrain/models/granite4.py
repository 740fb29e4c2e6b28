"""Granite 4, dense (IBM 2025: 350M, 1B, micro): Granite 3's computation under other names, with or without rotary embedding.

The MLP is `shared_mlp`, which in the models with experts stands beside them; its gate and up are one matrix in the files,
as here. Models with experts or state-space layers (the "h" in their names) are other architectures, and refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.models.family import Family, TensorNames, TransformersClass
from cktrain.models.granite import (
    MULTIPLIERS,
    STYLES,
    MultipliedConfig,
    build_multiplied,
    read_multiplied,
    write_multiplied,
)

if TYPE_CHECKING:
    from cktrain.models.transformer import Transformer
    from cktrain.nn.numerics import Numerics


class Granite4Config(MultipliedConfig):
    """Granite 4 without experts and state-space layers."""

    family: Literal["granite4"] = "granite4"
    position_embedding_type: Literal["rope", "nope"] = "rope"
    """Whether queries and keys have rotary embedding, or no positions at all."""


def build(
    config: Granite4Config, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, for sequences of up to `positions` tokens."""
    rotary = config.position_embedding_type == "rope"
    return build_multiplied(config, numerics, positions, checkpointing, mlp_bias=False, rotary=rotary)


def read_config(keys: ConfigKeys) -> dict[str, Any]:
    """config.json to the keys of `Granite4Config`. Raises ValueError for what is not computed."""
    layers, types = (
        keys.layer_count("num_hidden_layers"),
        keys.get("layer_types", keys.get("layers_block_type")),
    )
    if not isinstance(types, list) or len(types) != layers or set(types) - {"attention", "full_attention"}:
        raise ValueError(
            f"layer_types is {shorten(types)}. Only attention in all {layers} layers is supported: give a dense Granite 4 "
            "(without h in its name), or a Granite 3."
        )
    if keys.get("num_local_experts") != 0:
        raise ValueError(
            f"num_local_experts is {shorten(keys.get('num_local_experts'))}. Only 0 is supported: give a dense Granite 4."
        )
    positions = keys.get("position_embedding_type", "nope")
    if positions not in ("rope", "nope"):
        raise ValueError(
            f"position_embedding_type is {shorten(positions)}. Only rope and nope are supported."
        )
    return read_multiplied(keys) | {"position_embedding_type": positions}


def write_config(config: Granite4Config) -> dict[str, Any]:
    """The way back."""
    # transformers checks the sizes of state-space layers even where there are none; its default divides most models.
    inner = 2 * config.hidden_size
    mamba = {} if inner % 128 == 0 else {"mamba_expand": 2, "mamba_n_heads": 1, "mamba_d_head": inner}
    return {
        "model_type": "granitemoehybrid",
        **mamba,
        **write_multiplied(config),
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["attention"] * config.num_hidden_layers,
        "position_embedding_type": config.position_embedding_type,
    }


FAMILY = Family(
    config=Granite4Config,
    build=build,
    styles=STYLES,
    model_types={
        "granitemoehybrid": TransformersClass(
            "GraniteMoeHybridForCausalLM",
            {"rms_norm_eps": 1e-6, "num_local_experts": 8, "shared_intermediate_size": 1024},
        )
    },
    read_config=read_config,
    write_config=write_config,
    computes=frozenset((*MULTIPLIERS, "num_local_experts")),
    size_keys={"intermediate_size": "shared_intermediate_size"},
    tensors=TensorNames(
        split={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
        renamed={
            "mlp.gate_up_proj": "shared_mlp.input_linear",
            "mlp.down_proj": "shared_mlp.output_linear",
        },
    ),
)
