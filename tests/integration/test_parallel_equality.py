"""Every layout gives the losses of one process: data, tensor, pipeline and their compositions.

All runs of a precision share one job of 8 ranks (`tests/cktrain/parallel/layouts.py`). The table in fp64 goes over MPI; what
is tested above the transport goes over shared memory, whose ranks take a third less of two cores.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from cktrain import cython_kernels, safetensors_file
from cktrain.hf.folder import save_folder
from cktrain.memory.arena import CACHE_LINE, arena_accounts, round_up
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import find_saved_model

pytestmark = pytest.mark.mpi

RANKS = 8
STEPS = 20

# Heads divide by 4 and key/value heads do not, so tensor 4 replicates them; 61 words leave padding on the last rank.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "family": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 61,
        "qk_norm": True,
        "attention_bias": True,
        "initializer_range": 0.2,
    },
    "gpt2": {
        "family": "gpt2",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 61,
        "initializer_range": 0.2,
    },
    "gpt2 words": {
        "family": "gpt2",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50257,
        "initializer_range": 0.2,
    },
}
MODELS["llama tied"] = {**MODELS["llama"], "tie_word_embeddings": True}
MODELS["gpt2 untied"] = {**MODELS["gpt2"], "tie_word_embeddings": False}

# name -> (ranks, parallel block and other overrides)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "data 2": (2, {}),
    "data 4": (4, {}),
    "data 2, zero 0": (2, {"zero": 0}),
    "data 4, zero 0": (4, {"zero": 0}),
    "tensor 2": (2, {"tensor": 2}),
    "tensor 4": (4, {"tensor": 4}),
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 3": (3, {"pipeline": 3}),
    "pipeline 3, gpipe": (3, {"pipeline": 3, "schedule": "gpipe"}),
    "data 2 x tensor 2": (4, {"data": 2, "tensor": 2}),
    "data 2 x pipeline 2": (4, {"data": 2, "pipeline": 2}),
    "data 2 x pipeline 2, zero 0": (4, {"data": 2, "pipeline": 2, "zero": 0}),
    "pipeline 2 x tensor 2": (4, {"pipeline": 2, "tensor": 2}),
    "data 2 x pipeline 2 x tensor 2": (8, {"data": 2, "pipeline": 2, "tensor": 2}),
}

# What runs in fp64: every layout on the tied llama with grouped heads, the others where they differ.
FP64 = [("llama tied", layout) for layout in LAYOUTS]
FP64 += [
    (model, layout)
    for model in ("llama", "gpt2", "gpt2 untied")
    for layout in ("data 2", "tensor 2", "pipeline 2")
]
FP64 += [("gpt2", "tensor 4"), ("gpt2", "data 2 x pipeline 2 x tensor 2"), ("llama", "tensor 4")]
FP64 += [("gpt2 words", "tensor 2")]
FP32 = [("llama tied", layout) for layout in LAYOUTS]
FP32 += [
    ("gpt2", layout) for layout in ("data 4", "tensor 2", "pipeline 3", "data 2 x pipeline 2 x tensor 2")
]


def make_config(
    folder: Path, model: str, layout: str, precision: str, **blocks: dict[str, Any]
) -> dict[str, Any]:
    parallel = LAYOUTS[layout][1] if layout else {}
    return {
        "run": {"dir": str(folder / "runs" / f"{model} {layout} {precision}"), "steps": STEPS, "seed": 3},
        "model": MODELS[model],
        "data": {
            "path": str(folder / f"{MODELS[model]['vocab_size']}.bin"),
            "sequence_length": 8,
            "validation": {
                "every": 20,
                "batches": 2,
                "path": str(folder / f"{MODELS[model]['vocab_size']}.bin"),
            },
        },
        "batch": {"micro_batch_size": 1, "global_batch_size": 4},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 3},
        "checkpoint": {"every": 0, "resume": "none"},
        "precision": precision,
        "parallel": parallel,
        **blocks,
    }


def equality_cases(
    folder: Path, runs: list[tuple[str, str]], precision: str, isa: str
) -> list[dict[str, Any]]:
    models = dict.fromkeys(model for model, _ in runs)
    wanted = [(model, "") for model in models] + runs
    return [
        {
            "name": f"{model}: {layout}",
            "ranks": LAYOUTS[layout][0] if layout else 1,
            "isa": isa,
            "steps": STEPS,
            "config": make_config(folder, model, layout, precision),
        }
        for model, layout in wanted
    ]


def differences(results: dict[str, Any], runs: list[tuple[str, str]]) -> dict[str, float]:
    """Largest difference of a run's losses, gradient norms (relative) and validation loss from one process's."""
    found = {}
    for model, layout in runs:
        one, many = results[f"{model}: "], results[f"{model}: {layout}"]
        assert "error" not in many, many
        assert len(many["losses"]) == STEPS and many["tokens"] == one["tokens"]
        loss = np.abs(np.subtract(many["losses"], one["losses"])).max()
        norm = np.abs(np.divide(many["norms"], one["norms"]) - 1).max()
        validation = abs(many["validation"] - one["validation"])
        found[f"{model}: {layout}"] = float(max(loss, norm, validation))
    return found


@pytest.mark.parametrize(
    "model, layout", [("gpt2", "tensor 2"), ("llama", "tensor 4"), ("llama tied", "pipeline 2")]
)
def test_one_layout_in_fp64(run_cases, tmp_path, model, layout):
    """The same for one layout, for who works on one (and for the mutants)."""
    results = run_cases(equality_cases(tmp_path, [(model, layout)], "fp64", "reference"))
    assert max(differences(results, [(model, layout)]).values()) <= 1e-10
    assert results[f"{model}: {layout}"]["replicas"]


@pytest.mark.thorough
def test_fp64_on_the_reference_kernels(run_cases, tmp_path):
    """Only the order of additions differs: 1e-10 over 20 steps, in losses, gradient norms and validation loss."""
    results = run_cases(equality_cases(tmp_path, FP64, "fp64", "reference"))
    found = differences(results, FP64)
    print(*(f"{name:50} {difference:.1e}" for name, difference in found.items()), sep="\n")
    assert {name: d for name, d in found.items() if not d <= 1e-10} == {}
    assert {name for name, result in results.items() if not result["replicas"]} == set()
    assert all(results[f"{model}: "]["losses"][-1] < results[f"{model}: "]["losses"][0] for model in MODELS)


def test_fp32_on_the_compiled_kernels(run_cases, tmp_path):
    """Sums of a few thousand fp32 terms in another order: losses within 1e-5 over 20 steps, copies bitwise equal.

    Over shared memory, where the table in fp64 goes over MPI.
    """
    results = run_cases(equality_cases(tmp_path, FP32, "fp32", ""), "shm")
    for model, layout in FP32:
        one, many = results[f"{model}: "], results[f"{model}: {layout}"]
        assert "error" not in many, many
        difference = np.abs(np.subtract(many["losses"], one["losses"])).max()
        print(f"{model}: {layout:40} {difference:.1e}")
        assert difference <= 1e-5, (model, layout)
        if layout in ("data 2", "data 4"):  # ZeRO-1: two moments of a share of the parameters
            formula = 2 * one["parameter_bytes"] / LAYOUTS[layout][0]
            assert abs(many["state_bytes"] / formula - 1) < 0.02
    assert {name for name, result in results.items() if not result["replicas"]} == set()


@pytest.mark.thorough
@pytest.mark.parametrize("zero", [0, 1])
def test_deterministic_is_bitwise_the_same_whatever_the_data_ranks(run_cases, tmp_path, zero):
    """4 micro-batches on 1, 2 and 4 data ranks, also of a divided model; without the switch the bits differ."""
    cases = []
    for deterministic in (True, False):
        for model, parallel in (
            ("llama tied", {}),
            ("gpt2", {}),
            ("llama tied", {"tensor": 2}),
            ("llama tied", {"pipeline": 2}),
        ):
            for data in (1, 2, 4):
                name = f"{model} {parallel} {deterministic}"
                run = {"dir": str(tmp_path / f"{name} {data}"), "steps": 5, "deterministic": deterministic}
                blocks = {"run": run, "parallel": {**parallel, "data": data, "zero": zero}}
                config = make_config(tmp_path, model, "", "fp32", **blocks)
                ranks = data * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
                cases.append(
                    {"name": f"{name}: {data}", "ranks": ranks, "isa": "", "steps": 5, "config": config}
                )
    results = run_cases(cases, "mpi" if zero else "shm")
    by_run: dict[str, set[tuple[Any, ...]]] = {}
    for name, result in results.items():
        assert "error" not in result, result
        state = (result["weights"], *result["losses"], *result["norms"])
        by_run.setdefault(name.rpartition(":")[0], set()).add(state)
    assert {name for name, states in by_run.items() if len(states) > 1 and "True" in name} == set()
    assert any(len(states) > 1 for name, states in by_run.items() if "False" in name)


def test_gradients_may_travel_in_bf16(run_cases, tmp_path):
    """Rounded to 8 bits on the wire, losses stay within 1 % of one process, and copies are bitwise equal."""
    cases = equality_cases(tmp_path, [("llama tied", "data 2"), ("llama tied", "data 4, zero 0")], "fp32", "")
    for case in cases[1:]:
        case["config"]["comm"] = {"wire_dtype": "bf16"}
    one, *many = run_cases(cases).values()
    for result in many:
        assert result["replicas"] and result["losses"] != one["losses"]
        np.testing.assert_allclose(result["losses"], one["losses"], rtol=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("saved_under", ["", "data 2 x pipeline 2 x tensor 2"])
def test_a_run_resumes_under_any_other_layout(run_cases, tmp_path, saved_under):
    """10 steps under one layout and 10 under another are the 20 of one process, to 1e-10."""
    model, others = (
        "llama tied",
        ("", "data 4", "data 2, zero 0", "tensor 4", "pipeline 3, gpipe", "data 2 x tensor 2"),
    )
    whole, first, *rest = equality_cases(
        tmp_path, [(model, saved_under), *((model, o) for o in others)], "fp64", "reference"
    )
    first |= {"name": "first", "steps": 10, "save": True}
    first["config"]["run"]["dir"] = str(tmp_path / "saved")
    checkpoint = tmp_path / "saved" / "checkpoints" / "step-00000010"
    for case in rest:
        case |= {"steps": 10, "name": f"second {case['name']}"}
        case["config"]["checkpoint"] = {"every": 0, "resume": str(checkpoint)}
    one, half, *results = run_cases([whole, first, *rest], "shm").values()
    assert "error" not in half, half
    for result in results:
        assert "error" not in result, result
        np.testing.assert_allclose(result["losses"], one["losses"][10:], rtol=0, atol=1e-10)
    files = {path.name for path in checkpoint.glob("rank*")}
    assert files == {f"rank{rank}.safetensors" for rank in range(first["ranks"])}
    sizes = sum((checkpoint / name).stat().st_size for name in files)
    assert sizes < 1.5 * 3 * one["parameter_bytes"]  # each element and its two moments once, and headers


MUON = {"name": "muon", "lr": 1e-2, "muon_lr": 2e-2}


def muon_cases(folder: Path, layouts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The runs of the same names under Muon, one process first."""
    cases = equality_cases(folder, [("llama tied", layout) for layout in layouts], "fp64", "reference")
    for case in cases:
        case["config"]["optimizer"] = MUON
    return cases


