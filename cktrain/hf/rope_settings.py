"""Rotary settings as Hugging Face's config.json has them, in every spelling.

`rope_theta` with `rope_scaling`; the `rope_parameters` of transformers 5; and either of them once for each layer type. The
first is written, which all versions read, where one block serves all layers. `cktrain/rope_kinds.py` says which kinds there
are; the tables themselves are made in `cktrain/nn/rope_tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cktrain.foreign_file import shorten
from cktrain.hf.config_keys import ConfigKeys
from cktrain.rope_kinds import ROPE_KINDS

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(
    keys: ConfigKeys, renamed: Mapping[str, str] = MappingProxyType({}), partial: bool = False
) -> dict[str, Any]:
    """rope_theta and rope_scaling out of either spelling; the older wins where both stand, as in transformers.

    `renamed` are names of kinds that mean another one; with `partial` partial_rotary_factor is read, too. Raises ValueError
    for what is not computed.
    """
    older, newer = _block(keys, "rope_scaling"), _block(keys, "rope_parameters")
    given = older or newer or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError(f"rope parameters are {shorten(given)}. One mapping for all layers is supported.")
    return _settings(keys, given, keys.get("rope_theta", 10000.0), renamed, partial)


def read_layered_rope(keys: ConfigKeys, sliding_theta: Any) -> dict[str, dict[str, Any]]:
    """As `read_rope`, for each of `LAYER_TYPES`: sliding layers have no scaling but the one that is theirs by name.

    `sliding_theta` is the base of their frequencies where `rope_parameters` does not say it.
    """
    nested = _block(keys, "rope_parameters") or {}
    if unknown := [key for key in nested if key not in LAYER_TYPES]:
        raise ValueError(f"rope_parameters has {shorten(unknown[0])}. It has {' and '.join(LAYER_TYPES)}.")
    found = {}
    for kind, theta in zip(LAYER_TYPES, (keys.get("rope_theta"), sliding_theta), strict=True):
        own = nested.get(kind) or {}
        if not isinstance(own, Mapping):
            raise ValueError(f"rope_parameters[{kind!r}] is {shorten(own)}, a mapping is needed.")
        scaling = _block(keys, "rope_scaling") or {} if kind == "full_attention" else {}
        found[kind] = _settings(keys, {**own, **scaling}, theta)
    return found


def _block(keys: ConfigKeys, key: str) -> Mapping[str, Any] | None:
    """The mapping under a key. Raises ValueError for anything else."""
    given = keys.values.get(key)
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"{key} is {shorten(given)}. Write one mapping for all layers, or null without quotes for none."
        )
    return given


def _settings(
    keys: ConfigKeys,
    given: Mapping[str, Any],
    theta: Any,
    renamed: Mapping[str, str] = MappingProxyType({}),
    partial: bool = False,
) -> dict[str, Any]:
    """One block's rope_theta, which wins over the one outside, and the other keys of `read_rope`."""
    rope = dict(given)
    inside = rope.pop("rope_theta", None)
    found: dict[str, Any] = {"rope_theta": theta if inside is None else inside}
    share = rope.pop("partial_rotary_factor", None)
    if partial:
        share = keys.get("partial_rotary_factor") if share is None else share
        found |= {} if share is None else {"partial_rotary_factor": share}
    elif share not in (None, 1, 1.0):
        raise ValueError("partial_rotary_factor is not 1. Only 1 is supported.")
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    kind = renamed.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise ValueError(f"rope_type is {shorten(kind)}. Only {', '.join(ROPE_KINDS)} are supported.")
    if kind == "default":
        left = [key for key, value in rope.items() if value is not None]
        if left and not {"rope_type", "type"} & given.keys():
            raise ValueError(
                f"rotary settings have {shorten(left[0])} and no rope_type, so that nothing would be scaled. Name the kind, "
                f"one of {', '.join(ROPE_KINDS)}, or take {shorten(left[0])} out."
            )
        return found
    if "original_max_position_embeddings" in ROPE_KINDS[kind]:
        outside = keys.get("original_max_position_embeddings")
        if outside is not None:
            rope["original_max_position_embeddings"] = outside
        elif rope.get("original_max_position_embeddings") is None:
            rope["original_max_position_embeddings"] = keys.values["max_position_embeddings"]
    if kind in ("yarn", "longrope") and rope.get("factor") is None:
        rope["factor"] = _ratio(
            keys.values["max_position_embeddings"], rope["original_max_position_embeddings"]
        )
    return found | {"rope_scaling": {"rope_type": kind, **rope}}


def _ratio(positions: Any, original: Any) -> float:
    """How many times longer the context is than the original one. Raises ValueError unless both are numbers above 0."""
    for name, value in (
        ("max_position_embeddings", positions),
        ("original_max_position_embeddings", original),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} is {shorten(value)}, a number of positions is needed.")
    return float(positions / original)
