"""Memory of real ranks, by their arenas' accounting: as the plan says before, and as ZeRO's formula says.

The runs of both tests are one job.
"""

from __future__ import annotations

from typing import Any

import pytest

from cktrain.config import Config
from cktrain.parallel.mesh import Mesh
from cktrain.plan.formulas import zero_bytes
from cktrain.plan.memory import plan_rank

pytestmark = pytest.mark.mpi

MODEL = {
    "family": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
}
# name -> (mesh, precision, other blocks)
CONFIGURATIONS: dict[str, tuple[Mesh, str, dict[str, Any]]] = {
    "data 2": (Mesh(2, 1, 1), "fp32", {}),
    "data 4": (Mesh(4, 1, 1), "fp32", {}),
    "data 2, bf16": (Mesh(2, 1, 1), "bf16", {"comm": {"wire_dtype": "bf16"}}),
    "data 4, bf16, checkpointing": (Mesh(4, 1, 1), "bf16", {"memory": {"checkpointing": "block"}}),
    "data 2, muon": (Mesh(2, 1, 1), "bf16", {"optimizer": {"name": "muon"}}),
    "data 2, 8 bits": (Mesh(2, 1, 1), "fp32", {"optimizer": {"name": "adamw_8bit"}}),
    "tensor 4": (Mesh(1, 1, 4), "fp32", {}),
    "data 2 x pipeline 2 x tensor 2": (Mesh(2, 2, 2), "fp32", {"comm": {"wire_dtype": "bf16"}}),
}


def config_of(name: str, folder: Any) -> dict[str, Any]:
    mesh, precision, blocks = CONFIGURATIONS[name]
    data = {"path": str(folder / "1000.bin"), "sequence_length": 16}
    data["validation"] = {"every": 1, "batches": 1, "path": data["path"]}
    cut = [2, 1] if mesh.pipeline == 2 else "measured"
    return {
        "run": {"dir": str(folder / name), "steps": 1},
        "model": MODEL,
        "data": data,
        "batch": {"micro_batch_size": 2, "global_batch_size": 16},
        "precision": precision,
        "parallel": {"data": mesh.data, "pipeline": mesh.pipeline, "tensor": mesh.tensor, "cut": cut},
        "checkpoint": {"every": 0, "resume": "none"},
        **blocks,
    }


@pytest.fixture
def ranks_arenas(run_cases, tmp_path):
    """Name -> bytes by arena of each rank."""
    cases = [
        {"name": name, "ranks": mesh.world, "isa": "", "steps": 1, "config": config_of(name, tmp_path)}
        for name, (mesh, _, _) in CONFIGURATIONS.items()
    ]
    results = run_cases(cases, "shm")
    assert not any("error" in result for result in results.values()), results
    return {name: result["arenas"] for name, result in results.items()}


def test_arenas_are_those_of_the_plan_and_of_zeros_formula(ranks_arenas, tmp_path):
    """The plan within 5 % on every rank of every configuration; weights, gradients and states within 2 % of ZeRO."""
    for name, arenas in ranks_arenas.items():
        mesh, precision, _ = CONFIGURATIONS[name]
        config = Config.model_validate(config_of(name, tmp_path))
        assert len(arenas) == mesh.world
        for rank, held in enumerate(arenas):
            stage = mesh.coordinates(rank)["pipeline"]
            cuts = [(0, 2), (2, 3)] if mesh.pipeline == 2 else None
            planned = plan_rank(config, mesh, stage, precision, cuts)
            print(f"{name} rank {rank}: planned {planned.arenas}, held {held}")
            if config.optimizer.name == "muon" and held != max(arenas, key=lambda each: each["optimizer"]):
                assert held["optimizer"] < planned.arenas["optimizer"]  # the fullest rank is planned
                continue
            total, expected = sum(held.values()), sum(planned.arenas.values())
            assert abs(expected / total - 1) < 0.05, (name, rank)
            assert {k: v for k, v in held.items() if v} == pytest.approx(
                {k: v for k, v in planned.arenas.items() if v}, rel=0.05
            )
            if mesh.pipeline == mesh.tensor == 1 and config.optimizer.name == "adamw":
                parameters = sum(p.size for p in planned.part.params.params)
                formula = zero_bytes(parameters, mesh.data, 1, precision == "bf16")
                kinds = ("parameters", "compute weights", "gradients", "optimizer")
                assert abs(sum(held.get(kind, 0) for kind in kinds) / formula - 1) < 0.02, (name, rank)
