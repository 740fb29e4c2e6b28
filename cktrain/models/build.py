"""From a `ModelConfig` to a model."""

from __future__ import annotations

from cktrain.config import ModelConfig
from cktrain.models import gpt2, llama
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics

FAMILIES = {"llama": llama.build_llama, "gpt2": gpt2.build_gpt2}
STYLES = {"llama": llama.STYLES, "gpt2": gpt2.STYLES}
"""Each family's table of tensor-parallel styles."""


def build_model(
    config: ModelConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model of `config.family`, its parameters without storage (`FlatParams` gives it)."""
    return FAMILIES[config.family](config, numerics, positions, checkpointing)
