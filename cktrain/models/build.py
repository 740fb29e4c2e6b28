"""From a config to a model."""

from __future__ import annotations

from collections.abc import Mapping

from cktrain.models import FAMILIES
from cktrain.models.family import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics


def build_model(
    config: ModelConfig, numerics: Numerics, positions: int, checkpointing: bool = False
) -> Transformer:
    """The model, its parameters without storage (`FlatParams` gives it); `positions`: the longest sequence it will see."""
    return FAMILIES[config.family].build(config, numerics, positions, checkpointing)


def styles_of(config: ModelConfig) -> Mapping[str, str]:
    """How tensor ranks divide the model's modules."""
    return FAMILIES[config.family].styles
