"""`rope_scaling` as Hugging Face's config.json has it: which kinds there are, and which numbers each needs.

Both spellings are read: `rope_theta` with `rope_scaling`, and the `rope_parameters` of transformers 5; the first is
written, which both versions read. The tables themselves are made in `cktrain/nn/rope_tables.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys

ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The numbers of each kind."""


def check_rope_scaling(scaling: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for a kind that is not computed, and for a number that is missing, too many, or
    not a positive finite one."""
    kind = scaling.get("rope_type", scaling.get("type"))  # "type" in configs older than 2024
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ValueError(f"rope_scaling: rope_type is {kind!r}. Only {', '.join(ROPE_KINDS)} are supported")
    numbers = ROPE_KINDS[kind]
    for key, value in scaling.items():
        if key in ("rope_type", "type", *numbers) or value is None:
            continue
        close = difflib.get_close_matches(str(key), numbers, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(numbers) or 'none'}"
        raise ValueError(f"rope_scaling: {key!r} is no key of rope_type {kind}. {hint}")
    for key in numbers:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"rope_scaling: {key} is {value!r}, and {kind} needs a positive number there")
        if not (0 < value < math.inf):
            raise ValueError(f"rope_scaling: {key} is {value!r}. Give a positive finite number")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError(
            f"rope_scaling: high_freq_factor {scaling['high_freq_factor']} is not above low_freq_factor "
            f"{scaling['low_freq_factor']}. Copy rope_scaling from the model's config.json"
        )


def read_rope(keys: ConfigKeys) -> dict[str, Any]:
    """rope_theta and rope_scaling out of either spelling; the older wins where both stand, as in transformers.

    Raises ValueError for what is not computed.
    """
    values = keys.values
    for key in ("rope_scaling", "rope_parameters"):
        nested = values.get(key)
        if nested is not None and not isinstance(nested, Mapping):
            raise ValueError(
                f"{key} is {shorten(nested)}. Write one mapping for all layers, or null without quotes for none."
            )
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(f"rope parameters are {shorten(given)}. One mapping for all layers is supported.")
    rope = dict(given)
    inside = rope.pop("rope_theta", None)
    theta = keys.get("rope_theta", 10000.0) if inside is None else inside
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ValueError(f"rope_type is {shorten(kind)}. Only {', '.join(ROPE_KINDS)} are supported.")
    if rope.pop("partial_rotary_factor", None) not in (None, 1, 1.0):
        raise ValueError("partial_rotary_factor is not 1. Only 1 is supported.")
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "llama3":
        positions = values.get("original_max_position_embeddings")
        if positions is not None:
            rope["original_max_position_embeddings"] = positions
        rope.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **rope}}