@pytest.mark.thorough
def test_muon_gives_whole_matrices_to_data_ranks(run_cases, tmp_path):
    """Matrices are updated by one rank each: losses to 1e-10; a matrix has one moment, the rest has two."""
    layouts = ("data 2", "data 4", "data 2, zero 0", "pipeline 2", "data 2 x pipeline 2")
    results = run_cases(muon_cases(tmp_path, layouts), "shm")
    found = differences(results, [("llama tied", layout) for layout in layouts])
    assert {name: d for name, d in found.items() if not d <= 1e-10} == {}
    assert all(result["replicas"] for result in results.values())
    one = results["llama tied: "]
    assert one["losses"][-1] < one["losses"][0]
    embedding, matrices = 61 * 16, 3 * (16 * 32 + 16 * 16 + 48 * 16 + 16 * 24)
    assert one["state_bytes"] == pytest.approx(8 * (matrices + 2 * embedding), rel=0.1)


def test_muon_resumes_under_another_layout(run_cases, tmp_path):
    """10 steps on four data ranks, then 10 on others, are the 20 of one process, to 1e-10."""
    whole, first, *rest = muon_cases(tmp_path, ("data 4", "data 2", "data 2, zero 0", "pipeline 2"))
    first |= {"steps": 10, "save": True}
    first["config"]["run"]["dir"] = str(tmp_path / "saved")
    for case in rest:
        case["steps"] = 10
        checkpoint = str(tmp_path / "saved" / "checkpoints" / "step-00000010")
        case["config"]["checkpoint"] = {"every": 0, "resume": checkpoint}
    one, half, *results = run_cases([whole, first, *rest], "shm").values()
    assert "error" not in half, half
    for result in results:
        assert "error" not in result, result
        np.testing.assert_allclose(result["losses"], one["losses"][10:], rtol=0, atol=1e-10)


