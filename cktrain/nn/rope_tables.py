"""The cosines and sines of rotary position embedding (Su et al. 2021), with Llama-3 and linear scaling.

P positions, D head size; one angle per pair of dimensions, so the tables are (P, D/2).

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


def rope_tables(
    positions_count: int,
    head_dim: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return cos and sin, (positions_count, head_dim/2) of `dtype`, for positions 0, 1, 2...

    `theta` is the base of the frequencies theta^(-2i/D). `scaling` is the `rope_scaling` of a Hugging Face
    config: None or rope_type "default"; rope_type "linear" with factor; rope_type "llama3" with factor,
    low_freq_factor, high_freq_factor and original_max_position_embeddings. ValueError for any other.
    """
    if head_dim % 2:
        raise ValueError(
            f"[nn.rope_tables] head_dim is {head_dim}, rotary embedding pairs dimensions. Make it even."
        )
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (float(theta) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = _scaled(np.float32(1.0) / powers, scaling)
    angles = (np.arange(positions_count, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _scaled(frequencies: NDArray[np.float32], scaling: Mapping[str, Any] | None) -> NDArray[np.float32]:
    """Apply `scaling` to the frequencies (D/2)."""
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type"))  # "type" in configs older than 2024
    if kind == "default":
        return frequencies
    if kind == "linear":  # positions interpolated: Chen et al. 2023
        return frequencies / np.float32(_number(scaling, "factor"))
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise ValueError(
        f"[nn.rope_tables] rope_type {kind!r} is not known. Use one of 'default', 'linear', 'llama3'."
    )


def _llama3(frequencies: NDArray[np.float32], scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """Llama 3.1's rule: long waves are slowed by `factor`, short ones kept, those between are blended."""
    factor = _number(scaling, "factor")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    context = _number(scaling, "original_max_position_embeddings")
    if high <= low:
        raise ValueError(
            f"[nn.rope_tables] high_freq_factor {high} is not above low_freq_factor {low}. "
            "Copy rope_scaling from the model's config.json."
        )
    wavelengths = np.float32(2.0 * math.pi) / frequencies
    # 0 where the wave is longer than context/low, 1 where it is shorter than context/high.
    keep = np.clip((np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return (1 - keep) * frequencies / np.float32(factor) + keep * frequencies


def _number(scaling: Mapping[str, Any], key: str) -> float:
    """Return the positive number under `key`."""
    value = scaling.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError(
            f"[nn.rope_tables] rope_scaling[{key!r}] is {value!r}, a positive number is needed. "
            "Copy rope_scaling from the model's config.json."
        )
    return float(value)
