"""`rope_scaling` as Hugging Face's config.json has it: which kinds there are, and which numbers each needs.

The tables themselves are made in `cktrain/nn/rope_tables.py`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

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