def bytes_cases(folder: Path, layouts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Runs of a wider model, most of whose parameters have 8-bit moments, one process first."""
    cases = equality_cases(folder, [("llama tied", layout) for layout in layouts], "fp64", "reference")
    for case in cases:
        case["config"]["optimizer"] = {"name": "adamw_8bit", "lr": 1e-2}
        case["config"]["model"] = case["config"]["model"] | {"hidden_size": 64, "intermediate_size": 96}
        case["steps"] = 8
    return cases


def test_moments_of_8_bits_are_the_same_for_any_data_ranks_and_stages(run_cases, tmp_path):
    """Blocks are never cut by data ranks or stages: losses to 1e-10. Tensor ranks that cut rows have blocks of their own,
    so theirs differ as rounding does: within 1 %."""
    layouts = ("data 2", "data 2, zero 0", "pipeline 2", "tensor 2")
    one, *many = run_cases(bytes_cases(tmp_path, layouts), "shm").values()
    for layout, result in zip(layouts, many, strict=True):
        assert "error" not in result and result["replicas"], (layout, result)
        within = 0.01 * one["losses"][0] if layout == "tensor 2" else 1e-10
        np.testing.assert_allclose(result["losses"], one["losses"], rtol=0, atol=within, err_msg=layout)
    assert one["losses"][-1] < one["losses"][0]
    assert (
        one["state_bytes"] < 0.4 * 2 * one["parameter_bytes"]
    )  # in fp64 two bytes of eight, and small ones whole


def test_moments_of_8_bits_resume_under_another_layout(run_cases, tmp_path):
    """4 steps on two data ranks, then 4 on others, are the 8 of one process, to 1e-10."""
    whole, first, *rest = bytes_cases(tmp_path, ("data 2", "data 2, zero 0", "pipeline 2"))
    first |= {"steps": 4, "save": True}
    first["config"]["run"]["dir"] = str(tmp_path / "saved")
    for case in rest:
        case["steps"] = 4
        case["config"]["checkpoint"] = {
            "every": 0,
            "resume": str(tmp_path / "saved/checkpoints/step-00000004"),
        }
    one, half, *results = run_cases([whole, first, *rest], "shm").values()
    assert "error" not in half, half
    for result in results:
        assert "error" not in result, result
        np.testing.assert_allclose(result["losses"], one["losses"][4:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_hugging_face_folder_is_read_by_parts(run_cases, tmp_path, model):
    """Each rank reads what it holds of the weights: the losses of one process, to 1e-10."""
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    config = parse_model({**MODELS[model], "max_position_embeddings": 16})
    params = ParamStore(build_model(config, numerics, 16).params(), numerics)
    params.initialize(seed=11)
    save_folder(tmp_path / "pretrained", config, params)
    layouts = ("", "tensor 2", "tensor 4", "pipeline 2", "pipeline 2 x tensor 2")
    cases = equality_cases(tmp_path, [(model, layout) for layout in layouts], "fp64", "reference")[1:]
    for case in cases:
        case["steps"] = 3
        case["config"]["model"] = {"from_pretrained": str(tmp_path / "pretrained")}
    one, *others = run_cases(cases, "shm").values()
    for result in others:
        assert "error" not in result, result
        np.testing.assert_allclose(result["losses"], one["losses"], rtol=0, atol=1e-10)


ERRORS = {
    "tensor 3 does not divide the 4 query heads": (3, {"parallel": {"tensor": 3}}),
    "tensor 4 does not divide the 6 query heads and 3 key/value": (
        4,
        {
            "parallel": {"tensor": 4},
            "model": {**MODELS["llama"], "hidden_size": 24, "num_attention_heads": 6}
            | {"num_key_value_heads": 3},
        },
    ),
    "tensor 2 does not divide the 25 features of model.layers.0.mlp": (
        2,
        {"parallel": {"tensor": 2}, "model": {**MODELS["llama"], "intermediate_size": 25}},
    ),
    "a vocabulary of 5 in shares of 2 leaves a rank without words": (
        4,
        {"parallel": {"tensor": 4}, "model": {**MODELS["llama"], "vocab_size": 5}},
    ),
    "tensor 2 does not divide the 9 rows": (
        2,
        {"parallel": {"tensor": 2}, "data": {"path": "61.bin", "sequence_length": 9}},
    ),
    "pipeline 4: the model has 3 layers": (4, {"parallel": {"pipeline": 4}}),
    "data 2 x pipeline 2 x tensor 2 = 8 ranks, and 4 were started": (
        4,
        {"parallel": {"data": 2, "pipeline": 2, "tensor": 2}},
    ),
    "global_batch_size 4 is not a multiple of micro_batch_size 1 x 3 data ranks": (
        3,
        {"parallel": {"data": 3}},
    ),
    "Set parallel.schedule: 1f1b": (
        2,
        {
            "parallel": {"pipeline": 2, "schedule": "gpipe"},
            "run": {"dir": "r", "steps": 5, "deterministic": True},
        },
    ),
    "muon updates whole matrices, and this rank holds (16, 12) of model.layers.2.mlp.down_proj": (
        2,
        {"parallel": {"tensor": 2}, "optimizer": MUON},
    ),
    "Set comm.wire_dtype: fp32": (
        2,
        {"comm": {"wire_dtype": "bf16"}, "run": {"dir": "r", "steps": 5, "deterministic": True}},
    ),
}


def test_what_does_not_divide_is_refused_with_its_numbers(run_cases, tmp_path):
    cases = []
    for message, (ranks, blocks) in ERRORS.items():
        config = {**make_config(tmp_path, "llama", "", "fp32"), **blocks}
        if blocks.get("model", {}).get("vocab_size") == 5:
            np.zeros(500, np.uint16).tofile(tmp_path / "5.bin")
            config["data"] = {"path": "5.bin", "sequence_length": 8}
        cases.append({"name": message, "ranks": ranks, "isa": "", "steps": 1, "config": config})
    for message, result in run_cases(cases, "shm").items():
        assert message in result.get("error", "no error"), result


@pytest.mark.thorough
def test_weights_may_travel_in_bf16(run_cases, tmp_path):
    """Kernels read bf16 weights anyway, so bitwise the same losses; a checkpoint of it has the fp32 masters."""
    layouts = ("data 2", "data 4", "data 2 x pipeline 2 x tensor 2")
    cases = []
    for layout in layouts:
        for dtype in ("fp32", "auto"):
            config = make_config(tmp_path, "llama tied", layout, "bf16")
            config["comm"] = {"weight_dtype": dtype}
            config["parallel"] = {**config["parallel"], "cut": "flops"}
            config["run"]["dir"] = str(tmp_path / f"{layout} {dtype}")
            name, ranks = f"{layout}: {dtype}", LAYOUTS[layout][0]
            case = {"name": name, "ranks": ranks, "isa": "", "steps": 10, "config": config, "save": True}
            resumed = {**case, "name": f"{name} resumed", "ranks": 1, "save": False}
            checkpoint = {"every": 0, "resume": f"{config['run']['dir']}/checkpoints/step-00000010"}
            resumed["config"] = {**config, "parallel": {}, "checkpoint": checkpoint}
            cases += [case, resumed]
    results = run_cases(cases, "shm")
    for layout in layouts:
        for suffix in ("", " resumed"):
            masters, rounded = (results[f"{layout}: {dtype}{suffix}"] for dtype in ("fp32", "auto"))
            assert "error" not in masters and "error" not in rounded, (masters, rounded)
            assert rounded["replicas"] and rounded["losses"] == masters["losses"]
            assert rounded["norms"] == masters["norms"]


@pytest.mark.thorough
def test_export_from_any_layout_holds_the_model_once(run_cases, tmp_path, monkeypatch):
    """Saved by 8 ranks (data, pipeline, tensor, ZeRO-1): the same folder as of one rank, in the memory of one model."""
    monkeypatch.setattr(safetensors_file, "PIECE_BYTES", 64 << 10)
    model = {**MODELS["llama tied"], "hidden_size": 128, "intermediate_size": 512, "vocab_size": 3001}
    cases = []
    for layout in ("", "data 2 x pipeline 2 x tensor 2"):
        config = make_config(tmp_path, "llama tied", layout, "fp64") | {"model": model}
        config["data"] = {"path": str(tmp_path / "3001.bin"), "sequence_length": 8}
        config["run"]["dir"] = str(tmp_path / f"run {layout}")
        ranks = LAYOUTS[layout][0] if layout else 1
        cases.append(
            {"name": layout, "ranks": ranks, "isa": "reference", "steps": 1, "config": config, "save": True}
        )
    assert not any("error" in result for result in run_cases(cases, "shm").values())
    exported = {}
    for layout in ("", "data 2 x pipeline 2 x tensor 2"):
        saved = find_saved_model(tmp_path / f"run {layout}")
        held = arena_accounts()
        tracemalloc.start()
        numerics = Numerics(cython_kernels.load("generic"), "fp32")
        _, params = saved.load(numerics, positions=1)
        save_folder(tmp_path / f"exported {layout}", saved.config, params)
        arenas, (_, peak) = arena_accounts() - held, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        once = sum(round_up(4 * param.size, CACHE_LINE) for param in params.params)
        assert sum(arenas.values()) == arenas["frozen weights"] == once
        assert peak < 0.25 * once, (
            peak,
            once,
        )  # headers and pieces: the rest of the memory is that one arena
        del params
        with safe_open(tmp_path / f"exported {layout}" / "model.safetensors", "np") as file:
            exported[layout] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    one, many = exported.values()
    assert one.keys() == many.keys() and len(one) > 10
    for name, tensor in one.items():
        np.testing.assert_allclose(many[name], tensor, rtol=0, atol=1e-6)
