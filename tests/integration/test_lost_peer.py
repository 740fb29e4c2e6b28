"""A training run that loses a rank ends with 1, not with 75, which would mean "resume me"; so does one that cannot meet."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

CONFIG = {
    "run": {"dir": "run", "steps": 100_000, "seed": 5},
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
    "checkpoint": {"every": 0},
    "log": {"every": 1},
}


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_trainer_that_lost_a_peer_ends_with_1(tmp_path, transport, lost):
    np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{probe.getsockname()[1]}"
    places = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        | {"CKTRAIN_JOB": f"lost-{os.getpid()}-{transport}-{lost}", "CKTRAIN_RENDEZVOUS": rendezvous}
        for rank in range(2)
    ]
    command = [sys.executable, "-m", "cktrain.launch.cli", "train", "run.yaml"]
    said = [tmp_path / f"rank{rank}.txt" for rank in range(2)]
    ranks = []
    for place, file in zip(places, said, strict=True):
        with file.open("w") as output:
            ranks.append(
                subprocess.Popen(
                    [*command, "--set", f"comm.transport={transport}"],
                    cwd=tmp_path,
                    env={**os.environ, **place},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
            assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
            time.sleep(0.05)
        ranks[lost].send_signal(signal.SIGKILL)
        since = time.monotonic()
        status = ranks[1 - lost].wait(20)
        took = time.monotonic() - since
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    survivor = said[1 - lost].read_text()
    assert status == 1, survivor
    assert took < 2 + 3, f"{took:.1f} s"  # 2 s to notice, and the interpreter's end on a loaded machine
    assert (
        f"cktrain: rank {1 - lost}: [comm.{transport}] rank {1 - lost}: lost rank {lost} on " in survivor
    ), survivor
    assert "resume with" not in survivor


def test_a_transport_that_cannot_be_had_is_a_sentence(tmp_path):
    """Ranks on two nodes, and nobody says where rank 0 listens: status 1, the reasons, no traceback."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cktrain.launch.cli", "train", "run.yaml"],
        cwd=tmp_path,
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cktrain: ")]
    assert "[comm] transport auto is not available (rank 0: shm: " in line
    assert "tcp: nobody says where rank 0 listens" in line and "Set CKTRAIN_RENDEZVOUS=host:port" in line
    assert "Traceback" not in done.stderr
