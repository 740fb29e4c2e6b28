"""The kinds of rotary scaling, and the keys that each has in a `rope_scaling` block, as Hugging Face names them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings", "short_factor", "long_factor"),
}
"""What each kind needs: positive numbers, or lists of them."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor",),
}
"""What each kind may have; `truncate` is true or false."""
LISTS = ("short_factor", "long_factor")


def kind_of(scaling: Mapping[str, Any] | None) -> Any:
    """The kind that a block says: "default" where there is no block; None where it does not say."""
    if scaling is None:
        return "default"
    return scaling.get("rope_type", scaling.get("type"))  # "type" in configs older than 2024


def check_rope_scaling(scaling: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the key, for a kind that is not computed, and for a number that is missing, too many, or
    not a positive finite one."""
    kind = kind_of(scaling)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ValueError(f"rope_scaling: rope_type is {kind!r}. Only {', '.join(ROPE_KINDS)} are supported")
    needed, more = ROPE_KINDS[kind], OPTIONAL.get(kind, ())
    for key, value in scaling.items():
        if key in ("rope_type", "type", *needed, *more) or value is None:
            continue
        close = difflib.get_close_matches(str(key), needed + more, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(needed + more) or 'none'}"
        raise ValueError(f"rope_scaling: {key!r} is no key of rope_type {kind}. {hint}")
    for key in (*needed, *more):
        value = scaling.get(key)
        if value is None and key in more:
            continue
        if key == "truncate":
            if not isinstance(value, bool):
                raise ValueError(f"rope_scaling: truncate is {value!r}. Give true or false")
        elif key in LISTS:
            if not isinstance(value, list) or not value:
                raise ValueError(
                    f"rope_scaling: {key} is {value!r}, and {kind} needs a list of numbers there"
                )
            for number in value:
                _check_number(key, kind, number)
        else:
            _check_number(key, kind, value)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError(
            f"rope_scaling: high_freq_factor {scaling['high_freq_factor']} is not above low_freq_factor "
            f"{scaling['low_freq_factor']}. Copy rope_scaling from the model's config.json"
        )
    if kind == "longrope" and len(scaling["short_factor"]) != len(scaling["long_factor"]):
        raise ValueError(
            f"rope_scaling: short_factor has {len(scaling['short_factor'])} numbers and long_factor "
            f"{len(scaling['long_factor'])}. Copy rope_scaling from the model's config.json"
        )


def _check_number(key: str, kind: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"rope_scaling: {key} is {value!r}, and {kind} needs a positive number there")
    if not (0 < value < math.inf):
        raise ValueError(f"rope_scaling: {key} is {value!r}. Give a positive finite number")
