"""The recipe for a pyverbs that fits the system's libibverbs gives one that carries data."""

import os
import subprocess
import sys
from pathlib import Path

import guest
import pytest
from guest import Machine

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_a_pyverbs_built_by_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    guest.setup()
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(["examples/build_pyverbs.sh", str(python)], check=True)
    packages = subprocess.run(
        [str(python), "-c", "import pyverbs, sys; print(pyverbs.__path__[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "pyverbs").symlink_to(packages)
    paths = [str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    tests = "import pytest, sys; sys.exit(pytest.main())"
    selected = "tests/comm/rdma/test_data_path.py -m rdma -k pyverbs -q -p no:cacheprovider"
    command = [sys.executable, "-c", tests, *selected.split()]
    status = guest.run(
        ["bash", "-c", '. tests/guest/join.sh; exec "$@"', "-", *command],
        Machine(),
        variables={"PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        time_limit_s=600,
    )
    assert status == 0
