"""docs/python.md has the reference that the docstrings make, and examples/python_api.py does what it says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/python_reference.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("python_reference", ROOT / "docs" / "python_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_docstrings_say(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert page[page.index(script.HEADING) :] == script.reference(), "run python docs/python_reference.py"


def test_everything_public_is_in_the_reference(script: ModuleType) -> None:
    import cktrain

    assert {*script.FUNCTIONS, *script.CLASSES, "__version__"} == set(cktrain.__all__)
    assert "#### `Model.gradients(ids, labels=None)`" in script.reference()
    assert "- `ValueError`: " in script.reference()


def test_the_example_runs(tmp_path: Path) -> None:
    """Twice: the second time it goes on from what is there."""
    command = [sys.executable, str(ROOT / "examples" / "python_api.py"), str(tmp_path / "all")]
    environ = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    for _ in range(2):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "the largest gradient is of model." in done.stdout
    assert "all 80 steps are done already" in done.stdout
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {"data", "exported", "loss.png", "run"}
