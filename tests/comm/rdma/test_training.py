"""A short data-parallel run over RDMA has the losses of the same run over MPI, to the bit: reductions have one order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.rdma

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


def test_losses_equal_those_over_mpi(
    tmp_path: Path, mpirun: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from ends import counters

    # A few of the words alone, so that a few steps show the loss falling.
    np.random.default_rng(1).integers(0, 4, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")

    def losses(name: str, transport: str, provider: str) -> list[float]:
        monkeypatch.setenv("CKTRAIN_VERBS", provider)
        path, folder = tmp_path / f"{name}.yaml", tmp_path / name
        run = {**CONFIG["run"], "dir": str(folder)}  # type: ignore[dict-item]
        path.write_text(yaml.safe_dump({**CONFIG, "run": run, "comm": {"transport": transport}}))
        command = [*mpirun(2), sys.executable, "-m", "cktrain.launch.cli", "train", str(path)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    over_mpi = losses("mpi", "mpi", "native")
    assert len(over_mpi) == STEPS and over_mpi[-1] < over_mpi[0]
    for provider in ("native", "pyverbs"):
        before = counters(device)
        assert losses(provider, "rdma", provider) == over_mpi
        after = counters(device)
        assert after["rcvd_pkts"] - before["rcvd_pkts"] > STEPS * 10
