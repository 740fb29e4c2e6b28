"""An adapter beside a frozen base gives the losses of one process in every layout."""

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
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 24, "attention_bias": True}
GPT2 = {**SIZES, "family": "gpt2"}

# name -> (model, adapter): all linears; ranks that differ within a fused matrix; one layer; a Conv1D's fused matrix.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": (LLAMA, {"r": 3}),
    "patterns": (
        {**LLAMA, "tie_word_embeddings": True},
        {
            "r": 2,
            "rank_pattern": {"k_proj": 5},
            "alpha_pattern": {"v_proj": 4},
            "exclude_modules": ["up_proj"],
        },
    ),
    "upper": (LLAMA, {"r": 4, "target_modules": ["layers.2.self_attn.v_proj", "layers.1.mlp.down_proj"]}),
    "gpt2": (GPT2, {"r": 3, "use_rslora": True}),
    "dropout": (LLAMA, {"r": 3, "lora_dropout": 0.2}),
    "dora": (LLAMA, {"r": 3, "use_dora": True, "exclude_modules": ["k_proj"]}),
    "whole": (
        LLAMA,
        {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "tied": (
        {**LLAMA, "tie_word_embeddings": True},
        {"r": 2, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "data 2": {"data": 2},
    "tensor 2": {"tensor": 2},
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
def test_an_adapter_in_every_layout(run_cases, tmp_path):
    (np.arange(3000) * 7 % 61).astype(np.uint16).tofile(tmp_path / "ids.bin")
    cases = []
    for name, (model, adapter) in RUNS.items():
        folder = pretrained(tmp_path / name, model)
        for layout, parallel in LAYOUTS.items():
            if len(parallel) > 1 and name != "patterns":
                continue
            config = {
                "run": {"dir": str(tmp_path / "runs" / f"{name} {layout}"), "steps": STEPS, "seed": 3},
                "model": {"from_pretrained": str(folder)},
                "adapter": adapter,
                "data": {"path": str(tmp_path / "ids.bin"), "sequence_length": 8},
                "batch": {"micro_batch_size": 1, "global_batch_size": 4},
                "optimizer": {"lr": 1e-2},
                "checkpoint": {"every": 0, "resume": "none"},
                "precision": "fp64",
                "parallel": parallel,
            }
            ranks = int(np.prod(list(parallel.values())))
            case = {"name": f"{name}: {layout}", "ranks": ranks, "isa": "reference", "steps": STEPS}
            cases.append({**case, "config": config, "save": True})
    results = run_cases(cases)
    assert {name: result["error"] for name, result in results.items() if "error" in result} == {}
    for name in RUNS:
        one = results[f"{name}: one"]
        assert one["losses"][-1] < one["losses"][0]
        for layout in LAYOUTS:
            many = results.get(f"{name}: {layout}", one)
            assert many["replicas"], (name, layout)
            assert np.abs(np.subtract(many["losses"], one["losses"])).max() <= 1e-10, (name, layout)
            assert np.abs(np.divide(many["norms"], one["norms"]) - 1).max() <= 1e-10, (name, layout)
    stages = results["upper: pipeline 3"]["arenas"]
    assert stages[0]["gradients"] == 0 < stages[0]["frozen weights"]
