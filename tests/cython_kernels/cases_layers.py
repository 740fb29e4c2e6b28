"""Rows of the table of cases: matrix products, embedding, norms, rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import (
    EVEN,
    FLAG,
    ROWS,
    SIZES,
    Case,
    Inputs,
    Outputs,
    Shape,
    blank,
    blank_f32,
    f32_of,
    normal,
    spread,
    start,
    with_gap,
)
from hypothesis import strategies as st


class Linear(Case):
    name = "linear"
    ops = ("linear_forward", "linear_backward_input", "linear_backward_weight")
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "i": SIZES,
            "o": SIZES,
            "bias": FLAG,
            "residual": st.sampled_from(["none", "other", "in_place"]),
            "accumulate": FLAG,
        }
    )
    examples = (
        {"n": 5, "i": 7, "o": 3, "bias": True, "residual": "other", "accumulate": True},
        {"n": 4, "i": 17, "o": 9, "bias": False, "residual": "none", "accumulate": False},
        {"n": 3, "i": 8, "o": 8, "bias": True, "residual": "in_place", "accumulate": False},
    )
    large = (
        {"n": 131, "i": 301, "o": 133, "bias": True, "residual": "in_place", "accumulate": True},
        {"n": 500, "i": 17, "o": 1100, "bias": False, "residual": "other", "accumulate": False},
        # few rows, which gemm_narrow.h takes, and k of several steps
        {"n": 9, "i": 2301, "o": 203, "bias": True, "residual": "other", "accumulate": True},
        {"n": 37, "i": 4501, "o": 67, "bias": True, "residual": "in_place", "accumulate": True},
    )
    gradients = ("x", "w", "bias")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, i, o = shape["n"], shape["i"], shape["o"]
        inputs = {
            "x": normal(rng, (n, i), dtype),
            "w": normal(rng, (o, i), dtype),
            "bias": normal(rng, o, f32_of(dtype)) if shape["bias"] else None,
            "residual": None if shape["residual"] == "none" else normal(rng, (n, o), dtype),
            "in_place": shape["residual"] == "in_place",
            "dy": normal(rng, (n, o), dtype),
        }
        if shape["accumulate"]:
            inputs["dx_before"] = normal(rng, (n, i), dtype)
            inputs["dw_before"] = normal(rng, (o, i), f32_of(dtype))
            if shape["bias"]:
                inputs["dbias_before"] = normal(rng, o, f32_of(dtype))
        return inputs

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x, w, residual = inputs["x"], inputs["w"], inputs["residual"]
        y = residual.copy() if inputs["in_place"] else blank(x, (len(x), len(w)))
        kernels.linear_forward(y, x, w, inputs["bias"], y if inputs["in_place"] else residual)
        return {"y": y}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        x, dy = inputs["x"], inputs["dy"]
        accumulate = "dx_before" in inputs
        dx, dw = start(inputs, "dx", x), start(inputs, "dw", blank_f32(x, inputs["w"].shape))
        dbias = None if inputs["bias"] is None else start(inputs, "dbias", inputs["bias"])
        kernels.linear_backward_input(dx, dy, inputs["w"], accumulate=accumulate)
        kernels.linear_backward_weight(dw, dbias, dy, x, accumulate=accumulate)
        return {"dx": dx, "dw": dw} | ({} if dbias is None else {"dbias": dbias})

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        (n, i), o = inputs["x"].shape, len(inputs["w"])
        return {"y": i**0.5, "dx": o**0.5, "dw": max(n, 1) ** 0.5, "dbias": max(n, 1) ** 0.5}


class Matmul(Case):
    name = "matmul"
    ops = ("matmul",)
    shapes = st.fixed_dictionaries(
        {
            "m": ROWS,
            "n": SIZES,
            "k": SIZES,
            "transpose_a": FLAG,
            "transpose_b": FLAG,
            "accumulate": FLAG,
        }
    )
    examples = tuple(
        {"m": 5, "n": 7, "k": 11, "transpose_a": a, "transpose_b": b, "accumulate": a != b}
        for a in (False, True)
        for b in (False, True)
    )
    large = (
        {"m": 300, "n": 77, "k": 600, "transpose_a": True, "transpose_b": False, "accumulate": True},
        {"m": 19, "n": 1500, "k": 90, "transpose_a": True, "transpose_b": True, "accumulate": False},
    )
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        m, n, k = shape["m"], shape["n"], shape["k"]
        inputs = {
            "a": normal(rng, (k, m) if shape["transpose_a"] else (m, k), dtype),
            "b": normal(rng, (n, k) if shape["transpose_b"] else (k, n), dtype),
            "transpose_a": shape["transpose_a"],
            "transpose_b": shape["transpose_b"],
        }
        if shape["accumulate"]:
            inputs["out_before"] = normal(rng, (m, n), dtype)
        return inputs

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        a, b, ta, tb = (inputs[name] for name in ("a", "b", "transpose_a", "transpose_b"))
        out = start(inputs, "out", blank(a, (a.shape[1 if ta else 0], b.shape[0 if tb else 1])))
        kernels.matmul(out, a, b, transpose_a=ta, transpose_b=tb, accumulate="out_before" in inputs)
        return {"out": out}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"out": inputs["a"].shape[0 if inputs["transpose_a"] else 1] ** 0.5}


class SymmetricProduct(Case):
    name = "symmetric_product"
    ops = ("symmetric_product",)
    shapes = st.fixed_dictionaries(
        {
            "m": ROWS,
            "k": SIZES,
            "transpose": FLAG,
            "scale": st.sampled_from([1.0, -0.7]),
            "shift": st.sampled_from([0, 3]),
        }
    )
    examples = (
        {"m": 5, "k": 7, "transpose": False, "scale": 0.5, "shift": 0},
        {"m": 19, "k": 3, "transpose": True, "scale": 1.0, "shift": -2},
    )
    large = (
        {"m": 301, "k": 133, "transpose": False, "scale": 0.25, "shift": 1},
        {"m": 419, "k": 1501, "transpose": True, "scale": 1.0, "shift": 0},
        {"m": 333, "k": 19, "transpose": False, "scale": 1.0, "shift": 0},
    )
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        m, k = shape["m"], shape["k"]
        return {
            "x": normal(rng, (k, m) if shape["transpose"] else (m, k), dtype),
            "transpose": shape["transpose"],
            "scale": shape["scale"],
            "shift": shape["shift"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x = inputs["x"]
        m = x.shape[1 if inputs["transpose"] else 0]
        out = blank(x, (m, m))
        kernels.symmetric_product(out, x, inputs["transpose"], scale=inputs["scale"], shift=inputs["shift"])
        assert np.array_equal(out, out.T)
        return {"out": out}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"out": inputs["x"].shape[0 if inputs["transpose"] else 1] ** 0.5}


class Embedding(Case):
    name = "embedding"
    ops = ("embedding_forward", "embedding_backward")
    shapes = st.fixed_dictionaries({"n": ROWS, "v": SIZES, "c": SIZES})
    examples = ({"n": 13, "v": 5, "c": 7}, {"n": 3, "v": 11, "c": 16})
    large = ({"n": 700, "v": 50, "c": 259},)
    gradients = ("table",)
    exact = ("y",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, v, c = shape["n"], shape["v"], shape["c"]
        return {
            "ids": rng.integers(0, v, n, dtype=np.int32),
            "table": normal(rng, (v, c), dtype),
            "dy": normal(rng, (n, c), dtype),
            "dtable_before": normal(rng, (v, c), f32_of(dtype)),
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        y = blank(inputs["dy"])
        kernels.embedding_forward(y, inputs["ids"], inputs["table"])
        return {"y": y}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        dtable = inputs["dtable_before"].copy()
        kernels.embedding_backward(dtable, inputs["dy"], inputs["ids"])
        return {"dtable": dtable}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"dtable": 1.0}


NORM_OUTPUTS = st.sampled_from(
    ["alone", "in x", "beside a residual", "in the residual", "in x, beside a residual"]
)
"""Where a norm writes y, and whether a residual is added."""


def norm_output(shape: Shape, residual: np.ndarray) -> Inputs:
    """What of the inputs says so; nothing for shapes that do not."""
    where = shape.get("y", "alone")
    return (
        {"y_in": where} | ({"residual": residual} if "residual" in where else {}) if where != "alone" else {}
    )


def norm_arrays(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(x, y, residual), copies where y may overwrite one."""

    def copy(array: np.ndarray) -> np.ndarray:
        return array.copy() if array.ndim == 2 else with_gap(array)

    where = inputs.get("y_in", "alone")
    x, residual = copy(inputs["x"]), copy(inputs["residual"]) if "residual" in where else None
    if where.startswith("in x"):
        return x, x, residual
    y = residual if where == "in the residual" else copy(blank(x))
    assert y is not None
    return x, y, residual


