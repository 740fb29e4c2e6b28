"""What the tests that boot guests share. They take minutes, and run only when -m names their marker."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cktrain", "comm", "cython_kernels", "launch")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guest: boots a guest, and runs only when -m names it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "guest" in re.findall(r"\w+", config.option.markexpr):
        return
    unasked = [item for item in items if item.get_closest_marker("guest")]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session")
def compiled() -> None:
    """cktrain has its .pyc files: the guests' root is read-only, and each would compile again what has none, for seconds.

    One after the other: two workers that compile the same files may take each other's unfinished ones.
    """
    import guest

    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with guest.locked(build / "compiled.lock"):
        subprocess.run([sys.executable, "-m", "compileall", "-q", *PACKAGES], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def environment(compiled: None) -> Iterator[dict[str, str]]:
    """Variables of the tests in the guest: Python finds the system's pyverbs, and nothing else of the system's."""
    import guest
    import providers

    guest.setup()
    with tempfile.TemporaryDirectory() as link:
        # Each plugin that loads costs seconds where Python is emulated.
        yield {
            **providers.variables(Path(link)),
            "PATH": os.environ["PATH"],  # with mpirun
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
