"""`bench step`: what its rows count is what a step computes, and its shares are those of the register loop."""

import json

import pytest

from cktrain import cython_kernels
from cktrain.bench.step import bench_step
from cktrain.bench.table import step_table
from cktrain.config import Config
from cktrain.hf.folder import resolve_model

PRECISIONS = ["fp32"] + ["bf16"] * ("avx512bf16" in cython_kernels.available())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_and_shares(tiny, precision: str) -> None:
    config = tiny()
    report = bench_step(config, cython_kernels.load(), precision, steps=2)
    tokens = config.batch.global_batch_size * config.data.sequence_length
    assert report.tokens_per_s * report.step_s == pytest.approx(tokens)
    assert 0 < report.sustained_tflops <= report.peak_tflops
    assert report.mfu * report.peak_tflops == pytest.approx(report.tflops)
    ops = {row["name"]: row for row in report.ops}
    layers, micro_batches = config.model.num_hidden_layers, 4
    for name in ("attention_forward", "attention_backward", "swiglu_forward", "swiglu_backward"):
        assert ops[name]["calls"] == layers * micro_batches
    # Every multiply-add of the step is some op's, and none is counted twice. The step's figure leaves out the scores that
    # attention's backward computes again, a fifth of its work, which the op counts.
    flops = {name: 1e9 * row["gflops"] * row["s"] for name, row in ops.items()}
    of_the_step = 1e12 * report.tflops * report.step_s
    assert sum(flops.values()) - flops["attention_backward"] / 5 == pytest.approx(of_the_step, rel=1e-9)
    table = step_table(report)
    assert all(name in table for name in ops) and "% of its median" in table
    assert json.loads(json.dumps(report.as_dict()))["precision"] == precision


def test_a_run_of_epochs_is_measured_too(tiny) -> None:
    config = tiny(**{"run.steps": None, "run.epochs": 2})
    assert bench_step(config, cython_kernels.load(), "fp32", steps=1).step_s > 0


def test_an_adapter_is_measured_beside_its_base(tmp_path) -> None:
    """The optimizer has the adapter alone, and frozen matrices cost no gradient: of a linear's three products two remain."""
    from chat_models import write_weights

    write_weights(tmp_path)
    values = {
        "run": {"dir": str(tmp_path / "run"), "steps": 1},
        "model": {"from_pretrained": str(tmp_path)},
        "data": {"path": "unused", "sequence_length": 16},
        "batch": {"micro_batch_size": 2, "global_batch_size": 4},
    }
    flops = {}
    for name, more in (("full", {}), ("adapter", {"adapter": {"r": 2, "target_modules": ["q_proj"]}})):
        config = Config.model_validate({**values, **more})
        config = config.model_copy(update={"model": resolve_model(config.model)[0]})
        report = bench_step(config, cython_kernels.load(), "fp32", steps=1)
        flops[name] = report.tflops * report.step_s
    assert 0.5 < flops["adapter"] / flops["full"] < 0.8
