"""Programs of several ranks: started by mpirun, watched, and not outlived by anything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import machine_load
import pytest

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))  # for `import job`


@pytest.fixture(scope="session", autouse=True)
def nurseries() -> Iterator[None]:
    """The processes that ranks are forked from end with the tests; in a guest they begin before a test opens a device."""
    import job

    if machine_load.IN_GUEST:
        job.nursery(rdma=True)
    yield
    job.close_nurseries()


@dataclass(frozen=True)
class Job:
    """What came of a program of several ranks."""

    status: int
    output: str
    """stdout and stderr of all ranks and of mpirun."""
    seconds: float


@pytest.fixture
def run_ranks(mpirun: Callable[[int], list[str]]) -> Callable[..., Job]:
    """`run_ranks(ranks, program, *arguments)` runs tests/comm/<program> on that many ranks."""

    def run(ranks: int, program: str, *arguments: str, limit_s: float = 120, **environment: str) -> Job:
        command = [*mpirun(ranks), sys.executable, str(FOLDER / program), *arguments]
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"{program} {' '.join(arguments)} hung for {limit_s:g} s:\n{output}")
        return Job(process.returncode, output, time.monotonic() - began)

    return run
