"""From a `ModelConfig` to a model."""

from __future__ import annotations

from cktrain.config import ModelConfig
from cktrain.models.gpt2 import build_gpt2
from cktrain.models.llama import build_llama
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics

FAMILIES = {"llama": build_llama, "gpt2": build_gpt2}


def build_model(
    config: ModelConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model of `config.family`, its parameters without storage (`FlatParams` gives it)."""
    return FAMILIES[config.family](config, numerics, positions, checkpointing)
