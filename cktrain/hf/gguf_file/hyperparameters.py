"""A GGUF's keys about the architecture to the values of a config.json, and back.

Llama 3's rotary scaling has no keys: its divisors stand in the tensor rope_freqs.weight (head_dim / 2), one per frequency:

    1 where a wavelength is short, factor where it is long, between them 1 / ((1 - s) / factor + s)
    with s = (original / wavelength - low) / (high - low)

Only original : low : high matter, so what is read has low_freq_factor 1, which all of Meta's models have too.

What the architectures have of their own (windows, caps, multipliers) is in `own_keys.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cktrain.hf.gguf_file.architectures import ARCHITECTURES, Architecture
from cktrain.hf.gguf_file.own_keys import (
    COMPUTED,
    MODEL_TYPES,
    read_own,
    read_windows,
    write_own,
    write_windows,
)
from cktrain.hf.gguf_file.reader import GGUFFile, decimal
from cktrain.models.family import RotaryConfig

ROPE_FACTORS = "rope_freqs.weight"
_SAME_FACTOR = 1e-4
"""Relative; the divisors are fp32 and were computed from fp32 frequencies."""
_UNUSED = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Keys that change results and are not computed, with the values that mean "not used"."""


def architecture_of(file: GGUFFile) -> Architecture:
    """The file's architecture. Raises ValueError for one that is not computed here."""
    name = file.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise file.error(
            f"its architecture is {name[:80]!r}, and {', '.join(ARCHITECTURES)} are read. Give a model of one of these."
        )
    return ARCHITECTURES[name]


