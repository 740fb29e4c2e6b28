"""`mpiexec -n 2 cktrain train` under MPICH, from PyPI, into an environment of its own: the losses of one process.

The tests' own environment has Open MPI; the MPICH one sees all of its packages but mpi4py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import yaml

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
    "precision": "fp64",
    "log": {"every": 1},
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with MPICH."""
    environment = tmp_path_factory.mktemp("mpich") / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "install", "-q", "mpich", "mpi4py"], check=True
    )
    packages = next((environment / "lib").glob("python3*/site-packages"))
    (packages / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return environment / "bin"


def train(programs: Path, folder: Path, ranks: int, transport: str) -> list[float]:
    """The losses of a run in fp64 on the reference kernels."""
    name = f"{transport}-{ranks}"
    np.random.default_rng(1).integers(0, 61, 4000).astype(np.uint16).tofile(folder / "tokens.bin")
    config = {**CONFIG, "run": {**CONFIG["run"], "dir": name}, "comm": {"transport": transport}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    command = [str(programs / "python"), "-m", "cktrain.launch.cli", "train", f"{name}.yaml"]
    if ranks > 1:
        command = [str(programs / "mpiexec"), "-n", str(ranks), *command]
    environment = {**os.environ, "CKTRAIN_ISA": "reference"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if ranks > 1:
        expected = {"mpi": "transport: mpi", "auto": "transport: shm"}[transport]
        assert expected in done.stdout + done.stderr
    return [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_the_library_is_mpich(programs: Path) -> None:
    ask = "from mpi4py import MPI; print(MPI.Get_library_version())"
    done = subprocess.run([programs / "python", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MPICH")


@pytest.mark.parametrize("transport", ["mpi", "auto"])
def test_two_ranks_equal_one_process(programs: Path, tmp_path: Path, transport: str) -> None:
    """fp64, summed in another order: 1e-10, the bound of every layout."""
    alone = train(programs, tmp_path, 1, "auto")
    both = train(programs, tmp_path, 2, transport)
    assert len(both) == 10
    np.testing.assert_allclose(both, alone, rtol=1e-10)
