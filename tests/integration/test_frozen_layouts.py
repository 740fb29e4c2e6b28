"""With a frozen base every layout gives the losses of one process, and a stage that is frozen computes and keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.hf.folder import save_folder
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

pytestmark = pytest.mark.mpi

STEPS = 6
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 61,
    "max_position_embeddings": 8,
    "initializer_range": 0.2,
}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 24, "qk_norm": True, "attention_bias": True}
GPT2 = {**SIZES, "family": "gpt2"}

# name -> (model, what is frozen): the lowest layers; a tied table; parts of layers, of which a norm and biases train.
RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lowest": (LLAMA, ["model.embed_tokens", "model.layers.0", "*.layers.2.*norm"]),
    "tied": ({**LLAMA, "tie_word_embeddings": True}, ["model.embed_tokens", "*_proj.weight"]),
    "highest": (LLAMA, ["lm_head", "model.norm", "model.layers.2", "*.k_norm"]),
    "gpt2": (GPT2, ["transformer.wpe", "*.h.0", "*.h.1.*.weight", "*.h.2.mlp.c_proj.bias"]),
}
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "data 2": {"data": 2},
    "data 2, zero 0": {"data": 2, "zero": 0},
    "tensor 4": {"tensor": 4},
    "pipeline 3": {"pipeline": 3},
    "data 2 x pipeline 2 x tensor 2": {"data": 2, "pipeline": 2, "tensor": 2},
}


def pretrained(folder: Path, model: dict[str, Any]) -> Path:
    config = parse_model(model)
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    params = ParamStore(build_model(config, numerics, 8).params(), numerics)
    params.initialize(5)
    save_folder(folder, config, params, dtype="bfloat16")
    return folder


@pytest.mark.thorough
def test_a_frozen_base_in_every_layout(run_cases, tmp_path):
    (np.arange(3000) * 7 % 61).astype(np.uint16).tofile(tmp_path / "ids.bin")
    cases = []
    for name, (model, patterns) in RUNS.items():
        folder = pretrained(tmp_path / name, model)
        for layout, parallel in LAYOUTS.items():
            ranks = int(np.prod([degree for axis, degree in parallel.items() if axis != "zero"]))
            config = {
                "run": {"dir": str(tmp_path / "runs" / f"{name} {layout}"), "steps": STEPS, "seed": 3},
                "model": {"from_pretrained": str(folder), "freeze": patterns},
                "data": {"path": str(tmp_path / "ids.bin"), "sequence_length": 8},
                "batch": {"micro_batch_size": 1, "global_batch_size": 4},
                "optimizer": {"lr": 1e-2},
                "schedule": {"warmup_steps": 2},
                "checkpoint": {"every": 0, "resume": "none"},
                "precision": "fp64",
                "parallel": parallel,
            }
            case = {"name": f"{name}: {layout}", "ranks": ranks, "isa": "reference", "steps": STEPS}
            cases.append({**case, "config": config, "save": True})
    results = run_cases(cases)
    assert {name: result["error"] for name, result in results.items() if "error" in result} == {}
    for name in RUNS:
        one = results[f"{name}: one"]
        assert one["losses"][-1] < one["losses"][0]
        for layout in LAYOUTS:
            many = results[f"{name}: {layout}"]
            assert many["replicas"], (name, layout)
            assert np.abs(np.subtract(many["losses"], one["losses"])).max() <= 1e-10, (name, layout)
            assert np.abs(np.divide(many["norms"], one["norms"]) - 1).max() <= 1e-10, (name, layout)
    stages = results["lowest: pipeline 3"]["arenas"]
    assert stages[0]["gradients"] == 0 < stages[0]["frozen weights"] and stages[0]["optimizer"] <= 128
    assert min(stage["gradients"] for stage in stages[1:]) > 0
