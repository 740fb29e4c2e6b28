"""Row of the table of cases: attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import FLAG, Case, Inputs, Outputs, Shape, blank, blank_f32, normal, with_gap
from hypothesis import strategies as st


class Attention(Case):
    """Whole sequences (cached 0) or the last queries of longer ones; q, k, v apart or views of one buffer."""

    name = "attention"
    ops = ("attention_forward", "attention_backward")
    shapes = st.fixed_dictionaries(
        {
            "b": st.sampled_from([0, 1, 2]),
            "s": st.sampled_from([1, 2, 7, 16, 33, 65]),
            "cached": st.sampled_from([0, 0, 1, 5, 70]),
            "k": st.sampled_from([1, 2]),
            "group": st.sampled_from([1, 3, 4]),
            "d": st.sampled_from([1, 2, 7, 16, 33, 64, 80]),
            "window": st.sampled_from([0, 0, 1, 3, 16, 1000]),
            "documents": FLAG,
            "fused": FLAG,
        }
    )
    examples = (
        {
            "b": 2,
            "s": 7,
            "cached": 0,
            "k": 2,
            "group": 2,
            "d": 6,
            "window": 0,
            "documents": False,
            "fused": True,
        },
        {
            "b": 2,
            "s": 7,
            "cached": 0,
            "k": 1,
            "group": 3,
            "d": 4,
            "window": 3,
            "documents": True,
            "fused": True,
        },
        {
            "b": 1,
            "s": 3,
            "cached": 5,
            "k": 2,
            "group": 1,
            "d": 5,
            "window": 4,
            "documents": False,
            "fused": False,
        },
        {
            "b": 1,
            "s": 1,
            "cached": 0,
            "k": 1,
            "group": 1,
            "d": 4,
            "window": 0,
            "documents": False,
            "fused": False,
        },
    )
    large = tuple(
        {"s": s, "cached": cached, "k": k, "group": 3, "d": d, "window": window, "documents": documents}
        | {"b": b, "fused": cached == 0}
        # one pair of batch and head cannot be shared out by heads; four can, to two threads
        for b, k, s, cached, d, window, documents in (
            (1, 1, 333, 0, 33, 0, False),
            (2, 2, 130, 97, 64, 50, False),
            (1, 1, 200, 300, 80, 0, True),
            (2, 2, 333, 0, 16, 0, True),
        )
    )
    outputs = ("o",)
    gradients = ("q", "k", "v")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        b, s, k, d = shape["b"], shape["s"], shape["k"], shape["d"]
        t, h = s + shape["cached"], k * shape["group"]
        fused = shape["fused"] and t == s
        first = None
        if shape["documents"]:
            # Documents start anywhere; a query's first key is the last start at or before its own position.
            starts = rng.random((b, t)) < 0.2
            first = np.maximum.accumulate(np.where(starts, np.arange(t), 0), axis=1)[:, t - s :].astype(
                np.int32
            )
        q, key, value = self._qkv(b, s, t, h, k, d, dtype, fused)
        for array in (q, key, value):
            array[...] = normal(rng, array.shape, dtype)
        return {
            "q": q,
            "k": key,
            "v": value,
            "do": normal(rng, (b, s, h, d), dtype),
            "scale": d**-0.5,
            "window": shape["window"],
            "first": first,
            "fused": fused,
        }

    def _qkv(self, b: int, s: int, t: int, h: int, k: int, d: int, dtype: Any, fused: bool) -> Any:
        """Return arrays of NaN for q, k and v: three, or views of one (B,T,H+2K,D)."""
        if not fused:
            return tuple(
                np.full(shape, np.nan, dtype) for shape in ((b, s, h, d), (b, t, k, d), (b, t, k, d))
            )
        buffer = np.full((b, t, h + 2 * k, d), np.nan, dtype)
        return buffer[:, :, :h], buffer[:, :, h : h + k], buffer[:, :, h + k :]

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        q = inputs["q"]
        b, s, h, _ = q.shape
        o = with_gap(blank(q)) if inputs["fused"] else blank(q)
        lse = blank_f32(q, (b, h, s))
        window, first = inputs["window"], inputs["first"]
        kernels.attention_forward(
            o, lse, q, inputs["k"], inputs["v"], inputs["scale"], window=window, first=first
        )
        return {"o": o, "lse": lse}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        q, k, v, do = (inputs[name] for name in ("q", "k", "v", "do"))
        (b, s, h, d), (t, heads) = q.shape, k.shape[1:3]
        dq, dk, dv = self._qkv(b, s, t, h, heads, d, q.dtype, inputs["fused"])
        delta = blank(saved["lse"])
        kernels.attention_backward(
            dq,
            dk,
            dv,
            delta,
            do,
            q,
            k,
            v,
            saved["o"],
            saved["lse"],
            inputs["scale"],
            window=inputs["window"],
            first=inputs["first"],
        )
        return {"dq": dq, "dk": dk, "dv": dv, "delta": delta}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        d = inputs["q"].shape[-1]
        return {"o": 1.0, "lse": 1.0, "dq": 1.0, "dk": 1.0, "dv": 1.0, "delta": d**0.5}
