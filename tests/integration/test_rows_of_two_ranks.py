"""Two ranks of a launcher on a file of rows: rank 0 prepares them, both train on them, with the losses of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cktrain"))
from chat_models import write_rows, write_weights

CONFIG = {
    "run": {"epochs": 1},
    "model": {"from_pretrained": "model"},
    "adapter": {"r": 2},
    "data": {"train": "chat.jsonl", "validation": 0.1, "sequence_length": 64},
    "batch": {"global_batch_size": 8},
    "precision": "fp32",
    "checkpoint": {"every": 0},
    "log": {"every": 1},
}


def test_ranks_train_on_rows_that_rank_0_prepares(tmp_path):
    write_weights(tmp_path / "model")
    turns = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "a" * (i % 5 + 1)}]
        for i in range(60)
    ]
    write_rows(tmp_path / "chat.jsonl", [{"messages": each} for each in turns])
    losses, sizes = {}, {}
    for ranks in (1, 2):
        run = {**CONFIG["run"], "dir": f"run{ranks}"}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**CONFIG, "run": run}))
        launcher = ["launch", "-n", str(ranks)] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, "-m", "cktrain.launch.cli", *launcher, "train", "run.yaml"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert done.stdout.count("data.train: chat.jsonl -> ") == 1
        folder = tmp_path / f"run{ranks}"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[ranks] = [line["loss"] for line in lines if "loss" in line]
        sizes[ranks] = yaml.safe_load((folder / "config.yaml").read_text())["batch"]["micro_batch_size"]
    assert sizes == {1: 8, 2: 4}
    assert len(losses[1]) == 7 and losses[2] == pytest.approx(
        losses[1], rel=1e-5
    )  # fp32's sums in another order
