"""One job of several ranks that trains one run after another (`tests/cktrain/parallel/layouts.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "cktrain" / "parallel" / "layouts.py"

Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def run_cases(mpirun: Callable[[int], list[str]], tmp_path: Path) -> Runner:
    """`run_cases(cases, transport="mpi")` -> results by name, of one job; its data are in VOCABULARY.bin."""

    def run(cases: list[dict[str, Any]], transport: str = "mpi") -> dict[str, Any]:
        for words in {case["config"]["model"].get("vocab_size", 61) for case in cases} | {61}:
            write_tokens(tmp_path, words)
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        ranks = max(case["ranks"] for case in cases)
        job = subprocess.run(
            [*mpirun(ranks), sys.executable, str(PROGRAM), "cases.json", "results.json", transport],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,  # for a job that hangs: eight ranks on two busy cores take minutes
            check=False,
        )
        print(job.stdout)
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
        results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
        return results

    return run


def write_tokens(folder: Path, vocab: int) -> None:
    """A raw uint16 file in which each id mostly follows from the one before."""
    file = folder / f"{vocab}.bin"
    if file.exists():
        return
    rng = np.random.default_rng(7)
    ids = np.zeros(3000, np.uint16)
    for i in range(1, ids.size):
        ids[i] = (int(ids[i - 1]) * 3 + 1) % vocab if rng.random() < 0.8 else rng.integers(vocab)
    ids.tofile(file)
