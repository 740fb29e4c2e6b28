"""The text part of a model that also sees images: its config.json as that of a model of text alone.

    {model_type: gemma3, text_config: {...}, vision_config: {...}, eos_token_id: ...}
        -> {model_type: gemma3_text, ..., eos_token_id: ...}

What sees is left out, here and in what is saved, and whoever loads the model is told (`folder.resolve_model`). The weights'
names stand in the family's `TensorNames`: `text_bases` and `left_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cktrain.data.special_tokens import KEYS

TEXT_PARTS = {"gemma3": "gemma3_text"}
"""model_type of a model that sees, and that of its text part."""
_OUTSIDE = ("tie_word_embeddings", "torch_dtype", "dtype")
"""What the whole says of its text part, where that does not say it itself. Of the special tokens the whole's word counts:
text_config often has what its class has by default."""


def has_text_part(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that sees, whose text part is computed here."""
    model_type = values.get("model_type")
    return isinstance(model_type, str) and model_type in TEXT_PARTS


def text_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """The text part's values; those of another model as they are. Raises ValueError where text_config is no object, or
    is of another model_type."""
    if not has_text_part(values):
        return dict(values)
    wanted, inside = TEXT_PARTS[values["model_type"]], values.get("text_config")
    if not isinstance(inside, Mapping):
        raise ValueError(
            f"text_config is {type(inside).__name__}, an object is needed. Fetch the file again."
        )
    kind = inside.get("model_type", wanted)
    if kind != wanted:
        raise ValueError(f"text_config has model_type {kind!r}. Only {wanted!r} is supported.")
    outside = {key: values[key] for key in (*_OUTSIDE, *KEYS) if values.get(key) is not None}
    ids = {key: outside[key] for key in KEYS if key in outside}
    return {**outside, **inside, **ids, "model_type": wanted}
