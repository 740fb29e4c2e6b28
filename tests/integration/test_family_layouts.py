"""Every family under tensor and pipeline parallelism, and with its cache, from nothing but its case in tests/golden/hf.

`test_parallel_equality.py` has all layouts, for few models; this has few layouts, for each class that is read.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden" / "hf"))
from hf_parity import CASES, golden_folder

from cktrain import cython_kernels
from cktrain.generation.decoder import Decoder
from cktrain.hf.config_json import ARCHITECTURES, read_model_config
from cktrain.hf.folder import save_folder
from cktrain.hf.tensors import load_weights
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

STEPS = 5
# Two key/value heads: four ranks have them twice.
LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "tensor 2": {"tensor": 2},
    "tensor 4": {"tensor": 4},
    "pipeline 2": {"pipeline": 2},
    "2 x 2": {"tensor": 2, "pipeline": 2},
}


def model_of(case: str) -> dict[str, Any]:
    """The keys of the case's model, with sizes that four ranks divide."""
    config = read_model_config(golden_folder(case))
    changes = {"initializer_range": 0.2, "intermediate_size": 24, "vocab_size": 61}
    return config.model_copy(update=changes).model_dump(exclude_none=True)


def test_each_class_has_a_golden_case():
    assert set(ARCHITECTURES) <= set(CASES)


@pytest.mark.mpi
@pytest.mark.thorough
def test_every_class_in_layouts(run_cases, tmp_path):
    """fp64 on the reference kernels: only the order of additions differs."""
    tokens = str(tmp_path / "61.bin")
    cases = [
        {
            "name": f"{name}: {layout}",
            "ranks": math.prod(degrees.values()),
            "isa": "reference",
            "steps": STEPS,
            "config": {
                "run": {"dir": str(tmp_path / "runs" / f"{name} {layout}"), "steps": STEPS, "seed": 3},
                "model": model_of(name),
                "data": {"path": tokens, "sequence_length": 8},
                "batch": {"micro_batch_size": 1, "global_batch_size": 2},
                "optimizer": {"lr": 1e-2},
                "checkpoint": {"every": 0, "resume": "none"},
                "precision": "fp64",
                "parallel": {**degrees, "data": 1},
            },
        }
        for name in ARCHITECTURES
        for layout, degrees in LAYOUTS.items()
    ]
    results = run_cases(cases)
    for name in ARCHITECTURES:
        one = results[f"{name}: one"]
        for layout in list(LAYOUTS)[1:]:
            many = results[f"{name}: {layout}"]
            assert "error" not in many, many
            assert np.abs(np.subtract(many["losses"], one["losses"])).max() <= 1e-10, (name, layout)
            assert np.abs(np.divide(many["norms"], one["norms"]) - 1).max() <= 1e-10, (name, layout)
            assert many["replicas"]


@pytest.mark.parametrize("case", CASES)
def test_the_cache_and_a_folder_out_and_in_change_nothing(case, tmp_path):
    numerics = Numerics(cython_kernels.load("reference"), "fp64")
    config = read_model_config(golden_folder(case))
    model = build_model(config, numerics, 40)
    params = ParamStore(model.params(), numerics)
    load_weights(golden_folder(case), config, params)
    save_folder(tmp_path / "out", config, params)
    again = build_model(read_model_config(tmp_path / "out"), numerics, 40)
    load_weights(tmp_path / "out", config, ParamStore(again.params(), numerics))
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 30).tolist()
    decoder = Decoder(again, len(ids))
    steps = [decoder.feed(ids[:11]), *(decoder.feed([token]) for token in ids[11:])]
    slot = model.plan(1, len(ids), train=False).allocate()[0]
    wanted = model.head.logits(model.hidden(np.array([ids], np.int32), slot))[10:]
    assert np.abs(np.array(steps) - wanted).max() <= 1e-12 * np.abs(wanted).max()