def read_hyperparameters(file: GGUFFile, rope_factors: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """The keys of config.json. `rope_factors` are the values of rope_freqs.weight, where there is one.

    Raises ValueError for what is missing or not computed.
    """
    architecture = architecture_of(file)
    name = architecture.name

    def size(key: str) -> int:
        value: int = file.need(f"{name}.{key}", int)
        if value <= 0:
            raise file.error(f"{name}.{key} is {value}, and a size is needed. Convert the model again.")
        return value

    for key, unused in _UNUSED.items():
        value = file.keys.get(f"{name}.{key}")
        if value is not None and value not in unused and key not in COMPUTED.get(name, ()):
            raise file.error(f"{name}.{key} is {value}, which is not computed here. Give another model.")
    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = file.get(f"{name}.attention.head_count_kv", int, heads)
    head_dim = file.get(f"{name}.attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        found = file.get(f"{name}.{key}", int, head_dim)
        if found != head_dim:
            raise file.error(
                f"{name}.{key} is {found} and a head has {head_dim}, which is not computed here. Give another model."
            )
    values: dict[str, Any] = {
        "model_type": MODEL_TYPES.get(name, name),
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": size("context_length"),
        "vocab_size": _vocab_size(file),
        "rms_norm_eps": decimal(file.need(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": decimal(file.get(f"{name}.rope.freq_base", float, 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "initializer_range": 0.02,
    }
    _check_sizes(file, values)
    if name in ("llama", "qwen3", "olmo2", "smollm3", "granite"):
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if name in ("llama", "granite"):
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    values |= read_windows(file, architecture, values)
    values |= read_own(file, name, values)
    if "hidden_activation" not in values:
        values["hidden_act"] = "silu"
    scaling = _rope_scaling(file, name, values, rope_factors)
    return values | ({} if scaling is None else {"rope_scaling": scaling})


def write_hyperparameters(config: RotaryConfig, architecture: Architecture) -> dict[str, Any]:
    """The keys of an architecture, without their prefix. `config` needs max_position_embeddings.

    Raises ValueError for what llama.cpp does not compute for this architecture.
    """
    assert config.max_position_embeddings is not None
    found: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.resolved_head_dim,
        "attention.value_length": config.resolved_head_dim,
        "rope.dimension_count": config.resolved_head_dim,
        "vocab_size": config.vocab_size,
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    kind, scaling = rope_kind(config), config.rope_scaling or {}
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if kind in ("yarn", "longrope"):
        raise ValueError(
            f"[gguf] rope_scaling is {kind}, which is not written as GGUF yet. Export a Hugging Face folder instead."
        )
    if kind == "llama3" and not architecture.llama3_rope:
        raise ValueError(
            f"[gguf] rope_scaling is llama3, which llama.cpp computes for the architecture llama and not for "
            f"{architecture.name}. Export a Hugging Face folder instead."
        )
    return found | write_windows(config, architecture) | write_own(config, architecture.name)


def rope_kind(config: RotaryConfig) -> str:
    """The config's kind of rotary scaling."""
    scaling = config.rope_scaling or {}
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def llama3_factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """The divisor of each frequency (head_dim / 2), of a `rope_scaling` of the kind llama3."""
    turns = scaling["original_max_position_embeddings"] / _wavelengths(theta, head_dim)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    s = (turns - low) / (high - low)
    between = 1 / ((1 - s) / factor + s)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between))


def _vocab_size(file: GGUFFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise file.error("it has no matrix token_embd.weight. It holds no whole model: give one that does.")
    return table.shape[0]


def _check_sizes(file: GGUFFile, values: Mapping[str, Any]) -> None:
    """The keys' sizes are those of the tensors, before a model of these sizes is made."""
    head_dim, hidden = values["head_dim"], values["hidden_size"]
    shapes = {
        "token_embd": (values["vocab_size"], hidden),
        "blk.0.attn_q": (values["num_attention_heads"] * head_dim, hidden),
        "blk.0.attn_k": (values["num_key_value_heads"] * head_dim, hidden),
        "blk.0.ffn_up": (values["intermediate_size"], hidden),
    }
    for module, shape in shapes.items():
        tensor = file.tensors.get(f"{module}.weight")
        if tensor is None or tensor.shape != shape:
            have = "missing" if tensor is None else f"{tensor.shape}"
            raise file.error(f"{module}.weight is {have}, and {shape} by the keys. Fetch the file again.")
    blocks = {tensor.split(".")[1] for tensor in file.tensors if tensor.startswith("blk.")}
    if len(blocks) != values["num_hidden_layers"]:
        raise file.error(
            f"it has tensors of {len(blocks):,} blocks, and the keys say {values['num_hidden_layers']:,}. "
            "Fetch the file again."
        )


def _rope_scaling(
    file: GGUFFile, name: str, values: Mapping[str, Any], factors: npt.NDArray[np.float32] | None
) -> dict[str, Any] | None:
    kind = file.get(f"{name}.rope.scaling.type", str, "none")
    if factors is not None:
        if (
            factors.shape != (values["head_dim"] // 2,)
            or not np.isfinite(factors).all()
            or factors.min() <= 0
        ):
            raise file.error(
                f"{ROPE_FACTORS} is not {values['head_dim'] // 2} positive numbers. Fetch the file again."
            )
        if kind not in ("none", "llama3"):
            raise file.error(
                f"it has {ROPE_FACTORS} and {name}.rope.scaling.type {kind!r}: give one of them."
            )
        return _llama3_scaling(file, values, factors.astype(np.float64))
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": file.need(f"{name}.rope.scaling.factor", float)}
    raise file.error(
        f"{name}.rope.scaling.type is {kind[:80]!r}, which is not computed here. Give another model."
    )


def _llama3_scaling(
    file: GGUFFile, values: Mapping[str, Any], factors: npt.NDArray[np.float64]
) -> dict[str, Any] | None:
    """The numbers that give these divisors; those of Meta's models where too few divisors say which."""
    if np.all(factors == 1):
        return None
    factor = float(factors.max())
    guesses = [(1.0, 4.0, 8192.0)]
    smooth = (factors > 1 * (1 + _SAME_FACTOR)) & (factors < factor * (1 - _SAME_FACTOR))
    if smooth.sum() > 1:
        s = (1 / factors[smooth] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(1 / _wavelengths(values["rope_theta"], values["head_dim"])[smooth], s, 1)
        if start < 0 < slope:  # s = slope / wavelength + start
            guesses.append((1.0, 1 - 1 / float(start), float(round(-slope / start))))
            guesses.append((1.0, float(round(1 - 1 / float(start), 3)), float(round(-slope / start))))
    for low, high, original in reversed(guesses):
        found = {
            "rope_type": "llama3",
            "factor": decimal(factor),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": int(original),
        }
        again = llama3_factors(found, values["rope_theta"], values["head_dim"])
        if np.allclose(again, factors, rtol=_SAME_FACTOR, atol=0):
            return found
    raise file.error(f"{ROPE_FACTORS} holds the divisors of no llama3 scaling. Give the Hugging Face folder.")


def _wavelengths(theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """Positions in a whole turn of each frequency."""
    return 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
