"""Rows of the table of cases: loss, optimizers, the sum behind the gradient norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import FLAG, ROWS, SIZES, Case, Inputs, Outputs, Shape, blank, blank_f32, f32_of, normal
from hypothesis import strategies as st
from ml_dtypes import bfloat16


class CrossEntropy(Case):
    """Over a slice of a vocabulary; `wide` logits are f32 whatever the type of dlogits, which may lie in their rows.

    `rest` f32 (N) is the log-sum-exp of the logits of the other slices. "loss" is composed here: lse -
    target_logit, 0 where the target is ignored. The loss of a target of another slice lacks that target's logit,
    which its owner adds.
    """

    name = "cross_entropy"
    ops = ("cross_entropy_forward", "cross_entropy_backward")
    shapes = st.fixed_dictionaries(
        {
            "n": ROWS,
            "v": SIZES,
            "before": st.sampled_from([0, 0, 1, 5, 16]),
            "after": st.sampled_from([0, 0, 1, 7]),
            "ignored": st.sampled_from(["nowhere", "somewhere", "everywhere"]),
            "ignore_index": st.sampled_from([-100, 0]),
            "in_place": FLAG,
            "wide": FLAG,
        }
    )
    examples = (
        {
            "n": 7,
            "v": 13,
            "before": 0,
            "after": 0,
            "ignored": "somewhere",
            "ignore_index": -100,
            "in_place": True,
            "wide": False,
        },
        {
            "n": 9,
            "v": 5,
            "before": 4,
            "after": 3,
            "ignored": "somewhere",
            "ignore_index": 0,
            "in_place": False,
            "wide": True,
        },
        {
            "n": 3,
            "v": 5,
            "before": 0,
            "after": 0,
            "ignored": "everywhere",
            "ignore_index": -100,
            "in_place": False,
            "wide": True,
        },
        {
            "n": 5,
            "v": 17,
            "before": 0,
            "after": 0,
            "ignored": "nowhere",
            "ignore_index": -100,
            "in_place": False,
            "wide": True,
        },
        {
            "n": 6,
            "v": 75,
            "before": 2,
            "after": 0,
            "ignored": "somewhere",
            "ignore_index": -100,
            "in_place": True,
            "wide": True,
        },
    )
    large = ({"n": 37, "v": 5003, "before": 16, "after": 5, "ignored": "somewhere"},)
    outputs = ("loss",)
    gradients = ("logits",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, v, before, after = (shape[name] for name in ("n", "v", "before", "after"))
        full = (3.0 * rng.standard_normal((n, before + v + after))).astype(dtype)
        if shape["wide"]:
            full = full.astype(f32_of(dtype))
        others = np.delete(full, np.s_[before : before + v], axis=1).astype(np.float64)
        rest = np.logaddexp.reduce(others, axis=1) if before + after else np.full(n, -np.inf)
        targets = rng.integers(0, before + v + after, n, dtype=np.int32)
        share = {"nowhere": 0.0, "somewhere": 0.4, "everywhere": 1.0}[shape["ignored"]]
        targets[rng.random(n) < share] = shape["ignore_index"]
        return {
            "logits": full[:, before : before + v],
            "targets": targets,
            "vocab_start": before,
            "ignore_index": shape["ignore_index"],
            "rest": rest.astype(f32_of(dtype)),
            "dloss": np.ones(n, f32_of(dtype)),
            "in_place": shape["in_place"],
            "real": np.zeros(0, dtype),
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        logits, targets = inputs["logits"], inputs["targets"]
        row_max, row_sum, target_logit = (blank_f32(logits, len(logits)) for _ in range(3))
        start = inputs["vocab_start"]
        kernels.cross_entropy_forward(row_max, row_sum, target_logit, logits, targets, vocab_start=start)
        lse = np.logaddexp(row_max + np.log(row_sum), inputs["rest"])
        loss = np.where(targets == inputs["ignore_index"], 0.0, lse - target_logit).astype(lse.dtype)
        return {
            "row_max": row_max,
            "row_sum": row_sum,
            "target_logit": target_logit,
            "lse": lse,
            "loss": loss,
        }

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        n, v = inputs["logits"].shape
        wide = np.full((n, v + 3), np.nan, inputs["logits"].dtype)
        wide[:, :v] = inputs["logits"]
        real = inputs["real"]  # narrower than wide logits, a row of dlogits fills the first half of theirs
        dlogits = wide.view(real.dtype)[:, :v] if inputs["in_place"] else blank(real, (n, v))
        kernels.cross_entropy_backward(
            dlogits,
            wide[:, :v],
            saved["lse"],
            inputs["targets"],
            ignore_index=inputs["ignore_index"],
            vocab_start=inputs["vocab_start"],
            softcap=inputs.get("cap", 0.0),
        )
        return {"dlogits": dlogits}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"row_max": 1.0, "target_logit": 1.0, "lse": 1.0, "loss": 1.0, "dlogits": 1.0}


class CappedCrossEntropy(CrossEntropy):
    """The same for logits that `softcap` made of x, whose gradient is asked for. They are f32, as the head has them."""

    name = "capped_cross_entropy"
    ops = ("softcap", "cross_entropy_forward", "cross_entropy_backward")
    gradients = ("x",)

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        inputs = super().draw(rng, {**shape, "wide": True}, dtype)
        return inputs | {"x": inputs.pop("logits"), "cap": 4.0}

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        logits = blank(inputs["x"])
        kernels.softcap(logits, inputs["x"], inputs["cap"])
        return super().forward(kernels, inputs | {"logits": logits}) | {"logits": logits}

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        return {"dx": super().backward(kernels, inputs | {"logits": saved["logits"]}, saved)["dlogits"]}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"row_max": 1.0, "target_logit": 1.0, "lse": 1.0, "loss": 1.0, "dx": 1.0, "logits": 1.0}


class AdamW(Case):
    """Several steps from zero moments; the learning rate is large so that an error in an update shows.

    `fused`: with the bf16 copy of the parameters.
    """

    name = "adamw"
    ops = ("adamw_step",)
    shapes = st.fixed_dictionaries(
        {"n": st.sampled_from([0, 1, 7, 16, 33, 1000, 4097]), "steps": st.sampled_from([1, 4]), "fused": FLAG}
    )
    examples = ({"n": 33, "steps": 5, "fused": False}, {"n": 33, "steps": 5, "fused": True})
    large = ({"n": 100_003},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        f32 = f32_of(dtype)
        return {
            "param": normal(rng, shape["n"], f32),
            "grads": normal(rng, (shape["steps"], shape["n"]), f32),
            "lr": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-3,  # large, so that it shows
            "weight_decay": 0.3,
            "grad_scale": 0.25,
            "fused": shape["fused"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        param = inputs["param"].copy()
        m, v = np.zeros_like(param), np.zeros_like(param)
        numbers = [inputs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")]
        results = {"param": param, "m": m, "v": v}
        for step, grad in enumerate(inputs["grads"], start=1):
            options: dict[str, Any] = {}
            if inputs["fused"]:
                results["copy"] = np.full(param.shape, np.nan, bfloat16)
                options = {"copy": results["copy"]}
            kernels.adamw_step(param, m, v, grad, *numbers, step, inputs["grad_scale"], **options)
        if inputs["fused"]:  # bit for bit what a cast of the new parameters gives
            assert np.array_equal(results["copy"], param.astype(bfloat16))
        return results

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"param": 1.0, "m": 0.25}

    def tolerance(self, name: str, dtype: Any) -> float:
        """The copy is the parameter rounded to bf16: half a unit of its last place on either side."""
        return 2.0**-8 if name == "copy" else super().tolerance(name, dtype)


class AdamW8bit(Case):
    """One step from moments of all bytes: what is rounded after it is compared as it stands.

    `fused`: with the bf16 copy of the parameters.
    """

    name = "adamw_8bit"
    ops = ("adamw_8bit_step",)
    shapes = st.fixed_dictionaries(
        {
            "n": st.sampled_from([0, 1, 7, 16, 255, 256, 257, 1000, 4097]),
            "step": st.sampled_from([1, 40]),
            "fused": FLAG,
        }
    )
    examples = ({"n": 600, "step": 3, "fused": False}, {"n": 600, "step": 3, "fused": True})
    large = ({"n": 100_003},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        n, f32 = shape["n"], f32_of(dtype)
        blocks = -(-n // 256)
        return {
            "param": normal(rng, n, f32),
            "m": rng.integers(0, 256, n, dtype=np.uint8),
            "m_scale": normal(rng, blocks, f32),  # of either sign
            "v": rng.integers(0, 256, n, dtype=np.uint8),
            "v_scale": np.square(normal(rng, blocks, f32)),
            "grad": normal(rng, n, f32),
            "lr": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-3,  # large, so that it shows
            "weight_decay": 0.3,
            "step": shape["step"],
            "grad_scale": 0.25,
            "fused": shape["fused"],
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        results = {name: inputs[name].copy() for name in ("param", "m", "m_scale", "v", "v_scale")}
        numbers = [
            inputs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "step", "grad_scale")
        ]
        options: dict[str, Any] = {}
        if inputs["fused"]:
            options = {"copy": np.full(results["param"].shape, np.nan, bfloat16)}
        kernels.adamw_8bit_step(*results.values(), inputs["grad"], *numbers, **options)
        if inputs["fused"]:
            assert np.array_equal(options["copy"], results["param"].astype(bfloat16))
        return {**results, **options}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"param": 1.0}

    def error(self, name: str, got: Any, want: Any, inputs: Inputs) -> float:
        """Of bytes: how many of a thousand are the neighbour of the reference's byte; none may be another one."""
        if name not in ("m", "v"):
            return super().error(name, got, want, inputs)
        apart = np.abs(got.astype(int) - want.astype(int))
        return float("inf") if (apart > 1).any() else float(apart.sum()) / max(apart.size, 1000)

    def tolerance(self, name: str, dtype: Any) -> float:
        """A number that lies within a rounding, 1e-7, of the middle between two of the map, whose distance is 1e-2 of it and
        less, may become either: two of a thousand are ample. The copy is rounded to bf16."""
        if name in ("m", "v"):
            return 0.002
        return (
            2.0**-8
            if name == "copy"
            else super().tolerance(name, np.float64 if dtype == np.float64 else np.float32)
        )


