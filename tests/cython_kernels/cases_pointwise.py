"""Rows of the table of cases: the ops that work element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import FLAG, ROWS, SIZES, Case, Inputs, Outputs, Shape, blank, normal, start
from hypothesis import strategies as st
from ml_dtypes import bfloat16


class Gated(Case):
    """SwiGLU and GEGLU, which differ in what the gate goes through."""

    shapes = st.fixed_dictionaries({"n": ROWS, "i": SIZES, "in_place": FLAG, "recompute": FLAG})
    examples = (
        {"n": 5, "i": 7, "in_place": True, "recompute": True},
        {"n": 3, "i": 16, "in_place": False, "recompute": False},
    )
    large = ({"n": 77, "i": 700, "in_place": False, "recompute": True},)
    gradients = ("gate_up",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, i = shape["n"], shape["i"]
        return {
            "gate_up": (3.0 * rng.standard_normal((n, 2 * i))).astype(dtype),
            "dy": normal(rng, (n, i), dtype),
            "in_place": shape["in_place"],
            "recompute": shape["recompute"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        y = blank(inputs["dy"])
        getattr(kernels, self.ops[0])(y, inputs["gate_up"])
        return {"y": y}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        gate_up, dy = inputs["gate_up"].copy(), inputs["dy"].copy()
        dgate_up = gate_up if inputs["in_place"] else blank(gate_up)
        backward = getattr(kernels, self.ops[1])
        if not inputs["recompute"]:
            backward(dgate_up, dy, gate_up)
            return {"dgate_up": dgate_up}
        y = dy if inputs["in_place"] else blank(dy)
        backward(dgate_up, dy, gate_up, y=y)
        return {"dgate_up": dgate_up, "y_again": y}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1.0, "y_again": 1.0, "dgate_up": 1.0}


class Swiglu(Gated):
    name = "swiglu"
    ops = ("swiglu_forward", "swiglu_backward")


class Geglu(Gated):
    name = "geglu"
    ops = ("geglu_forward", "geglu_backward")


class Gelu(Case):
    name = "gelu"
    ops = ("gelu_forward", "gelu_backward")
    shapes = st.fixed_dictionaries({"n": ROWS, "i": SIZES, "tanh": FLAG, "in_place": FLAG})
    examples = (
        {"n": 5, "i": 17, "tanh": True, "in_place": True},
        {"n": 5, "i": 17, "tanh": False, "in_place": False},
    )
    large = (
        {"n": 77, "i": 700, "tanh": False, "in_place": True},
        {"n": 77, "i": 700, "tanh": True, "in_place": False},
    )
    gradients = ("x",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        full = (shape["n"], shape["i"])
        return {
            "x": (3.0 * rng.standard_normal(full)).astype(dtype),
            "dy": normal(rng, full, dtype),
            "tanh": shape["tanh"],
            "in_place": shape["in_place"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        y = blank(inputs["x"])
        kernels.gelu_forward(y, inputs["x"], inputs["tanh"])
        return {"y": y}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        dy = inputs["dy"].copy()
        dx = dy if inputs["in_place"] else blank(dy)
        kernels.gelu_backward(dx, dy, inputs["x"], inputs["tanh"])
        return {"dx": dx}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1.0, "dx": 1.0}


class Softcap(Case):
    name = "softcap"
    ops = ("softcap",)
    shapes = st.fixed_dictionaries(
        {"n": ROWS, "c": SIZES, "cap": st.sampled_from([0.5, 30.0]), "in_place": FLAG}
    )
    examples = (
        {"n": 5, "c": 17, "cap": 0.5, "in_place": True},
        {"n": 3, "c": 8, "cap": 30.0, "in_place": False},
    )
    large = ({"n": 77, "c": 701, "cap": 3.0, "in_place": False},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        x = (3.0 * rng.standard_normal((shape["n"], shape["c"]))).astype(dtype)
        return {"x": x, "cap": shape["cap"], "in_place": shape["in_place"]}

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x = inputs["x"].copy()
        y = x if inputs["in_place"] else blank(x)
        kernels.softcap(y, x, inputs["cap"])
        return {"y": y}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1e-3}


class Add(Case):
    name = "add"
    ops = ("add",)
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "c": SIZES,
            "out": st.sampled_from(["other", "a", "b"]),
            "alpha": st.sampled_from([1.0, 0.25, -1.3]),
            "twice": FLAG,
        }
    )
    examples = ({"n": 3, "c": 17, "out": "other"}, {"n": 3, "c": 8, "out": "a"}, {"n": 3, "c": 8, "out": "b"})
    large = ({"n": 150, "c": 701, "out": "a"},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        full = (shape["n"], shape["c"])
        inputs = {"a": normal(rng, full, dtype), "b": normal(rng, full, dtype), "out": shape["out"]}
        return inputs | ({"alpha": shape["alpha"], "twice": shape["twice"]} if "alpha" in shape else {})

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        a, b = inputs["a"].copy(), inputs["b"].copy()
        out = {"a": a, "b": b, "other": blank(a)}[inputs["out"]]
        kernels.add(out, b if inputs.get("twice") else a, b, inputs.get("alpha", 1.0))
        return {"out": out}


class Dropout(Case):
    """A mask by row keys and columns, the same for x and for its gradient, which is added or written."""

    name = "dropout"
    ops = ("dropout",)
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "c": SIZES,
            "p": st.sampled_from([0.0, 0.1, 0.5, 0.9]),
            "first_column": st.sampled_from([0, 1, 300, 2**31 - 1]),
            "in_place": FLAG,
            "accumulate": FLAG,
        }
    )
    examples = (
        {"n": 4, "c": 33, "p": 0.5, "first_column": 0, "in_place": False, "accumulate": False},
        {"n": 3, "c": 16, "p": 0.1, "first_column": 7, "in_place": True, "accumulate": True},
    )
    large = ({"n": 150, "c": 701, "p": 0.3, "first_column": 5, "in_place": False, "accumulate": True},)
    gradients = ("x",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        full = (shape["n"], shape["c"])
        inputs = {
            "x": normal(rng, full, dtype),
            "dy": normal(rng, full, dtype),
            "keys": rng.integers(-(2**31), 2**31, shape["n"]).astype(np.int32),
            "p": shape["p"],
            "first_column": shape["first_column"],
            "in_place": shape["in_place"],
        }
        return inputs | ({"dx_before": normal(rng, full, dtype)} if shape["accumulate"] else {})

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x = inputs["x"].copy()
        y = x if inputs["in_place"] else blank(x)
        kernels.dropout(y, x, inputs["keys"], inputs["p"], inputs["first_column"])
        return {"y": y}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        dx = start(inputs, "dx", inputs["dy"])
        kernels.dropout(
            dx, inputs["dy"], inputs["keys"], inputs["p"], inputs["first_column"], "dx_before" in inputs
        )
        return {"dx": dx}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"y": 1.0, "dx": 1.0}


class Cast(Case):
    """fp32 to bf16, back, and a copy; every fourth number lies halfway between two of bf16. Then zero."""

    name = "cast"
    ops = ("cast", "zero")
    shapes = st.fixed_dictionaries({"n": st.sampled_from([0, 1, 7, 16, 33, 1000])})
    examples = ({"n": 257},)
    large = ({"n": 100_003},)
    outputs = ()
    exact = ("narrow", "wide", "copy", "nothing")

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n = shape["n"]
        src = (rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n)).astype(np.float32)
        bits: Any = src.view(np.uint32)
        bits[::4] = bits[::4] & 0xFFFF0000 | 0x8000
        return {"src": src}

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        src = inputs["src"].astype(np.float32)  # whatever `convert` made of it: bf16 has no other partner
        narrow = np.full(src.shape, np.nan, bfloat16)
        wide, copy = blank(src), blank(src)
        kernels.cast(narrow, src)
        kernels.cast(wide, narrow)
        kernels.cast(copy, src)
        nothing = src.copy()
        kernels.zero(nothing)
        return {"narrow": narrow, "wide": wide, "copy": copy, "nothing": nothing}
