"""The C engine under gcc's sanitizers: no stray access, no undefined behaviour, no data race between its threads.

The extension is built once more, in a folder of its own, and tests/comm/sanitized.py runs on it: ranks as threads of one
process, so that the thread sanitizer sees both ends of everything that ranks share.
"""

from __future__ import annotations

import concurrent.futures
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import setuptools

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-static-libubsan"),
    "thread": ("-fsanitize=thread",),
}
LIBRARY = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    # The interpreter keeps memory until its end; what is left then says nothing about the engine.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
    "TSAN_OPTIONS": "exitcode=66",
}


def library(sanitizer: str) -> str:
    """The sanitizer's run-time library; a test that cannot have it does not run."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    name = subprocess.run(
        [gcc, f"-print-file-name={LIBRARY[sanitizer]}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(name):
        pytest.skip(f"gcc has no {LIBRARY[sanitizer]}")
    return name


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str], Path]:
    """The engine's C sources with Cython's output among them, what to compile them with, and a folder."""
    folder = tmp_path_factory.mktemp("sanitized")
    here = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", lambda **_: None)
        made: list[Any] = runpy.run_path(str(ROOT / "setup.py"))["extensions"]()
    assert os.getcwd() == here
    extension = next(each for each in made if each.name == "cktrain.comm._engine")
    translated = folder / "_engine.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", str(ROOT / "comm" / "_engine.pyx"), "-o", str(translated)],
        check=True,
        cwd=ROOT,
    )
    sources = [str(translated), *(str(ROOT / name) for name in extension.sources if name.endswith(".c"))]
    include = [
        *(str(ROOT / name) for name in extension.include_dirs),
        sysconfig.get_path("include"),
        np.get_include(),
    ]
    defines = [f"-D{name}={value}" for name, value in extension.define_macros]
    return sources, [*(f"-I{name}" for name in include), *defines], folder


def build(engine: tuple[list[str], list[str], Path], sanitizer: str) -> Path:
    """The engine with that sanitizer in it."""
    sources, options, folder = engine
    folder = folder / sanitizer
    folder.mkdir()
    flags = ["-O1", "-g", "-fPIC", "-fno-omit-frame-pointer", "-w", *FLAGS[sanitizer]]

    def compile_one(source: str) -> str:
        made = str(folder / f"{Path(source).stem}.o")
        # Cython's output is not what is looked at; without optimization it compiles in a third of the time.
        level = ["-O0"] if source.endswith("_engine.c") else []
        subprocess.run(["gcc", "-c", source, "-o", made, *options, *flags, *level], check=True)
        return made

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources))
    made = folder / f"_engine{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["gcc", "-shared", *objects, "-o", str(made), "-pthread", *FLAGS[sanitizer]], check=True)
    return made


@pytest.mark.parametrize("sanitizer", list(FLAGS))
def test_the_engine(engine, sanitizer):
    preload = library(sanitizer)
    made = build(engine, sanitizer)
    command = [sys.executable, str(FOLDER / "sanitized.py"), str(made)]
    if sanitizer == "thread":  # its memory layout does not stand the randomization of recent kernels
        command = ["setarch", platform.machine(), "-R", *command]
    done = subprocess.run(
        command,
        env={**os.environ, **OPTIONS, "LD_PRELOAD": preload, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "engine: checked" in said and "ERROR:" not in said and "WARNING: ThreadSanitizer" not in said, said