class RmsNorm(Case):
    """Over hidden states (N,C), and over heads (N,H,D) that are a view of a wider buffer."""

    name = "rms_norm"
    ops = ("rms_norm_forward", "rms_norm_backward")
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "heads": st.sampled_from([0, 0, 1, 3]),
            "c": SIZES,
            "offset": st.sampled_from([0.0, 1.0]),
            "mode": st.sampled_from(["plain", "accumulate", "in_place", "in_x"]),
            "y": NORM_OUTPUTS,
        }
    )
    examples = (
        {"n": 5, "heads": 0, "c": 17, "mode": "accumulate", "offset": 0.0},
        {"n": 3, "heads": 2, "c": 8, "mode": "in_place"},
        {"n": 3, "heads": 0, "c": 1, "mode": "plain"},
        {"n": 4, "heads": 2, "c": 19, "mode": "accumulate", "offset": 1.0},
    )
    large = (
        {"n": 300, "heads": 0, "c": 515, "mode": "accumulate"},
        {"n": 150, "heads": 5, "c": 129, "mode": "in_place", "offset": 1.0},
    )
    gradients = ("x", "w")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, heads, c = shape["n"], shape["heads"], shape["c"]
        full = (n, heads, c) if heads else (n, c)
        x, dy = spread(rng, full, dtype), normal(rng, full, dtype)
        inputs = {
            "x": with_gap(x) if heads else x,
            "w": normal(rng, c, f32_of(dtype)),
            "eps": 1e-2,  # large, so that it shows
            "dy": with_gap(dy) if heads else dy,
            "in_place": shape["mode"] == "in_place",
            "dw_before": normal(rng, c, f32_of(dtype)),
        }
        if shape["mode"] == "in_x":
            inputs["in_x"] = True
        if shape["mode"] == "accumulate":
            inputs["dx_before"] = normal(rng, full, dtype)
        if shape.get("offset"):
            inputs["offset"] = shape["offset"]
        residual = normal(rng, full, dtype)
        return inputs | norm_output(shape, with_gap(residual) if heads else residual)

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x, y, residual = norm_arrays(inputs)
        rstd = blank_f32(x, x.shape[:-1])
        offset = inputs.get("offset", 0.0)
        kernels.rms_norm_forward(y, rstd, x, inputs["w"], inputs["eps"], residual, offset=offset)
        return {"y": y, "rstd": rstd}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        x, dy = inputs["x"], inputs["dy"]
        copied = dy.copy() if x.ndim == 2 else with_gap(dy)
        dx = copied if inputs["in_place"] else start(inputs, "dx", x)
        if "in_x" in inputs:
            dx = x = x.copy() if x.ndim == 2 else with_gap(x)
        dw = inputs["dw_before"].copy()
        options = {"accumulate": "dx_before" in inputs, "offset": inputs.get("offset", 0.0)}
        kernels.rms_norm_backward(dx, dw, copied, x, inputs["w"], saved["rstd"], **options)
        return {"dx": dx, "dw": dw}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1.0, "dx": 1.0, "dw": max(inputs["dy"][..., 0].size, 1) ** 0.5}


