"""docs/python.md has the reference that the docstrings make, and the examples in Python do what they say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cktrain"))
from chat_models import write_rows, write_weights

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


def test_the_example_of_fine_tuning_runs(tmp_path: Path) -> None:
    """Its adapter, merged weights and GGUF file are there, and the loss of held-out rows has fallen."""
    model = write_weights(tmp_path / "model")
    said = [f"say {i % 7}" for i in range(40)]
    rows = [{"prompt": [{"role": "user", "content": each}], "completion": [{"role": "assistant", "content": "aa"}]}
            for each in said]  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", list(rows))
    script = str(ROOT / "examples" / "finetune_from_python.py")
    command = [sys.executable, script, str(model), str(tmp_path / "rows.jsonl"), str(tmp_path / "all")]
    environ = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "loss, after less before: -0." in done.stdout
    for name in ("adapter/adapter_config.json", "merged/model.safetensors", "model.gguf", "loss.png"):
        assert (tmp_path / "all" / name).is_file()
