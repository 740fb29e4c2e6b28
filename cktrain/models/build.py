"""From a config to a model."""

from __future__ import annotations

from collections.abc import Mapping

from cktrain.hf.freeze import freeze
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_targets import attach
from cktrain.models import FAMILIES
from cktrain.models.family import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics


def build_model(
    config: ModelConfig,
    numerics: Numerics,
    positions: int,
    checkpointing: bool = False,
    adapter: AdapterConfig | None = None,
) -> Transformer:
    """The model, its parameters without storage (`ParamStore` gives it); `positions`: the longest sequence it will see.

    What `config.freeze` names is frozen, and with an adapter all but the adapter. Raises ValueError for patterns that fit
    nothing, or everything, and for an adapter's targets that the model has not.
    """
    model = FAMILIES[config.family].build(config, numerics, positions, checkpointing)
    freeze(config, model.params())
    if adapter is not None:
        attach(adapter, config, model)
    return model


def styles_of(config: ModelConfig) -> Mapping[str, str]:
    """How tensor ranks divide the model's modules."""
    return FAMILIES[config.family].styles