class LayerNorm(Case):
    name = "layer_norm"
    ops = ("layer_norm_forward", "layer_norm_backward")
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "c": SIZES,
            "mode": st.sampled_from(["plain", "accumulate", "in_place", "in_x"]),
            "y": NORM_OUTPUTS,
        }
    )
    examples = (
        {"n": 5, "c": 17, "mode": "accumulate"},
        {"n": 3, "c": 8, "mode": "in_place"},
        {"n": 3, "c": 2, "mode": "plain"},
    )
    large = ({"n": 300, "c": 515, "mode": "in_place"},)
    gradients = ("x", "w", "b")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, c, f32 = shape["n"], shape["c"], f32_of(dtype)
        inputs = {
            "x": spread(rng, (n, c), dtype),
            "w": normal(rng, c, f32),
            "b": normal(rng, c, f32),
            "eps": 1e-2,  # large, so that it shows
            "dy": normal(rng, (n, c), dtype),
            "in_place": shape["mode"] == "in_place",
            "dw_before": normal(rng, c, f32),
            "db_before": normal(rng, c, f32),
        }
        if shape["mode"] == "in_x":
            inputs["in_x"] = True
        if shape["mode"] == "accumulate":
            inputs["dx_before"] = normal(rng, (n, c), dtype)
        return inputs | norm_output(shape, normal(rng, (n, c), dtype))

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x, y, residual = norm_arrays(inputs)
        mean, rstd = blank_f32(x, len(x)), blank_f32(x, len(x))
        kernels.layer_norm_forward(y, mean, rstd, x, inputs["w"], inputs["b"], inputs["eps"], residual)
        return {"y": y, "mean": mean, "rstd": rstd}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        x, dy = inputs["x"], inputs["dy"].copy()
        dx = dy if inputs["in_place"] else start(inputs, "dx", x)
        if "in_x" in inputs:
            dx = x = x.copy()
        dw, db = inputs["dw_before"].copy(), inputs["db_before"].copy()
        mean, rstd, accumulate = saved["mean"], saved["rstd"], "dx_before" in inputs
        kernels.layer_norm_backward(dx, dw, db, dy, x, inputs["w"], mean, rstd, accumulate=accumulate)
        return {"dx": dx, "dw": dw, "db": db}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        n, c = inputs["x"].shape
        # One value has no variance: rstd is 1/sqrt(eps), and multiplies both terms of x - mean.
        term = 2.0 * inputs["eps"] ** -0.5 if c == 1 else 1.0
        rows = max(n, 1) ** 0.5
        return {"y": term, "mean": 1.0, "dx": term, "dw": rows * term, "db": rows}


