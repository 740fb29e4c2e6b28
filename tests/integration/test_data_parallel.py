"""`mpirun -n 2 cktrain train` gives the losses of one process, stops and resumes like one, and ends cleanly."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.mpi

CONFIG = {
    "run": {"steps": 20, "seed": 5},
    "model": {
        "family": "llama",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "vocab_size": 61,
    },
    "data": {"path": "tokens.bin", "sequence_length": 16},
    "batch": {"micro_batch_size": 2, "global_batch_size": 8},
    "optimizer": {"lr": 0.01},
    "log": {"every": 1},
}


@pytest.fixture
def train(tmp_path, mpirun):
    """`train(ranks, name, isa, **overrides)` -> (exit status, losses, output) of one job in tmp_path/name."""
    rng = np.random.default_rng(1)
    rng.integers(0, 61, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")

    def run(ranks: int, name: str, isa: str | None, *overrides: str, kill_after: str | None = None):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, "run": {**CONFIG["run"], "dir": str(tmp_path / name)}}))
        command = [sys.executable, "-m", "cktrain.launch.cli", "train", str(path)]
        for override in overrides:
            command += ["--set", override]
        if ranks > 1:
            command = [*mpirun(ranks), *command]
        environment = dict(os.environ)
        if isa:
            environment["CKTRAIN_ISA"] = isa
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if kill_after is not None:
            log = tmp_path / name / "metrics.jsonl"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (
                log.exists() and f'"step": {kill_after},' in log.read_text()
            ):
                time.sleep(0.02)
            process.send_signal(signal.SIGUSR1)  # the one that Open MPI's mpirun passes on
        output, _ = process.communicate(timeout=180)
        metrics = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return process.returncode, [line["loss"] for line in lines], output

    return run


def test_two_ranks_equal_one_in_fp64(train):
    """Reference kernels: only the order of additions differs, 1e-10 over 20 steps."""
    one = train(1, "one", "reference", "precision=fp64")
    two = train(2, "two", "reference", "precision=fp64")
    four = train(4, "four", "reference", "precision=fp64")
    assert one[0] == two[0] == four[0] == 0, two[2]
    assert len(one[1]) == 20
    np.testing.assert_allclose(two[1], one[1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(four[1], one[1], rtol=0, atol=1e-10)


def test_two_ranks_equal_one_in_fp32(train):
    """Compiled kernels: sums of a few thousand fp32 terms in another order, 1e-5 over 20 steps."""
    one, two = (train(n, name, None, "precision=fp32") for n, name in ((1, "one"), (2, "two")))
    assert one[0] == two[0] == 0, two[2]
    np.testing.assert_allclose(two[1], one[1], rtol=0, atol=1e-5)


def test_a_signal_stops_both_ranks_and_the_resumed_run_is_the_same(train, tmp_path):
    whole = train(2, "whole", "reference", "precision=fp64", "run.steps=60")
    first = train(2, "parts", "reference", "precision=fp64", "run.steps=60", kill_after="5")
    assert first[0] == 75, first[2]
    assert "resume with: mpirun -n 2 cktrain train" in first[2]
    assert len(first[1]) < 60
    second = train(2, "parts", "reference", "precision=fp64", "run.steps=60")
    assert second[0] == 0, second[2]
    assert second[1] == whole[1]


def test_only_rank_0_prints_and_each_rank_has_its_log(train, tmp_path):
    status, _, output = train(2, "run", None)
    assert status == 0
    assert output.count("step: 20  loss:") == 1
    for rank in (0, 1):
        assert "step: 20  loss:" in (tmp_path / "run" / f"rank{rank}.log").read_text()


@pytest.mark.parametrize("parallel", ["data=2", "pipeline=2", "tensor=2"])
def test_bad_data_ends_all_ranks_with_status_2(train, tmp_path, parallel):
    """Windows are read in order: the id at 500 comes in step 4 and belongs to the second half of the batch."""
    path = tmp_path / "tokens.bin"
    ids = np.fromfile(path, np.uint16)
    ids[3 * 8 * 16 + 5 * 16 + 3] = 999
    ids.tofile(path)
    status, losses, output = train(2, "bad", None, "data.shuffle=false", f"parallel.{parallel}")
    assert status == 2, output
    assert len(losses) == 3
    assert "token id 999 at position 467" in output and "3 steps are saved in" in output
    assert (tmp_path / "bad" / "checkpoints" / "step-00000003" / "COMPLETE").exists()


def test_input_that_all_ranks_refuse_is_said_once(train, tmp_path):
    status, _, output = train(2, "bad", None, "data.path=nothing.bin")
    assert status == 2
    assert output.count("nothing.bin: no such file or folder") == 1 and "(rank 0, 1)" in output


def test_a_config_that_all_ranks_refuse_is_said_once(train):
    """Before they meet: rank 0 speaks first, and its end stops the others."""
    status, _, output = train(2, "bad", None, "model.hidden_size=25")
    assert status == 2
    assert output.count("hidden_size 25") == 1, output


def test_the_bubble_stands_beside_the_schedules_own(train):
    """2 stages, 4 micro-batches: 1/5 of the time if they were balanced; a stage never waits less than the schedule."""
    status, losses, output = train(2, "stages", None, "parallel.pipeline=2", "parallel.data=1")
    assert status == 0 and len(losses) == 20, output
    line = next(line for line in output.splitlines() if "pipeline bubble" in line)
    measured, own = (float(text.rstrip("%")) for text in line.split() if text.endswith("%"))
    assert 0 < own < 100 and own - 1 <= measured < 100


def test_folders_that_are_not_shared_are_refused_at_the_start(tmp_path, mpirun):
    """One run.dir, relative to each rank's own folder: rank 1 and its host are named, and nothing is trained."""
    rng = np.random.default_rng(1)
    rng.integers(0, 61, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    data = {**CONFIG["data"], "path": str(tmp_path / "tokens.bin")}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": data, "run": {**CONFIG["run"], "dir": "run"}}))
    one = [sys.executable, "-m", "cktrain.launch.cli", "train", str(path)]
    command = [
        *mpirun(1),
        "--wdir",
        str(tmp_path / "a"),
        *one,
        ":",
        "-n",
        "1",
        "--wdir",
        str(tmp_path / "b"),
        *one,
    ]
    for folder in "ab":
        (tmp_path / folder).mkdir()
    job = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert job.returncode == 2, job.stdout + job.stderr
    assert f"rank 1 ({platform.node()}) does not see in {tmp_path / 'b' / 'run'}" in job.stderr
    assert not (tmp_path / "a" / "run" / "checkpoints").exists()
