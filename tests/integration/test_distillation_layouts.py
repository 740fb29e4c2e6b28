"""Distillation gives the losses of one process on data ranks and pipeline stages, and refuses tensor ranks by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cktrain"))

from chat_models import write_rows, write_weights

from cktrain.data.chat.prepare import ChatOptions, prepare_chat

pytestmark = pytest.mark.mpi

LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "data 2": {"data": 2},
    "pipeline 2": {"pipeline": 2},
    "tensor 2": {"tensor": 2},
}


def test_distillation_in_layouts(run_cases, tmp_path):
    student, teacher = (
        write_weights(tmp_path / name, seed) for name, seed in (("student", 5), ("teacher", 8))
    )
    rows = [
        {"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * n}]}
        for n in range(1, 21)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    options = ChatOptions(sequence_length=128, validation_fraction=0.2)
    prepare_chat(source, tmp_path / "data", tokenizer=student, options=options, progress=False)
    cases = []
    for layout, parallel in LAYOUTS.items():
        config = {
            "run": {"dir": str(tmp_path / "runs" / layout), "steps": 3, "seed": 3},
            "model": {"from_pretrained": str(student)},
            "data": {"path": str(tmp_path / "data"), "sequence_length": 128, "validation": {"every": 9}},
            "batch": {"micro_batch_size": 1, "global_batch_size": 4},
            "objective": {"name": "distill", "teacher": str(teacher), "temperature": 2.0, "alpha": 0.7},
            "optimizer": {"lr": 1e-2},
            "precision": "fp64",
            "parallel": parallel,
            "checkpoint": {"every": 0, "resume": "none"},
        }
        ranks = int(np.prod(list(parallel.values())))
        cases.append({"name": layout, "ranks": ranks, "isa": "reference", "steps": 3, "config": config})
    results = run_cases(cases)
    assert "parallel.tensor 2 divides the vocabulary" in results.pop("tensor 2")["error"]
    assert {name: result["error"] for name, result in results.items() if "error" in result} == {}
    for layout in ("data 2", "pipeline 2"):
        for key in ("losses", "norms", "validation", "measures"):
            apart = np.abs(np.subtract(results[layout][key], results["one"][key])).max()
            assert apart <= 1e-10, (layout, key)