class Rope(Case):
    name = "rope"
    ops = ("rope_forward", "rope_backward")
    shapes = st.fixed_dictionaries(
        {"n": ROWS, "h": st.sampled_from([1, 2, 5]), "d": EVEN, "wide": FLAG, "in_place": FLAG}
    )
    examples = (
        {"n": 5, "h": 2, "d": 6, "wide": True, "in_place": True},
        {"n": 3, "h": 1, "d": 16, "wide": False, "in_place": False},
    )
    large = ({"n": 200, "h": 7, "d": 66, "wide": True, "in_place": True},)
    gradients = ("x",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, h, d = shape["n"], shape["h"], shape["d"]
        angles = rng.uniform(-10.0, 10.0, (7, d // 2))
        x, dy = normal(rng, (n, h, d), dtype), normal(rng, (n, h, d), dtype)
        return {
            "x": with_gap(x) if shape["wide"] else x,
            "cos": np.cos(angles).astype(f32_of(dtype)),
            "sin": np.sin(angles).astype(f32_of(dtype)),
            "positions": rng.integers(0, 7, n, dtype=np.int32),
            "dy": with_gap(dy) if shape["wide"] else dy,
            "wide": shape["wide"],
            "in_place": shape["in_place"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        return {"y": self._rotate(kernels.rope_forward, inputs, inputs["x"])}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        return {"dx": self._rotate(kernels.rope_backward, inputs, inputs["dy"])}

    def _rotate(self, op: Any, inputs: Inputs, x: Any) -> Any:
        x = with_gap(x) if inputs["wide"] else x.copy()
        out = x if inputs["in_place"] else with_gap(blank(x)) if inputs["wide"] else blank(x)
        op(out, x, inputs["cos"], inputs["sin"], inputs["positions"])
        return out

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1.0, "dx": 1.0}
