"""What GGUF's architectures have of their own: sliding windows, Gemma's and Granite's numbers, SmolLM3's layers.

Windows stand in `attention.sliding_window`, and which layers have one in a list of booleans,
`attention.sliding_window_pattern`; without the list every 6th layer sees all (gemma3), every 4th (olmo2) or every 2nd
(gemma2). The list is written only where the layers are others, since older versions of llama.cpp do not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cktrain.hf.gguf_file.architectures import Architecture
from cktrain.hf.gguf_file.reader import GGUFFile, decimal
from cktrain.models.family import RotaryConfig

MODEL_TYPES = {"gemma3": "gemma3_text"}
"""config.json's model_type where the architecture has another name."""
COMPUTED = {
    "gemma2": ("attn_logit_softcapping", "final_logit_softcapping"),
    "granite": ("attention.scale", "logit_scale", "residual_scale", "embedding_scale"),
}
"""Keys that most architectures must not have, and these do."""
_FULL_EVERY = {"gemma3": 6, "olmo2": 4, "gemma2": 2}
"""A layer sees all if its number, counted from 1, is a multiple of this, where no list says it."""
_LARGEST = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and layers of Gemma's 27B, whose scores llama.cpp divides by sqrt(hidden_size / heads), not sqrt(D)."""
_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def read_windows(file: GGUFFile, architecture: Architecture, values: Mapping[str, Any]) -> dict[str, Any]:
    """sliding_window and layer_types of config.json; Mistral is a llama with a window. ValueError for a bad list."""
    name, positions = architecture.name, values["max_position_embeddings"]
    window = file.get(f"{name}.attention.sliding_window", int, 4096 if name == "gemma2" else None)
    if name == "phi3" and window:  # llama.cpp computes without it, and the model has it
        return {"sliding_window": window}
    if not architecture.windows:
        if not window or window >= positions:
            return {}
        if name != "llama":
            raise file.error(
                f"{name}.attention.sliding_window is {window}, which is not read. Give the Hugging Face folder."
            )
        return {"model_type": "mistral", "sliding_window": window}
    if not window:
        return {"layer_types": ["full_attention"] * values["num_hidden_layers"]} if name != "olmo2" else {}
    layers, every = values["num_hidden_layers"], _FULL_EVERY[name]
    slides = file.keys.get(f"{name}.attention.sliding_window_pattern", every)
    if isinstance(slides, int) and not isinstance(slides, bool) and slides > 0:
        slides = np.array([(layer + 1) % slides != 0 for layer in range(layers)])
    if not isinstance(slides, np.ndarray) or len(slides) != layers:
        raise file.error(
            f"{name}.attention.sliding_window_pattern is no list of {layers} truth values. Convert the model again."
        )
    types = ["sliding_attention" if one else "full_attention" for one in slides]
    found: dict[str, Any] = {"sliding_window": window, "layer_types": types}
    if name == "olmo2":
        same = {"rope_type": "default", "rope_theta": values["rope_theta"]}
        found |= {"model_type": "olmo3", "rope_parameters": {"sliding_attention": same}}
    return found


def write_windows(config: RotaryConfig, architecture: Architecture) -> dict[str, Any]:
    """The way back."""
    windows = getattr(config, "windows", [])
    if not architecture.windows or not (any(windows) or architecture.name == "gemma2"):
        return {}
    slides = [bool(window) for window in windows]
    every = _FULL_EVERY[architecture.name]
    found: dict[str, Any] = {"attention.sliding_window": max(windows) or 4096}
    if slides != [(layer + 1) % every != 0 for layer in range(len(slides))]:
        found["attention.sliding_window_pattern"] = slides
    return found


def read_own(file: GGUFFile, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json that only this architecture has."""
    if name in ("gemma2", "gemma3"):
        found: dict[str, Any] = {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": _scalar(
                name,
                values["num_hidden_layers"],
                values["hidden_size"],
                values["num_attention_heads"],
                values["head_dim"],
            ),
        }
        if name == "gemma3":
            return found | {
                "rope_local_base_freq": decimal(file.get("gemma3.rope.freq_base_swa", float, 10000.0))
            }
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            found[key] = decimal(file.get(f"gemma2.{key}", float, 0.0)) or None
        return found
    if name == "granite":
        scale = decimal(file.get("granite.attention.scale", float, 0.0)) or values["head_dim"] ** -0.5
        others = {
            ours: decimal(file.get(f"granite.{key}", float, 1.0)) or 1.0 for ours, key in _MULTIPLIERS.items()
        }
        return others | {"attention_multiplier": scale}
    if name == "phi3":
        turned = file.get("phi3.rope.dimension_count", int, values["head_dim"])
        return {"partial_rotary_factor": turned / values["head_dim"]}
    return {}


def write_own(config: RotaryConfig, name: str) -> dict[str, Any]:
    """The way back. Raises ValueError for what llama.cpp does not compute for the architecture."""
    c: Any = config
    if name == "smollm3":
        if c.turned != [(layer + 1) % 4 != 0 for layer in range(c.num_hidden_layers)]:
            raise _refused("no_rope_layers is not every fourth layer", name)
        return {}
    if name == "granite":
        return {key: float(getattr(c, ours)) for ours, key in _MULTIPLIERS.items()}
    if name == "phi3":
        return {"rope.dimension_count": c.turned}
    if name not in ("gemma2", "gemma3"):
        return {}
    if not c.tied:
        raise _refused("the head is not the embedding", name)
    scalar = _scalar(name, c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.resolved_head_dim)
    if c.resolved_scalar != scalar:
        raise _refused(f"query_pre_attn_scalar is {c.resolved_scalar}, and llama.cpp takes {scalar}", name)
    if name == "gemma2":
        caps = {key: getattr(c, key) or 0.0 for key in ("attn_logit_softcapping", "final_logit_softcapping")}
        if not all(caps.values()):
            raise _refused("scores or logits are not capped", name)
        return caps
    if c.final_logit_softcapping is not None:
        raise _refused("final_logit_softcapping is set", name)
    return {"rope.freq_base_swa": float(c.rope_local_base_freq or c.rope_theta)}


def _scalar(name: str, layers: int, hidden: int, heads: int, head_dim: int) -> int:
    """What llama.cpp divides the scores by the square root of."""
    return hidden // heads if (name, layers) in _LARGEST else head_dim


def _refused(what: str, name: str) -> ValueError:
    return ValueError(
        f"[gguf] {what}, which llama.cpp's {name} does not compute. Export a Hugging Face folder instead."
    )
