"""Rotary scaling between GGUF and config.json: keys, and vectors of divisors of the frequencies.

    linear     rope.scaling.type and .factor
    yarn       the same with .original_context_length; what else a config may say has llama.cpp's values, or is refused
    llama3     rope_freqs.weight (D/2): 1 where a wavelength is short, factor where it is long, between them
               1 / ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low)
    longrope   rope_factors_short.weight and rope_factors_long.weight (R/2), .original_context_length and .attn_factor

D numbers of a head, of which R turn. Of llama3's numbers only original : low : high matter, so what is read has
low_freq_factor 1, which all of Meta's models have too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cktrain.hf.gguf_file.architectures import Architecture
from cktrain.hf.gguf_file.reader import GGUFFile, decimal
from cktrain.models.family import RotaryConfig
from cktrain.nn.rope_tables import scores_factor
from cktrain.rope_kinds import kind_of

LLAMA3, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = (LLAMA3, SHORT, LONG)
"""Tensors that are no weights."""
Divisors = Mapping[str, npt.NDArray[np.float32]]
"""Of `FACTORS` those that a file has."""
_SAME_FACTOR = 1e-4
"""Relative; the divisors are fp32 and were computed from fp32 frequencies."""
_YARN = {"yarn_beta_fast": ("beta_fast", 32.0), "yarn_beta_slow": ("beta_slow", 1.0)}
"""Keys after rope.scaling., their name in config.json, and what llama.cpp has where they are not given."""


def read_rope(file: GGUFFile, name: str, values: Mapping[str, Any], divisors: Divisors) -> dict[str, Any]:
    """The keys of config.json about rotary scaling. Raises ValueError for what is not computed here, or damaged."""
    turned = file.get(f"{name}.rope.dimension_count", int, values["head_dim"])
    for tensor, found in divisors.items():
        if found.shape != (turned // 2,) or not np.isfinite(found).all() or found.min() <= 0:
            raise file.error(f"{tensor} is not {turned // 2} positive numbers. Fetch the file again.")
    kind = file.get(f"{name}.rope.scaling.type", str, "none")
    given = sorted(divisors)
    if given == sorted((SHORT, LONG)) and kind in ("none", "longrope"):
        return _read_longrope(file, name, values, divisors)
    if given == [LLAMA3] and kind in ("none", "llama3"):
        scaling = _llama3_scaling(file, values, divisors[LLAMA3].astype(np.float64))
        return {} if scaling is None else {"rope_scaling": scaling}
    if given:
        raise file.error(
            f"it has {' and '.join(given)} with {name}.rope.scaling.type {kind[:80]!r}, which do not belong together. "
            "Convert the model again."
        )
    if kind == "none":
        return {}
    if kind == "linear":
        return {
            "rope_scaling": {
                "rope_type": "linear",
                "factor": file.need(f"{name}.rope.scaling.factor", float),
            }
        }
    if kind == "yarn":
        return _read_yarn(file, name, values)
    raise file.error(
        f"{name}.rope.scaling.type is {kind[:80]!r}, which is not computed here. Give another model."
    )


def write_rope(config: RotaryConfig, architecture: Architecture) -> dict[str, Any]:
    """The keys of an architecture, without their prefix. Raises ValueError for what llama.cpp does not compute for it."""
    kind, scaling = kind_of(config.rope_scaling), config.rope_scaling or {}
    if kind == "default":
        return {}
    if kind not in architecture.rope_kinds:
        raise ValueError(
            f"[gguf] rope_scaling is {kind}, which is not written for llama.cpp's {architecture.name}: "
            f"{', '.join(architecture.rope_kinds)} are. Export a Hugging Face folder instead."
        )
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    original = {
        "rope.scaling.original_context_length": int(scaling.get("original_max_position_embeddings", 0))
    }
    if kind == "longrope":
        return original | {"rope.scaling.attn_factor": scores_factor(scaling)}
    if kind == "yarn":
        factor = float(scaling["factor"])
        computed = {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "mscale": scaling.get("mscale_all_dim"),
        }
        other = [key for key, value in computed.items() if scaling.get(key) not in (None, value)]
        if not math.isclose(scores_factor(scaling), 0.1 * math.log(factor) + 1, rel_tol=_SAME_FACTOR):
            other.append("attention_factor")
        if other:
            raise ValueError(
                f"[gguf] rope_scaling is yarn with {other[0]} {scaling.get(other[0])}, and llama.cpp has another one. "
                "Export a Hugging Face folder instead."
            )
        return {"rope.scaling.type": "yarn", "rope.scaling.factor": factor} | original
    return {}


def divisors_of(config: RotaryConfig) -> dict[str, npt.NDArray[np.float32]]:
    """The vectors that go into the file beside the weights."""
    kind, scaling = kind_of(config.rope_scaling), config.rope_scaling or {}
    if kind == "llama3":
        found = llama3_factors(scaling, config.rope_theta, config.resolved_head_dim)
        return {LLAMA3: found.astype(np.float32)}
    if kind == "longrope":
        return {
            SHORT: np.array(scaling["short_factor"], np.float32),
            LONG: np.array(scaling["long_factor"], np.float32),
        }
    return {}


def _read_yarn(file: GGUFFile, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{name}.rope.scaling."
    for key, unused in (
        ("attn_factor", (0.0, 1.0)),
        ("yarn_log_multiplier", (0.0,)),
        ("yarn_attn_factor", (0.0, 1.0)),
        ("yarn_ext_factor", (1.0,)),
    ):
        value = file.keys.get(prefix + key)
        if value is not None and value not in unused:
            raise file.error(f"{prefix}{key} is {value}, which is not computed here. Give another model.")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": decimal(file.need(f"{prefix}factor", float)),
        "original_max_position_embeddings": file.get(
            f"{prefix}original_context_length", int, values["max_position_embeddings"]
        ),
    }
    for key, (ours, usual) in _YARN.items():
        if (value := decimal(file.get(prefix + key, float, usual))) != usual:
            scaling[ours] = value
    return {"rope_scaling": scaling}


def _read_longrope(
    file: GGUFFile, name: str, values: Mapping[str, Any], divisors: Divisors
) -> dict[str, Any]:
    positions = values["max_position_embeddings"]
    original = file.get(f"{name}.rope.scaling.original_context_length", int, positions)
    if original <= 1:
        raise file.error(
            f"{name}.rope.scaling.original_context_length is {original}, a length is needed. Convert the model again."
        )
    scaling = {
        "rope_type": "longrope",
        "factor": positions / original,
        "original_max_position_embeddings": original,
        "short_factor": [decimal(value) for value in divisors[SHORT]],
        "long_factor": [decimal(value) for value in divisors[LONG]],
    }
    factor = decimal(file.get(f"{name}.rope.scaling.attn_factor", float, 1.0))
    if not math.isclose(factor, scores_factor(scaling), rel_tol=_SAME_FACTOR):
        scaling["attention_factor"] = factor
    return {"original_max_position_embeddings": original, "rope_scaling": scaling}


def llama3_factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """The divisor of each frequency (head_dim / 2), of a `rope_scaling` of the kind llama3."""
    turns = scaling["original_max_position_embeddings"] / _wavelengths(theta, head_dim)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    s = (turns - low) / (high - low)
    between = 1 / ((1 - s) / factor + s)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between))


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
    raise file.error(f"{LLAMA3} holds the divisors of no llama3 scaling. Give the Hugging Face folder.")


def _wavelengths(theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """Positions in a whole turn of each frequency."""
    return 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
