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
