"""docs/benchmarks/big_machine.py asks for measurements that exist, names what falls short, and says what it could not do."""

import importlib.util
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cktrain.config_file import load_config
from cktrain.launch.cli import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script, which is in no package, and finds what stands beside it."""
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("big_machine", FOLDER / "big_machine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["big_machine"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))
    del sys.modules["big_machine"]


def test_threads_are_powers_of_two_and_all(script: ModuleType) -> None:
    assert script.counts(1) == [1] and script.counts(2) == [1, 2]
    assert script.counts(96) == [1, 2, 4, 8, 16, 32, 64, 96] and script.counts(96, short=True) == [1, 96]


def answers(words: tuple[str, ...]) -> Any:
    """What a machine on which two threads are half as good as they should be would measure."""
    kind = words[2] if words[0] == "launch" else words[1]
    if words[0] == "launch":
        return [{"bytes": 65536, "p50_us": 9.0, "busbw_gbs": 8.0 / int(words[2]), "buffers": "own"}]
    threads = next((int(b) for a, b in pairwise(words) if a == "--threads"), 0)
    threads = threads or next(
        int(word.partition("=")[2]) for word in words if word.startswith("launch.threads")
    )
    if kind == "peak":
        rate = {"isa": "avx2", "precision": "fp32", "threads": threads, "gflops": 100.0}
        return {"flops": [rate], "bandwidth": [{"mix": "read", "threads": threads, "gbs": 20.0}]}
    if kind == "gemm":
        row = {"shape": "out", "product": "forward", "gflops": 80.0}
        mine = {**row, "library": "cktrain", "ratio": 0.8 / threads}
        return {"rows": [mine, {**row, "library": "numpy", "gflops": 100.0, "ratio": 1.0}]}
    if kind == "step":
        return {"step_s": 1.0, "tokens_per_s": 10.0, "mfu": 0.6 / threads}
    return {"decode_tps": 5.0, "decode_gbs": 10.0, "read_gbs": 20.0}


def test_what_falls_short_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands that cktrain understands."""

    def cktrain(*words: str) -> Any:
        if words[0] == "launch":
            options = build_parser("launch").parse_args([*words, "--json"])
            assert options.ranks == int(words[2])
        options = build_parser("bench").parse_args([*words[words.index("bench") :], "--json"])
        assert options.json
        if words[1] == "step":
            assert load_config(options.config, options.overrides).model.hidden_size == 768
        return answers(words)

    monkeypatch.setattr(script, "cktrain", cktrain)
    machine = script.Machine(4, ("fp32",), short=False)
    parts = list(script.measured(["peak", "products", "step", "decode", "allreduce"], machine))
    assert not any(part.missing for part in parts)
    assert [len(part.rows) for part in parts] == [6, 3, 3, 3, 2]
    text = script.page(machine, parts, 1.0)
    short = text.partition("## What falls short\n")[2].partition("\n\n")[0].splitlines()
    assert "- peak, avx2 fp32, 4 threads: 0.25, expected 0.85 or more" in short
    assert "- products, out forward, fp32, 1 threads, beside numpy: 0.80, expected 0.97 or more" in short
    assert "- step, fp32, 2 threads, of one thread's share: 0.50, expected 0.80 or more" in short
    assert "- decode, fp32, 1 threads: 0.50, expected 0.80 or more" in short
    assert "- allreduce, 65,536 bytes, own, 4 ranks, of two ranks' rate: 0.50, expected 0.70 or more" in short
    assert len(short) == 2 + 2 + 3 + 2 + 3 + 1
    assert "| avx2 fp32 | 4 | 100 GFLOP/s | 0.25 |" in text


def test_what_cannot_be_measured_is_said(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = script.Machine(2, ("fp32",), short=True)
    monkeypatch.setattr(script.sys, "executable", "/bin/false")
    (part,) = script.measured(["step"], machine)
    assert not part.rows and "exit status 1" in part.missing[0]
    text = script.page(machine, [part], 1.0)
    assert "## Not measured\n- step: " in text and "- nothing that was measured" in text
