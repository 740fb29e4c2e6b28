"""The cosines and sines of rotary position embedding (Su et al. 2021), and how they reach longer contexts.

P positions, R how many numbers of a head turn; one angle per pair of them, so the tables are (P, R/2).

    linear     positions interpolated                                    Chen et al. 2023
    llama3     long waves interpolated, short ones kept                  Llama 3.1
    yarn       the same with another ramp, and scores scaled             Peng et al. 2023
    longrope   each frequency divided by a number of its own, scores scaled; one list of them for contexts up to the
               original length, one for longer ones                      Ding et al. 2024

The angles are rounded to fp32 where Hugging Face's transformers rounds them (exponents, powers, frequencies,
then position times frequency), whatever the type of the tables: pretrained weights have seen these angles,
and at position 20,000 an unrounded exponent alone moves a cosine by 2e-3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cktrain.rope_kinds import check_rope_scaling, kind_of


def rope_tables(
    positions_count: int,
    size: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return cos and sin, (positions_count, size/2) of `dtype`, for positions 0, 1, 2..., without `scores_factor`.

    `size` numbers of a head turn, and `theta` is the base of the frequencies theta^(-2i/size). `scaling` is the
    `rope_scaling` of a Hugging Face config (`cktrain.rope_kinds` checks it); ValueError for one that is not computed.
    longrope takes the numbers for long contexts where there are more positions than originally, for all of them.
    """
    if size % 2:
        raise ValueError(
            f"[nn.rope_tables] head_dim is {size}, rotary embedding pairs dimensions. Make it even."
        )
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    powers = (float(theta) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = _frequencies(powers, theta, scaling, positions_count)
    angles = (np.arange(positions_count, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def scores_factor(scaling: Mapping[str, Any] | None) -> float:
    """What the cosines and sines are multiplied by, so that scores are by its square; 1 for most kinds."""
    kind = kind_of(scaling)
    if scaling is None or kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(scaling["original_max_position_embeddings"]))
    both = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if both[0] is None or both[1] is None:
        return 0.1 * math.log(factor) + 1
    return (0.1 * both[0] * math.log(factor) + 1) / (0.1 * both[1] * math.log(factor) + 1)


def original_positions(scaling: Mapping[str, Any] | None) -> int | None:
    """The length up to which longrope has other frequencies than beyond; None for the other kinds."""
    if scaling is None or kind_of(scaling) != "longrope":
        return None
    return int(scaling["original_max_position_embeddings"])


def _frequencies(
    powers: NDArray[np.float32], theta: float, scaling: Mapping[str, Any] | None, positions: int
) -> NDArray[np.float32]:
    """The frequencies (R/2), for the powers theta^(2i/R)."""
    if scaling is None:
        return np.float32(1.0) / powers
    check_rope_scaling(scaling)
    kind = kind_of(scaling)
    if kind == "linear":
        return np.float32(1.0) / powers / np.float32(scaling["factor"])
    if kind == "llama3":
        return _llama3(np.float32(1.0) / powers, scaling)
    if kind == "yarn":
        return _yarn(powers, theta, scaling)
    if kind == "longrope":
        return _longrope(powers, scaling, positions)
    return np.float32(1.0) / powers


def _llama3(frequencies: NDArray[np.float32], scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """Llama 3.1's rule: long waves are slowed by `factor`, short ones kept, those between are blended."""
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelengths = np.float32(2.0 * math.pi) / frequencies
    # 0 where the wave is longer than context/low, 1 where it is shorter than context/high.
    keep = np.clip((np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return (1 - keep) * frequencies / np.float32(factor) + keep * frequencies


def _yarn(powers: NDArray[np.float32], theta: float, scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """Waves that turn `beta_fast` times in the original context are kept, those that turn `beta_slow` times are slowed,
    and between them the share falls linearly with the frequency's number."""
    half = len(powers)

    def turning(times: float) -> float:
        """The number of the frequency, counted by numbers of a head, that turns so often in the original context."""
        context = scaling["original_max_position_embeddings"]
        return 2 * half * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning(scaling.get("beta_fast") or 32), turning(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    if low == high:
        high += 0.001
    steps = np.arange(half, dtype=np.float32) - np.float32(low)
    kept = np.float32(1) - np.clip(steps / np.float32(high - low), np.float32(0), np.float32(1))
    slowed = np.float32(1) / (np.float32(scaling["factor"]) * powers)
    return slowed * (np.float32(1) - kept) + np.float32(1) / powers * kept


def _longrope(powers: NDArray[np.float32], scaling: Mapping[str, Any], positions: int) -> NDArray[np.float32]:
    """Each frequency divided by its number of the list for this many positions."""
    is_long = positions > scaling["original_max_position_embeddings"]
    divisors = np.array(scaling["long_factor" if is_long else "short_factor"], np.float32)
    if len(divisors) != len(powers):
        raise ValueError(
            f"[nn.rope_tables] longrope has {len(divisors)} factors and {2 * len(powers)} numbers of a head turn, in "
            f"pairs. Copy rope_scaling and partial_rotary_factor from the model's config.json."
        )
    return np.float32(1) / (divisors * powers)
