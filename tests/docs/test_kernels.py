"""docs/benchmarks/kernels.py asks for measurements that exist, and judges what they found."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cktrain.config_file import load_config
from cktrain.launch.cli import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("kernels_page", FOLDER / "kernels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_are_understood(script: ModuleType) -> None:
    kinds = set()
    for command in script.measurements().values():
        words = [word for word in command if not word.startswith("CKTRAIN_ISA=")]
        if words[0] == sys.executable:
            assert Path(words[1]).exists() and words[-1] == "--json"
            continue
        assert words[0] == "cktrain"
        options = build_parser("bench").parse_args(words[1:])
        assert options.json
        kinds.add(words[2])
        if words[2] == "step":
            config = load_config(options.config, options.overrides)
            assert config.model.hidden_size == 768 and config.batch.micro_batch_size == 4
    assert kinds == {"peak", "gemm", "step", "ops"}


def gemm(**shares: tuple[float, float]) -> dict[str, object]:
    """Rows of the forward product: cktrain's share of the peak, and a rival's."""
    rows = [
        {"shape": shape, "product": "forward", "library": library, "gflops": 100 * share, "ratio": share}
        for shape, pair in shares.items()
        for library, share in zip(("cktrain", "numpy"), pair, strict=True)
    ]
    return {"gemm": {"rows": rows}}


def test_a_goal_that_is_missed_is_named(script: ModuleType) -> None:
    assert script.gemm_reach(gemm(qkv=(0.9, 0.5), out=(0.95, 0.95)), "gemm", 90, "numpy") == (
        "90.0-95.0 %, 2 of 2 rows at 90 or more; 1.00-1.80x numpy",
        "yes",
    )
    assert script.gemm_reach(gemm(qkv=(0.89, 0.5), out=(0.95, 0.5)), "gemm", 90, "numpy")[1] == (
        "but for qkv forward (89.0)"
    )
    words, verdict = script.gemm_reach(gemm(qkv=(0.93, 0.95)), "gemm", 90, "numpy")
    assert "below it in qkv forward" in words and verdict == "but for the rival"
    assert [script.reached(*each) for each in ((True, True), (True, False), (False,))] == [
        "yes",
        "in part",
        "no",
    ]
