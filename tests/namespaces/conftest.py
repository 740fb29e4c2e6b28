"""A cluster of two hosts, and trainings on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster  # beside this file

CONFIG = {
    "run": {"steps": 10, "seed": 5},
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
    "precision": "fp64",
    "comm": {"transport": "tcp"},
    "checkpoint": {"every": 5},
    "log": {"every": 1},
}


class Runs:
    """Trainings of one small model, on the reference kernels in fp64."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "CKTRAIN_ISA": "reference"}
        np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(folder / "tokens.bin")

    def command(self, name: str, *settings: str) -> list[str]:
        """`train CONFIG SETTINGS…` of a run."""
        path = self.folder / f"{name}.yaml"
        run = {**CONFIG["run"], "dir": str(self.folder / name)}
        path.write_text(yaml.safe_dump({**CONFIG, "run": run}))
        return ["train", str(path), *(word for setting in settings for word in ("--set", setting))]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def losses(self, name: str) -> list[float]:
        """Of the steps done so far."""
        metrics = self.folder / name / "metrics.jsonl"
        return (
            [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
            if metrics.exists()
            else []
        )

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen[str]) -> None:
        """Until the run has done so many steps."""
        deadline = time.monotonic() + 60
        while len(self.losses(name)) < step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)


CKTRAIN = [sys.executable, "-m", "cktrain.launch.cli"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def expected(runs: Runs) -> list[float]:
    """The losses of one process."""
    process = runs.start(*CKTRAIN, *runs.command("one"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return runs.losses("one")


@pytest.fixture
def cluster(runs: Runs) -> Iterator[Cluster]:
    """The two hosts; whatever still runs on them ends with the test."""
    with Cluster(runs.folder) as made:
        yield made
