"""`cktrain bench ops` on small arrays: every op is there once per shape, and its figures agree with each other."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from cktrain import cython_kernels
from cktrain.bench import op_cases, ops


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if cython_kernels.available() == ["reference"]:
        pytest.skip("no kernels are compiled")
    monkeypatch.setattr(op_cases, "last_level_cache_bytes", lambda: 1 << 18)
    monkeypatch.setattr(op_cases, "ATTENTION", ((1, 128, 2, 16), (2, 64, 1, 24)))
    kernels = cython_kernels.load()
    kernels.set_num_threads(1)
    yield kernels


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_op_is_measured(kernels: Any, precision: str) -> None:
    results = list(ops.bench_ops(kernels, precision, rounds=1))
    names = {r.op for r in results}
    themes = ("rms_norm", "layer_norm", "swiglu", "gelu", "rope", "cross_entropy", "embedding", "attention")
    assert {f"{theme}_forward" for theme in themes} <= names
    assert {f"{theme}_backward" for theme in themes} - {"rope_backward"} <= names
    assert {"add", "adamw_step", "adamw_8bit_step", "sum_of_squares"} <= names
    assert len(results) == len({(r.op, r.shape) for r in results})
    for r in results:
        rate = r.gflops if r.gbs is None else r.gbs
        assert rate is not None and math.isclose(rate / r.limit, r.roofline, rel_tol=1e-6)
        assert r.s > 0 and r.roofline > 0
        assert (r.torch_s is None) == (r.vs_torch is None)
    assert len(ops.ops_table(results).splitlines()) == len(results) + 1
    assert ops.ops_json(results)[0]["precision"] == precision


def test_names_choose_the_ops(kernels: Any) -> None:
    assert {r.op for r in ops.bench_ops(kernels, "fp32", ("adamw", "swiglu"), 1)} == {
        "swiglu_forward",
        "swiglu_backward",
        "adamw_step",
        "adamw_8bit_step",
    }
