"""Rows of the table of cases: attention with what some families add to its scores, and the merging of its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import FLAG, Case, Inputs, Outputs, Shape, blank, blank_f32, f32_of, normal, relative_error, start
from hypothesis import strategies as st

BIASES = {
    "": None,
    "whole": (True, True, True),
    "heads": (False, True, True),
    "slopes": (False, True, False),
    "pairs": (False, False, True),
    "keys": (True, False, False),
}
"""Which of B, H, S a bias has an axis for; the others are 1."""


def error_of_statistic(got: Any, want: Any) -> float:
    """The absolute error (the relative one of what was exponentiated); infinities must be where they are wanted."""
    if not np.array_equal(np.isneginf(got), np.isneginf(want)):
        return float("inf")
    seen = ~np.isneginf(want)
    return relative_error(got[seen], want[seen], 1.0)


class AttentionOptions(Case):
    """Causal or not, S and T apart, ranges of keys (some empty), any scale, softcap, sinks, a bias in each shape."""

    name = "attention_options"
    ops = ("attention_forward", "attention_backward")
    shapes = st.fixed_dictionaries(
        {
            "b": st.sampled_from([0, 1, 2]),
            "s": st.sampled_from([0, 1, 2, 7, 33, 65]),
            "t": st.sampled_from([0, 1, 2, 5, 33, 64, 70, 130]),
            "k": st.sampled_from([1, 2]),
            "group": st.sampled_from([1, 3, 4]),
            "d": st.sampled_from([1, 2, 7, 16, 33, 64]),
            "causal": FLAG,
            "window": st.sampled_from([0, 0, 1, 3, 16]),
            "ranges": FLAG,
            "softcap": st.sampled_from([0.0, 0.0, 0.5, 50.0]),
            "sinks": FLAG,
            "bias": st.sampled_from(list(BIASES)),
            "hidden": FLAG,
            "scale": st.sampled_from([1.0, 1.0, 0.0, -0.7]),
        }
    )
    examples = tuple(
        {
            "b": b,
            "s": s,
            "t": t,
            "k": k,
            "group": group,
            "d": 4,
            "causal": causal,
            "window": window,
            "ranges": ranges,
        }
        | {"softcap": softcap, "sinks": sinks, "bias": bias, "hidden": hidden, "scale": scale}
        for b, s, t, k, group, causal, window, ranges, softcap, sinks, bias, hidden, scale in (
            (2, 5, 5, 2, 2, True, 0, False, 0.5, True, "heads", False, 1.0),
            (2, 3, 6, 1, 2, False, 0, True, 0.0, True, "", False, 1.0),
            (1, 6, 3, 2, 1, False, 2, False, 0.0, False, "whole", True, 1.0),
            (2, 4, 4, 1, 3, True, 0, True, 0.0, False, "slopes", False, 0.0),
            (2, 2, 5, 2, 1, False, 3, False, 2.0, False, "keys", True, -0.7),
            (1, 3, 4, 2, 2, True, 2, True, 0.0, True, "pairs", True, 1.0),
        )
    )
    large = tuple(
        {"b": b, "s": s, "t": t, "k": k, "group": 3, "d": d, "causal": causal, "window": window}
        | {"ranges": ranges, "softcap": softcap, "sinks": sinks, "bias": bias, "hidden": False, "scale": 1.0}
        for b, k, s, t, d, causal, window, ranges, softcap, sinks, bias in (
            (2, 1, 100, 333, 33, False, 0, True, 0.0, False, ""),
            (2, 2, 130, 227, 16, True, 50, False, 2.0, True, ""),
            (2, 2, 200, 150, 24, False, 0, False, 0.0, True, "heads"),
            (3, 1, 97, 300, 16, True, 0, True, 1.0, False, "pairs"),
        )
    )
    outputs = ("o",)
    gradients = ("q", "k", "v", "sinks", "bias")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        b, s, d = shape["b"], shape["s"], shape["d"]
        t = max(s, shape["t"]) if shape["causal"] else shape["t"]
        h = shape["k"] * shape["group"]
        f32 = f32_of(dtype)
        inputs: Inputs = {
            "q": normal(rng, (b, s, h, d), dtype),
            "k": normal(rng, (b, t, shape["k"], d), dtype),
            "v": normal(rng, (b, t, shape["k"], d), dtype),
            "do": normal(rng, (b, s, h, d), dtype),
            "scale": shape["scale"] * d**-0.5,
            "window": shape["window"],
            "causal": shape["causal"],
            "softcap": shape["softcap"],
            "first": None,
            "end": None,
            "sinks": None,
            "bias": None,
        }
        if shape["ranges"]:
            # Some rows see nothing, since their range ends where it begins, or before.
            inputs["first"] = rng.integers(0, t // 2 + 1, (b, s), np.int32)
            inputs["end"] = rng.integers(0, t + 1, (b, s), np.int32)
        if shape["sinks"]:
            inputs["sinks"] = normal(rng, (h,), f32)
            inputs["dsinks_before"] = normal(rng, (h,), f32)
        has = BIASES[shape["bias"]]
        if has is not None:
            extents = (*(n if own else 1 for n, own in zip((b, h, s), has, strict=True)), t)
            inputs["bias"] = normal(rng, extents, f32)
            inputs["dbias_before"] = normal(rng, extents, f32)
            if shape["hidden"] and inputs["bias"].size:
                inputs["bias"][rng.random(extents) < 0.3] = -np.inf
                inputs["bias"][0, 0, 0] = -np.inf  # a whole row
        return inputs

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        q = inputs["q"]
        b, s, h, _ = q.shape
        o, lse = blank(q), blank_f32(q, (b, h, s))
        kernels.attention_forward(
            o, lse, q, inputs["k"], inputs["v"], inputs["scale"], **self._options(inputs)
        )
        return {"o": o, "lse": lse}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        q, k, v, do = (inputs[name] for name in ("q", "k", "v", "do"))
        results = {"dq": blank(q), "dk": blank(k), "dv": blank(v), "delta": blank(saved["lse"])}
        added = {
            f"d{name}": start(inputs, f"d{name}", inputs[name])
            for name in ("sinks", "bias")
            if inputs[name] is not None
        }
        kernels.attention_backward(
            *results.values(),
            do,
            q,
            k,
            v,
            saved["o"],
            saved["lse"],
            inputs["scale"],
            **self._options(inputs),
            **added,
        )
        return results | added

    def _options(self, inputs: Inputs) -> dict[str, Any]:
        return {
            name: inputs[name] for name in ("window", "first", "end", "causal", "softcap", "sinks", "bias")
        }

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        """A softmax over one key has gradients of 0: the terms are products of D; dsinks sums over the rows."""
        (b, s, _, d) = inputs["q"].shape
        root = float(d) ** 0.5
        return {"o": 1.0, "dq": 1.0, "dk": 1.0, "dv": 1.0, "delta": root, "dbias": root} | {
            "dsinks": root * max(1.0, b * s) ** 0.5
        }

    def error(self, name: str, got: Any, want: Any, inputs: Inputs) -> float:
        if name == "lse":
            return error_of_statistic(got, want)
        return super().error(name, got, want, inputs)


class AttentionMerge(Case):
    """Two parts, either of which may have seen nothing; the sum in fp32 beside parts in bf16, or all alike."""

    name = "attention_merge"
    ops = ("attention_merge",)
    outputs = ()
    shapes = st.fixed_dictionaries(
        {
            "b": st.sampled_from([0, 1, 2]),
            "s": st.sampled_from([0, 1, 3, 33]),
            "h": st.sampled_from([1, 3, 4]),
            "d": st.sampled_from([1, 7, 16, 33, 64]),
            "wide": FLAG,
        }
    )
    examples = (
        {"b": 2, "s": 5, "h": 2, "d": 6, "wide": False},
        {"b": 1, "s": 4, "h": 3, "d": 5, "wide": True},
    )
    large = (
        {"b": 2, "s": 333, "h": 5, "d": 33, "wide": False},
        {"b": 2, "s": 200, "h": 8, "d": 64, "wide": True},
    )

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        b, s, h, d = (shape[name] for name in ("b", "s", "h", "d"))
        f32 = f32_of(dtype)
        inputs: Inputs = {
            "o_before": normal(rng, (b, s, h, d), f32 if shape["wide"] else dtype),
            "lse_before": normal(rng, (b, h, s), f32) * 3.0,
            "part": normal(rng, (b, s, h, d), dtype),
            "part_lse": normal(rng, (b, h, s), f32) * 3.0,
        }
        for o, lse in (("o_before", "lse_before"), ("part", "part_lse")):
            unseen = rng.random((b, h, s)) < 0.3
            inputs[lse][unseen] = -np.inf
            inputs[o][unseen.transpose(0, 2, 1)] = 0.0
        return inputs

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        o, lse = inputs["o_before"].copy(), inputs["lse_before"].copy()
        kernels.attention_merge(o, lse, inputs["part"], inputs["part_lse"])
        return {"o": o, "lse": lse}

    def error(self, name: str, got: Any, want: Any, inputs: Inputs) -> float:
        if name == "lse":
            return error_of_statistic(got, want)
        return super().error(name, got, want, inputs)

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"o": 1.0}
