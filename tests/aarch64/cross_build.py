"""Cross-compile the kernels' modules: `python tests/aarch64/cross_build.py LIB`, called by emulated.py, which sets the
compiler and the headers. What to compile and how is read from setup.py.
"""

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Distribution

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "cktrain.cython_kernels."
# Opens a library that is not there; a slow twin of instructions that are not there.
LEFT_OUT = ("_onednn", "_isa_amx_emulated")


def described() -> dict[str, Any]:
    """What setup.py tells setuptools."""
    told: dict[str, Any] = {}
    setuptools.setup = told.update
    runpy.run_path(str(ROOT / "setup.py"))
    return told


def main(lib: Path) -> None:
    """Build into `lib`, and put Python's files beside the modules."""
    told = described()
    modules = [
        module
        for module in told["ext_modules"]
        if module.name.startswith(KERNELS) and module.name.removeprefix(KERNELS) not in LEFT_OUT
    ]
    settings = {name: told[name] for name in ("packages", "package_dir", "cmdclass")}
    distribution = Distribution({"name": "cktrain", "ext_modules": modules, **settings})
    build = distribution.get_command_obj("build_ext")
    build.build_lib, build.build_temp = str(lib), str(lib / "temp")
    build.ensure_finalized()
    build.run()
    for package, folder in told["package_dir"].items():
        to = lib.joinpath(*package.split("."))
        to.mkdir(parents=True, exist_ok=True)
        for file in (ROOT / folder).glob("*.py"):
            shutil.copyfile(file, to / file.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
