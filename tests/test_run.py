"""The entry `./run`, in a folder of its own whose virtual environment stands already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[1] / "run"


def test_a_compiler_that_is_named_and_is_none_is_refused(tmp_path):
    """What was built stands where a compiler is gone since, but one that somebody names is not passed over."""
    root = tmp_path.resolve()
    shutil.copy(RUN, root / "run")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name, text in (("pyvenv.cfg", ""), ("setup.log", ""), ("stamp-venv", f"{root}\n")):
        (root / ".venv" / name).write_text(text)
    done = subprocess.run(
        ["sh", "run", "setup"],
        cwd=root,
        env={**os.environ, "CC": "no-such-cc -O2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "[setup] CC=no-such-cc -O2 is no compiler. Name another one, or unset it." in done.stderr


def test_a_model_that_cannot_be_fetched_is_told_with_what_to_give_instead(tmp_path):
    """Of the entry the two functions alone; an index at a port where nobody listens."""
    text = RUN.read_text()
    functions = [
        text[text.index(f"\n{name}() {{") :].partition("\n}\n")[0] + "\n}\n"
        for name in ("stop", "fetch_model")
    ]
    done = subprocess.run(
        ["sh", "-eu", "-c", "".join(functions) + 'fetch_model "$1"', "run", str(tmp_path / "model.gguf")],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "./run finetune MODEL, a GGUF file or a folder" in done.stderr
    assert not (tmp_path / "model.gguf").exists()
