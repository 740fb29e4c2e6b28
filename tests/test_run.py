"""The entry `./run`, in a folder of its own whose virtual environment stands already and whose pip only writes a log."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "run"
ROOMS = ("cktrain", "comm", "cython_kernels", "launch")
PROJECT = """
[build-system]
requires = []
[project]
dependencies = []
[project.optional-dependencies]
mpi = []
test = []
"""
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m pip") echo "$@" >>pip.log ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def root(tmp_path):
    """A project of nothing, and a compiler and an objdump that do nothing."""
    root = tmp_path.resolve()
    shutil.copy(RUN, root / "run")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "setup.py").touch()
    for room in ROOMS:
        (root / room).mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    program(root / ".venv" / "bin" / "python", PYTHON.format(python=sys.executable))
    for name in ("cc", "objdump"):
        program(root / ".venv" / "bin" / name, "#!/bin/sh\necho 1.0\n")
    for name, text in (("pyvenv.cfg", ""), ("setup.log", ""), ("stamp-venv", f"{root}\n")):
        (root / ".venv" / name).write_text(text)
    return root


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def setup(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {
        name: value for name, value in os.environ.items() if name not in ("CFLAGS", "CPPFLAGS", "LDFLAGS")
    }
    path = f"{root}/.venv/bin{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "run", "setup"],
        cwd=root,
        env={**bare, "PATH": path, "CC": "cc", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def builds(root: Path) -> int:
    """How often the compiled modules were built."""
    log = root / "pip.log"
    return sum(line.endswith("-e .") for line in log.read_text().splitlines()) if log.exists() else 0


def test_a_compiler_that_is_named_and_is_none_is_refused(root):
    """What was built stands where a compiler is gone since, but one that somebody names is not passed over."""
    done = setup(root, CC="no-such-cc -O2")
    assert done.returncode == 2
    assert "[setup] CC=no-such-cc -O2 is no compiler. Name another one, or unset it." in done.stderr


def test_other_flags_build_again_and_the_same_do_not(root):
    counts = []
    for flags in ({}, {}, {"CFLAGS": "-O1"}, {"CFLAGS": "-O1"}, {"CPPFLAGS": "-O1"}, {"LDFLAGS": "-O1"}, {}):
        done = setup(root, **flags)
        assert done.returncode == 0, done.stderr
        counts.append(builds(root))
    assert counts == [1, 1, 2, 2, 3, 4, 5]


def test_what_the_build_is_made_of_builds_again(root):
    counts = []
    for change in (
        lambda: None,
        lambda: (root / "comm" / "engine.h").write_text("int a;\n"),
        lambda: (root / "comm" / "engine.h").write_text("int b;\n"),
        lambda: (root / "comm" / "group.py").write_text("a = 1\n"),  # is imported as it stands
        lambda: program(root / ".venv" / "bin" / "cc", "#!/bin/sh\necho 2.0\n"),
    ):
        change()
        assert setup(root).returncode == 0
        counts.append(builds(root))
    assert counts == [1, 2, 3, 3, 4]


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
