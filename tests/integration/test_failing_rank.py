"""A rank that fails while a run is composed ends all ranks at once with its reason: the others do not wait for it."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

CONFIG = {
    "run": {"dir": "run", "steps": 2},
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
    "comm": {"timeout_s": 300},
}
PROGRAM = """
import os, sys
import cktrain.compose
from cktrain.launch import cli

def fail(*_args, **_kwargs):
    raise {error}

rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK"))
if rank in {ranks!r}:
    cktrain.compose.{place} = fail
sys.exit(cli.main(sys.argv[1:]))
"""


def trained(tmp_path, command, ranks, place, error):
    """Status, standard error and seconds of a run in which `place` fails on these ranks."""
    np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(tmp_path / "tokens.bin")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "program.py").write_text(PROGRAM.format(ranks=ranks, place=place, error=error))
    began = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "place", "error", "told"),
    [
        (["1"], "ModelShard", 'ValueError("[disk] bad sector")', "cktrain: rank 1: [disk] bad sector"),
        (["0"], "ModelShard", "MemoryError()", "cktrain: rank 0: [memory] there is not enough"),
        (["0", "1"], "ModelShard", 'ValueError("[x] odd")', "cktrain: rank 0: [x] odd"),
        (["1"], "mixed_fingerprint", 'OSError(5, "Input/output error", "t.bin")', "cktrain: [system] t.bin: Input"),
    ],
)  # fmt: skip
def test_a_rank_that_fails_in_composition_ends_all_with_its_reason(
    mpirun, tmp_path, ranks, place, error, told
):
    command = [*mpirun(2), sys.executable, "program.py", "train", "run.yaml"]
    status, said, seconds = trained(tmp_path, command, ranks, place, error)
    assert status == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("cktrain: ")]
    assert line.startswith(told)
    assert "Traceback" not in said
    assert seconds < 60  # the deadline of a wait is 300 s
