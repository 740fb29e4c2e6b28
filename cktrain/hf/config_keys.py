"""The values of a config.json as a family reads them: with the defaults of their class, and refused by name.

What would change the model's results and is not computed here is an error, never ignored. Dropout is the exception: it is
not applied in training here, and is written as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cktrain.config_types import MOST_LAYERS
from cktrain.foreign_file import shorten

# Keys that change results, with the values that mean "not used"; None means so in all of them.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_chunk_size": (),
    "no_rope_layers": (),
    "clip_qkv": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_multiplier": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "quantization_config": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "text_config": (),
    "vision_config": (),
}

_INSTEAD = {
    "quantization_config": "Give the model before its quantization, or a GGUF file; model.quantize quantizes here",
    "text_config": "Give a model of text alone",
    "vision_config": "Give a model of text alone",
}
"""One thing to do; of every other key another model."""


class ConfigKeys:
    """config.json's values over the defaults of its class. Their types are checked with the whole config."""

    def __init__(self, model_type: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.model_type = model_type
        self.values = {**defaults, **values}
        self.defaults = defaults

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value; null is as good as none."""
        value = self.values.get(key)
        return default if value is None else value

    def refuse(self, computed: frozenset[str]) -> None:
        """Raises ValueError for a key that changes results, unless the family computes it."""
        for key, unused in _REFUSED.items():
            value = self.values.get(key)
            if key not in computed and value is not None and value not in unused:
                allowed = f"Only {unused[0]!r} is" if unused else "It is not"
                instead = _INSTEAD.get(key, "Give a model without it")
                raise ValueError(f"{key} is {shorten(value)}. {allowed} supported. {instead}.")

    def choice(self, key: str, supported: tuple[str, ...]) -> str:
        """The key's value, the first of `supported` when it is not given; ValueError for another one."""
        name = self.values.get(key, supported[0])
        if name not in supported:
            raise ValueError(f"{key} is {name!r}. Only {' and '.join(supported)} are supported.")
        return str(name)

    def layer_count(self, key: str) -> int:
        """A number of layers. Raises ValueError for anything else."""
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_LAYERS:
            raise ValueError(
                f"{key} is {shorten(value)}, a number of layers up to {MOST_LAYERS:,} is needed."
            )
        return value
