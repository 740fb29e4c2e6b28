"""`cktrain doctor` on this machine: it is ready, names what it has, and judges a run's comm: block."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cktrain import cython_kernels
from cktrain.launch.cli import main

CONFIG = """
run: {dir: run, steps: 1}
model: {family: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1,
        intermediate_size: 8, vocab_size: 256}
data: {path: data, sequence_length: 8}
batch: {micro_batch_size: 1, global_batch_size: 1}
"""


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is True
    sections = {section["name"]: section for section in found["sections"]}
    assert list(sections) == [
        "software",
        "processor",
        "cores",
        "memory",
        "shared memory",
        "MPI",
        "RDMA",
        "TCP",
    ]
    assert sections["processor"]["facts"]["used"] == cython_kernels.best()
    assert f"{len(os.sched_getaffinity(0))} " in sections["cores"]["facts"]["for this process"]
    assert {t["name"] for t in found["transports"]} == {"shm", "rdma", "mpi", "tcp"}
    assert found["choices"][0]["transport"] == "shm"
    for section in found["sections"]:
        for finding in section["findings"]:
            assert finding["problem"] and finding["remedy"]


def test_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "between ranks" in lines and lines[-1] == "ready: training can start"
    for number, line in enumerate(lines):
        if line.startswith("  ! "):
            assert lines[number + 1].startswith("    -> "), line


def test_a_run_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    assert main(["doctor", str(config)]) == 0
    capsys.readouterr()
    assert main(["doctor", str(config), "--set", "comm.transport=rdma", "--set", "comm.device=none9"]) == 1
    out = capsys.readouterr().out
    assert "x comm.transport is rdma, and " in out and out.endswith("training cannot start\n")


def test_overrides_without_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--set", "comm.transport=tcp"]) == 2
    assert "[doctor] --set changes keys of a CONFIG" in capsys.readouterr().err
