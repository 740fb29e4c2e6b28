"""The table of cases: names are distinct, and what the examples ask for is kept."""

from pathlib import Path

from case_table import BASE, EVERY_OP, FAMILIES, PLANS, cases, merged
from comparison import flattened

ROOT = Path(__file__).resolve().parents[2]
SETS = ["reference", "generic", "avx2"]


def test_every_example_family_and_set_has_its_cases():
    table = cases(ROOT / "examples", SETS)
    names = [case.name for case in table]
    assert len(set(names)) == len(names)
    for path in (ROOT / "examples").glob("*.yaml"):
        assert (f"examples/{path.name}" in names) == (
            path.stem not in ("topology", "lora", "continued_pretraining")
        )
    for family in FAMILIES:
        assert {f"{family}: {precision}" for precision in ("fp32", "bf16", "fp64")} <= set(names)
    for model in EVERY_OP:
        assert {f"{model}: bf16, generic", f"{model}: fp32, avx2"} <= set(names)
    assert all(case.isa == "reference" for case in table if case.blocks.get("precision") == "fp64")
    assert all((ROOT / file).is_file() for file, _, _ in PLANS.values())


def test_ranks_are_the_product_of_the_degrees():
    by_name = {case.name: case for case in cases(ROOT / "examples", SETS)}
    assert by_name["examples/data_pipeline_tensor.yaml"].ranks == 8
    assert by_name["examples/mpirun.yaml"].ranks == 2  # data: -1
    assert by_name["examples/demo.yaml"].ranks == 1
    assert by_name["everything: fp32, documents, 2 x 2 x 2"].ranks == 8


def test_blocks_are_merged_and_written_for_the_command_line():
    blocks = merged(BASE, {"run": {"dir": "r"}, "batch": {"micro_batch_size": 1}})
    assert blocks["run"] == {**BASE["run"], "dir": "r"} and "dir" not in BASE["run"]
    words = list(flattened({"run": {"dir": "r", "steps": 2}, "precision": "fp32", "a": {"b": [1, True]}}))
    assert words == ["run.dir=r", "run.steps=2", "precision=fp32", "a.b=[1, true]"]
