"""The recipe for a pyverbs that fits the system's libibverbs (docs/rdma_setup.md), tried: a build, and what came of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cktrain.comm.transport.verbs_problems import installed_library, private_version

ROOT = Path(__file__).resolve().parents[1]

# All that the provider over pyverbs imports; without a device there is nothing more to be had on a machine.
TRY = """
import sys
sys.path[:0] = {path!r}
from cktrain.comm.transport import verbs
assert verbs.load_provider("pyverbs").NAME == "pyverbs"
import pyverbs
print(pyverbs.__path__[0])
"""


def test_a_pyverbs_built_by_the_recipe(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([str(ROOT / "examples" / "build_pyverbs.sh"), str(python)], check=True)
    library = installed_library()
    assert library is not None
    packages = next((environment / "lib").glob("python3*/site-packages"))
    built = next((packages / "pyverbs").glob("device.*.so"))
    assert private_version(built) == library.private
    # The environment of the tests has cktrain and what it needs, this one pyverbs: the one is shown the other.
    code = TRY.format(path=[str(packages)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(packages / "pyverbs")
