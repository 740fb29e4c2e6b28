"""A short data-parallel run over RDMA has the losses of the same run over MPI, to the bit: reductions have one order.

At night: tests/guest/test_two_nodes.py holds a training over RDMA against one process, to the bit, in CI.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = [pytest.mark.rdma, pytest.mark.nightly]

PROGRAM = Path(__file__).parent / "train_each.py"
STEPS = 3
CONFIG = {
    "run": {"steps": STEPS, "seed": 5},
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
    "precision": "fp32",
    "log": {"every": 1},
}


def test_losses_equal_those_over_mpi(tmp_path: Path, mpirun: Callable[[int], list[str]], device: str) -> None:
    # A few of the words alone, so that a few steps show the loss falling.
    np.random.default_rng(1).integers(0, 4, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    providers = {"mpi": "native", "native": "native", "pyverbs": "pyverbs"}
    jobs = []
    for name, provider in providers.items():
        run = {**CONFIG["run"], "dir": str(tmp_path / name)}  # type: ignore[dict-item]
        comm = {"transport": "mpi" if name == "mpi" else "rdma"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**CONFIG, "run": run, "comm": comm}))
        jobs += [f"{name}.yaml", provider]
    done = subprocess.run(
        [*mpirun(2), sys.executable, str(PROGRAM), device, *jobs],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,  # so slow is no host; it ends a job that hangs
        check=False,
    )
    assert done.returncode == 0, done.stdout
    losses = {
        name: [
            json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in providers
    }
    assert len(losses["mpi"]) == STEPS and losses["mpi"][-1] < losses["mpi"][0]
    assert losses["native"] == losses["pyverbs"] == losses["mpi"]
    packets = {
        name: int(count)
        for name, count in re.findall(r"^(\w+)\.yaml received (\d+) packets", done.stdout, re.M)
    }
    assert packets["mpi"] == 0 and min(packets["native"], packets["pyverbs"]) > STEPS * 10, packets