class Sgd(Case):
    """Several steps from a zero buffer."""

    name = "sgd"
    ops = ("sgd_step",)
    shapes = st.fixed_dictionaries(
        {
            "n": st.sampled_from([0, 1, 7, 16, 33, 1000, 4097]),
            "steps": st.sampled_from([1, 4]),
            "momentum": st.sampled_from([0.0, 0.9]),
            "nesterov": FLAG,
        }
    )
    examples = (
        {"n": 33, "steps": 5, "momentum": 0.9, "nesterov": True},
        {"n": 33, "steps": 5, "momentum": 0.9, "nesterov": False},
        {"n": 33, "steps": 2, "momentum": 0.0, "nesterov": False},
    )
    large = ({"n": 100_003},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        f32 = f32_of(dtype)
        return {
            "param": normal(rng, shape["n"], f32),
            "grads": normal(rng, (shape["steps"], shape["n"]), f32),
            "lr": 0.1,
            "momentum": shape["momentum"],
            "weight_decay": 0.3,
            "nesterov": shape["nesterov"] and shape["momentum"] > 0.0,
            "grad_scale": 0.25,
        }

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        param = inputs["param"].copy()
        buffer = np.zeros_like(param)
        numbers = [inputs[name] for name in ("lr", "momentum", "weight_decay", "nesterov", "grad_scale")]
        for grad in inputs["grads"]:
            kernels.sgd_step(param, buffer, grad, *numbers)
        return {"param": param, "momentum_buffer": buffer}

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        return {"param": 1.0, "momentum_buffer": 1.0}


class SumOfSquares(Case):
    name = "sum_of_squares"
    ops = ("sum_of_squares",)
    shapes = st.fixed_dictionaries({"n": st.sampled_from([0, 1, 7, 16, 33, 1000, 100_003])})
    examples = ({"n": 0}, {"n": 1009})
    large = ({"n": 100_003},)
    outputs = ()

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        return {"x": normal(rng, shape["n"], dtype)}

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        return {"sum": np.float64(kernels.sum_of_squares(inputs["x"]))}

    def tolerance(self, name: str, dtype: Any) -> float:
        """The sum is carried in fp64 whatever the type of x, whose squares fp64 holds exactly."""
        return 1e-12
