"""The recipe for a pyverbs that fits the system's libibverbs (docs/rdma_setup.md), tried: a build, and what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import guest
import pytest
import selected
from guest import Machine
from selected import ROOT

from cktrain.comm.transport.verbs_problems import installed_library, private_version

pytestmark = [pytest.mark.guest, pytest.mark.nightly]

TRY = """
from cktrain.comm.transport import verbs
assert verbs.load_provider("pyverbs").NAME == "pyverbs"
import pyverbs
print(pyverbs.__path__[0])
"""


def test_a_pyverbs_built_by_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made for this system's libibverbs, cktrain takes it, and it carries data."""
    monkeypatch.chdir(ROOT)
    guest.setup()
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(["examples/build_pyverbs.sh", str(python)], check=True)
    library = installed_library()
    assert library is not None
    built = next((environment / "lib").glob("python3*/site-packages")) / "pyverbs"
    assert private_version(next(built.glob("device.*.so"))) == library.private

    # The environment of the tests has cktrain and what it needs, this one pyverbs: the one is shown the other.
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "pyverbs").symlink_to(built)
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(packages / "pyverbs")

    tests = selected.pytest_command("rdma", "tests/comm/rdma/test_data_path.py", "-k", "pyverbs", "-q")
    status = guest.run(
        ["bash", "-c", '. tests/guest/join.sh; exec "$@"', "-", *tests],
        Machine(),
        variables={"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        time_limit_s=600,
    )
    assert status == 0
