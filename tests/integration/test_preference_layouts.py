"""Preference gives the losses, rewards and validation of one process in every layout, whichever its reference is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cktrain"))

from preferences import preference_config, prepared

pytestmark = pytest.mark.mpi

STEPS = 3
RUNS = {
    "lora": {"adapter": {"r": 3}, "objective": {"name": "dpo", "beta": 0.5}},
    "lora, before": {"adapter": {"r": 3}, "objective": {"name": "dpo", "reference": "precomputed"}},
    "full": {
        "adapter": None,
        "objective": {"name": "dpo", "label_smoothing": 0.1, "length_normalized": True},
    },
}
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "data 2": {"data": 2},
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
    "data 2 x pipeline 2 x tensor 2": {"data": 2, "pipeline": 2, "tensor": 2},
}


@pytest.mark.thorough
def test_preference_in_every_layout(run_cases, tmp_path):
    model, rows = prepared(tmp_path)
    cases = []
    for name, blocks in RUNS.items():
        for layout, parallel in LAYOUTS.items():
            if len(parallel) > 1 and name != "full":
                continue
            config = preference_config(
                tmp_path,
                model,
                rows,
                run={"dir": str(tmp_path / "runs" / f"{name} {layout}"), "steps": STEPS},
                batch={"micro_batch_size": 1, "global_batch_size": 4},
                parallel=parallel,
                **blocks,
            )
            ranks = int(np.prod(list(parallel.values())))
            case = {"name": f"{name}: {layout}", "ranks": ranks, "isa": "reference", "steps": STEPS}
            cases.append({**case, "config": config.model_dump(mode="json")})
    results = run_cases(cases)
    assert {name: result["error"] for name, result in results.items() if "error" in result} == {}
    for name in RUNS:
        one = results[f"{name}: one"]
        assert one["losses"][0] == pytest.approx(np.log(2), abs=1e-12)
        for layout in LAYOUTS:
            many = results.get(f"{name}: {layout}", one)
            assert many["replicas"], (name, layout)
            for key in ("losses", "norms", "validation", "measures"):
                assert np.abs(np.subtract(many[key], one[key])).max() <= 1e-10, (name, layout, key)
