"""What every test may use: hypothesis without deadlines, and `mpirun`, which runs Python on several ranks."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# A deadline per example measures the machine's load, not the code.
hypothesis.settings.register_profile("cktrain", deadline=None)
hypothesis.settings.load_profile("cktrain")

MpiRun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def mpirun(tmp_path: Path) -> MpiRun:
    """`mpirun(n, *arguments, timeout=120, check=True, env=None)`: Python with the arguments on n ranks, here.

    With `check`, a run that does not exit 0 fails the test and shows its output. Ranks may outnumber cores,
    and root may run them.
    """
    program = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("mpirun is not on the PATH (./run setup mpi)")

    def run(
        ranks: int,
        *arguments: str,
        timeout: float = 120,
        check: bool = True,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "TMPDIR": "/tmp",  # Open MPI's sockets need a short path
            **(env or {}),
        }
        line = [program, "-n", str(ranks), sys.executable, *arguments]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(line)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run
