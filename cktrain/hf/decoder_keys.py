"""The keys of config.json that families with rotary embedding, RMSNorm and a gated MLP share (`RotaryConfig`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.rope_settings import read_rope

if TYPE_CHECKING:
    from cktrain.models.family import RotaryConfig, WindowedConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def read_decoder(keys: ConfigKeys) -> dict[str, Any]:
    """Heads, the norms' epsilon and rotary settings. Raises ValueError for what is not computed."""
    keys.choice("hidden_act", ("silu",))
    return read_heads(keys) | read_rope(keys)


def read_heads(keys: ConfigKeys) -> dict[str, Any]:
    """Heads and the norms' epsilon."""
    found = {
        "num_key_value_heads": keys.get("num_key_value_heads", keys.get("num_attention_heads")),
        "rms_norm_eps": keys.get("rms_norm_eps", keys.defaults["rms_norm_eps"]),
    }
    if keys.get("head_dim") is not None:
        found["head_dim"] = keys.get("head_dim")
    return found


def read_windows(keys: ConfigKeys, slides: Callable[[int], bool]) -> dict[str, Any]:
    """sliding_window and layer_types; a layer slides, where layer_types is not given, if `slides` says so of its number.

    Raises ValueError for a type of layer that is not computed, and for a window that is missing.
    """
    layers = keys.layer_count("num_hidden_layers")
    types = keys.get("layer_types", [SLIDING if slides(i) else FULL for i in range(layers)])
    if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
        raise ValueError(f"layer_types is {shorten(types)}, a list of names is needed.")
    if other := next((kind for kind in types if kind not in (FULL, SLIDING)), None):
        raise ValueError(f"layer_types has {shorten(other)}. Only {FULL} and {SLIDING} are supported.")
    if len(types) != layers:
        raise ValueError(f"layer_types has {len(types)} entries for {layers} num_hidden_layers")
    if SLIDING not in types:
        return {}
    window = keys.get("sliding_window")
    if window is None:
        raise ValueError(
            "layer_types has sliding_attention and sliding_window is missing. Correct one of them."
        )
    return {"sliding_window": window, "layer_types": types if FULL in types else None}


def write_windows(config: WindowedConfig) -> dict[str, Any]:
    """The way back."""
    return {
        "sliding_window": config.sliding_window,
        "layer_types": [SLIDING if window else FULL for window in config.windows],
    }


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
