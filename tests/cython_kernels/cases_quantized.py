"""Rows of the table of cases: products with quantized weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import FLAG, ROWS, SIZES, Case, Inputs, Outputs, Shape, blank, f32_of, normal, start
from hypothesis import strategies as st

from cktrain import cython_kernels
from cktrain.cython_kernels.block_formats import BLOCK_FORMATS, NOT_INTEGERS

SCALES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q4_k": [0, 2], "q6_k": [208]}
"""Where a block's fp16 numbers stand."""


def random_blocks(rng: np.random.Generator, name: str, rows: int, width: int) -> np.ndarray:
    """(rows, W) uint8 of any numbers, with scales that are finite and of either sign."""
    found = BLOCK_FORMATS[name]
    if name in ("bf16", "f16"):
        values = rng.standard_normal((rows, width))
        if name == "f16":
            return values.astype(np.float16).view(np.uint8).reshape(rows, -1)
        return (
            (values.astype(np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(np.uint8)
            .reshape(rows, -1)
        )
    blocks = rng.integers(0, 256, (rows * (width // found.values), found.bytes), np.uint8)
    for at in SCALES.get(name, []):
        blocks[:, at : at + 2] = rng.normal(0, 0.02, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    if name == "mxfp4":
        blocks[:, 0] = rng.integers(118, 129, len(blocks))
    if name == "nf4":
        blocks[:, :4] = rng.uniform(0.1, 2, (len(blocks), 1)).astype(np.float32).view(np.uint8)
    return blocks.reshape(rows, -1)


def values_of(w: np.ndarray, name: str, width: int) -> np.ndarray:
    """w (O, I) fp32, by the reference."""
    values = np.empty((len(w), width), np.float32)
    cython_kernels.load("reference").dequantize(values, w, name)
    return values


class Quantized(Case):
    name = "quantized"
    ops = ("quantized_forward", "quantized_forward_q8", "quantized_backward_input", "dequantize")
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "format": st.sampled_from(sorted(BLOCK_FORMATS)),
            "blocks": st.sampled_from([1, 2, 3, 5]),
            "o": SIZES,
            "bias": FLAG,
            "residual": st.sampled_from(["none", "other", "in_place"]),
            "accumulate": FLAG,
        }
    )
    examples = tuple(
        {
            "n": 2 + 8 * (index % 2),
            "format": name,
            "blocks": 1 + (index < 4),
            "o": 3 + index % 2,
            "bias": index % 3 > 0,
            "residual": ("other", "none", "in_place")[index % 3],
            "accumulate": index % 2 > 0,
        }
        for index, name in enumerate(BLOCK_FORMATS)
    )
    large = (
        {"n": 131, "format": "q8_0", "blocks": 9, "o": 133, "residual": "in_place"},
        {"n": 1, "format": "q4_0", "blocks": 11, "o": 3001, "residual": "other"},
        {"n": 7, "format": "q6_k", "blocks": 3, "o": 701},
        {"n": 2, "format": "q4_1", "blocks": 31, "o": 1203},
        # k of several steps in both directions
        {"n": 37, "format": "q4_k", "blocks": 9, "o": 2301},
        {"n": 9, "format": "nf4", "blocks": 70, "o": 67},
    )
    gradients = ("x",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, o, name = shape["n"], shape["o"], shape["format"]
        i = shape["blocks"] * BLOCK_FORMATS[name].values
        inputs = {
            "x": normal(rng, (n, i), dtype),
            "w": random_blocks(rng, name, o, i),
            "format": name,
            "ids": rng.integers(0, o, n, np.int32),
            "bias": normal(rng, o, f32_of(dtype)) if shape["bias"] else None,
            "residual": None if shape["residual"] == "none" else normal(rng, (n, o), dtype),
            "in_place": shape["residual"] == "in_place",
            "dy": normal(rng, (n, o), dtype),
        }
        if shape["accumulate"]:
            inputs["dx_before"] = normal(rng, (n, i), dtype)
        return inputs

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        x, w, name, residual = inputs["x"], inputs["w"], inputs["format"], inputs["residual"]
        y = residual.copy() if inputs["in_place"] else blank(x, (len(x), len(w)))
        kernels.quantized_forward(y, x, w, name, inputs["bias"], y if inputs["in_place"] else residual)
        values, rows = blank(x, (len(w), x.shape[1])), blank(x)
        kernels.dequantize(values, w, name)
        kernels.dequantize(rows, w, name, inputs["ids"])
        outputs = {"y": y, "values": values, "rows": rows}
        if name not in NOT_INTEGERS:
            outputs["y8"] = residual.copy() if inputs["in_place"] else blank(y)
            kernels.quantized_forward_q8(
                outputs["y8"], x, w, name, inputs["bias"], outputs["y8"] if inputs["in_place"] else residual
            )
        return outputs

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        dx = start(inputs, "dx", inputs["x"])
        kernels.quantized_backward_input(
            dx, inputs["dy"], inputs["w"], inputs["format"], accumulate="dx_before" in inputs
        )
        return {"dx": dx}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        values = values_of(inputs["w"], inputs["format"], inputs["x"].shape[1])
        of_a_row = float((values**2).sum(axis=1).max() ** 0.5)
        of_a_column = float((values**2).sum(axis=0).max() ** 0.5)
        return {"y": of_a_row, "y8": of_a_row, "dx": of_a_column}

    def tolerance(self, name: str, dtype: Any) -> float:
        """As `Case.tolerance`; values are those of the specification to the bit, or rounded to bf16 once."""
        if name in ("values", "rows"):
            return 2.0**-8 if np.dtype(dtype).name == "bfloat16" else 0.0
        return super().tolerance(name, dtype)
