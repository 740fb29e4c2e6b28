"""The keys of config.json that families with rotary embedding, RMSNorm and a gated MLP share (`RotaryConfig`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.rope_settings import read_rope

if TYPE_CHECKING:
    from cktrain.models.family import RotaryConfig


def read_decoder(keys: ConfigKeys) -> dict[str, Any]:
    """Heads, the norms' epsilon and rotary settings. Raises ValueError for what is not computed."""
    keys.choice("hidden_act", ("silu",))
    found = {
        "num_key_value_heads": keys.get("num_key_value_heads", keys.get("num_attention_heads")),
        "rms_norm_eps": keys.get("rms_norm_eps", keys.defaults["rms_norm_eps"]),
    }
    if keys.get("head_dim") is not None:
        found["head_dim"] = keys.get("head_dim")
    return found | read_rope(keys)


def write_decoder(config: RotaryConfig) -> dict[str, Any]:
    """The way back."""
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.resolved_head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_dropout": 0.0,
    }
