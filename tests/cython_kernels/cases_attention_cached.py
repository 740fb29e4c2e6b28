"""Rows of the table of cases: attention of one new token per sequence beside a cache."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from case import FLAG, Case, Inputs, Outputs, Shape, blank, f32_of, normal
from hypothesis import strategies as st


class AttentionCached(Case):
    """Sequences of several lengths, with a window in a ring that has come round, or all keys in a longer cache."""

    name = "attention_cached"
    ops = ("attention_cached",)
    outputs = ()
    exact = ("keys", "values")
    shapes = st.fixed_dictionaries(
        {
            "b": st.sampled_from([0, 1, 2, 3]),
            "p": st.sampled_from([1, 5, 64, 65, 130]),
            "k": st.sampled_from([1, 2]),
            "group": st.sampled_from([1, 3, 4, 5]),
            "d": st.sampled_from([1, 2, 7, 16, 33, 64]),
            "window": st.sampled_from([0, 0, 1, 3, 40]),
            "softcap": st.sampled_from([0.0, 0.0, 0.5]),
            "narrow": FLAG,
        }
    )
    examples = (
        {"b": 2, "p": 7, "k": 2, "group": 2, "d": 5, "window": 0, "softcap": 0.0, "narrow": False},
        {"b": 2, "p": 5, "k": 1, "group": 3, "d": 4, "window": 3, "softcap": 0.5, "narrow": False},
        {"b": 1, "p": 4, "k": 2, "group": 1, "d": 8, "window": 4, "softcap": 0.0, "narrow": False},
    )
    large = (
        {"b": 1, "p": 777, "k": 3, "group": 3, "d": 64, "window": 0, "softcap": 0.0, "narrow": False},
        {"b": 5, "p": 300, "k": 2, "group": 5, "d": 40, "window": 131, "softcap": 2.0, "narrow": True},
        {"b": 2, "p": 9000, "k": 1, "group": 2, "d": 33, "window": 0, "softcap": 0.0, "narrow": True},
    )

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        b, p, k, d = (shape[name] for name in ("b", "p", "k", "d"))
        cache = dtype if np.dtype(dtype) != ml_dtypes.bfloat16 else f32_of(dtype)
        if shape["narrow"] and np.dtype(dtype) != np.float64:
            cache = ml_dtypes.bfloat16
        rows = [normal(rng, (b, k, d), dtype).astype(cache).astype(dtype) for _ in range(2)]  # kept exactly
        comes_round = 0 < shape["window"] <= p
        return {
            "keys_before": normal(rng, (b, p, k, d), cache),
            "values_before": normal(rng, (b, p, k, d), cache),
            "q": normal(rng, (b, k * shape["group"], d), dtype),
            "k": rows[0],
            "v": rows[1],
            "lengths": rng.integers(0, 3 * p if comes_round else p, b, np.int32),
            "scale": d**-0.5,
            "window": shape["window"],
            "softcap": shape["softcap"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        keys, values = inputs["keys_before"].copy(), inputs["values_before"].copy()
        o = blank(inputs["q"])
        kernels.attention_cached(
            o,
            keys,
            values,
            *(inputs[name] for name in ("q", "k", "v", "lengths", "scale", "window", "softcap")),
        )
        return {"o": o, "keys": keys, "values": values}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"o": 1.0}
