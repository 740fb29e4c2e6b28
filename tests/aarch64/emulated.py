"""Run a Python of AArch64 with cktrain's kernels for it, on an x86-64 machine, by QEMU's user emulation.

    python tests/aarch64/emulated.py setup                    # as root: what must be here
    python tests/aarch64/emulated.py run -m pytest ARG...     # that there, after a build of what has changed

The kernels are cross-compiled from the same sources by the same setup.py (cross_build.py). The Python is Debian's for arm64,
unpacked into a cache and not installed, with numpy, ml_dtypes, pytest and hypothesis of the versions that are here, from
the package index. The tests are those that run here: they judge each instruction set of their CPU by the reference in numpy.

QEMU computes what the instructions say, one after another in plain C, slowly: what passes is correct under emulation, and
no time means anything. Threads are real ones; how memory is ordered between them is this machine's.

Exit status: the command's own; 123 where something is missing, and the message says what to install.
"""

import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CANNOT = 123
COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
PACKAGES = ("gcc-aarch64-linux-gnu", "qemu-user")
# Of Python's own packages and what they are linked to; {} stands for its version.
PYTHON = ("python{}-minimal", "libpython{}-minimal", "libpython{}-stdlib", "libpython{}-dev")
LIBRARIES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libcrypt1",
    "libbz2-1.0",
    "liblzma5",
)
MODULES = ("numpy", "ml_dtypes", "pytest", "hypothesis")
# manylinux tags of AArch64 that wheels of these have.
WHEELS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
LIB = ROOT / "build" / "aarch64"


class Missing(Exception):
    """This machine lacks something; the text says what to do."""


def cache() -> Path:
    """The folder that keeps the Python."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cktrain" / "aarch64"


def not_ready() -> str | None:
    """Why nothing can run here now, and what to do; or None."""
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        return "the emulation is set up from Debian's packages on x86_64"
    if (
        shutil.which(COMPILER) is None
        or shutil.which(EMULATOR) is None
        or not (cache() / "complete").exists()
    ):
        return "AArch64's emulation is not set up (as root: python tests/aarch64/emulated.py setup)"
    return None


def setup() -> None:
    """Install the cross compiler and the emulator (as root) and unpack the Python, each once.

    Raises:
        Missing: something is missing that this user cannot install.
    """
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        raise Missing(not_ready())
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        if os.geteuid() != 0:
            raise Missing(f"packages are missing (sudo apt-get install {' '.join(PACKAGES)})")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True, env=quiet
        )
    if not (cache() / "complete").exists():
        shutil.rmtree(cache(), ignore_errors=True)
        number = unpack_python()
        install_modules(number)
        (cache() / "complete").write_text(f"{number}\n")


def unpack_python() -> str:
    """Debian's Python for arm64, beside what apt knows of this machine's own packages; its version."""
    for folder in ("lists/partial", "archives/partial", "packages", "root"):
        (cache() / folder).mkdir(parents=True)
    (cache() / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State::Lists": cache() / "lists",
        "Dir::State::status": cache() / "status",
        "Dir::Cache": cache(),
    }
    apart = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *apart, "-qq", "update"], check=True)
    shown = subprocess.run(
        ["apt-cache", *apart, "depends", "python3-minimal"], capture_output=True, text=True
    )
    found = re.search(r"Depends: python(3\.\d+)-minimal", shown.stdout)
    if found is None:
        raise Missing("apt knows no python3-minimal of arm64 (is this Debian?)")
    names = [name.format(found[1]) for name in PYTHON] + [*LIBRARIES]
    packages = cache() / "packages"
    subprocess.run(["apt-get", *apart, "-qq", "download", *names], check=True, cwd=packages)
    for package in packages.iterdir():
        subprocess.run(["dpkg-deb", "-x", package, cache() / "root"], check=True)
    for folder in ("lists", "archives", "packages"):
        shutil.rmtree(cache() / folder)
    return found[1]


def install_modules(number: str) -> None:
    """Wheels of AArch64 for that Python, of the versions that are installed here."""
    where = ["--target", cache() / "site", "--python-version", number, "--only-binary=:all:"]
    platforms = [word for name in WHEELS for word in ("--platform", name)]
    wanted = [f"{name}=={version(name)}" for name in MODULES]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *where, *platforms, *wanted], check=True)


def python_number() -> str:
    """The version of the Python there, "3.11"."""
    return (cache() / "complete").read_text().strip()


def build() -> None:
    """Cross-compile what has changed, and put the packages' files beside the modules."""
    number = python_number()
    include = cache() / "root" / "usr" / "include"
    environment = {
        **os.environ,
        "CC": COMPILER,
        "LDSHARED": f"{COMPILER} -shared",
        "CPPFLAGS": f"-I{include / f'python{number}'} -idirafter {include}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{number.replace('.', '')}-aarch64-linux-gnu.so",
    }
    cross = Path(__file__).with_name("cross_build.py")
    subprocess.run([sys.executable, cross, LIB], check=True, cwd=ROOT, env=environment)


def start(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run the Python there with these arguments, on what was built; `options` are subprocess.run's."""
    if arguments[:2] == [
        "-m",
        "pytest",
    ]:  # the checkout has packages of the same names, which are not built for it
        arguments = [*arguments[:2], "-o", f"pythonpath={LIB}", "-p", "no:cacheprovider", *arguments[2:]]
    root = cache() / "root"
    python = root / "usr" / "bin" / f"python{python_number()}"
    paths = {"PYTHONPATH": f"{LIB}:{cache() / 'site'}", "PYTHONPYCACHEPREFIX": str(LIB / "pycache")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [EMULATOR, "-L", root, "-cpu", "max", python, "-P", *arguments],
        cwd=ROOT,
        env=environment | paths,
        check=False,
        **options,
    )


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Alone among processes that build."""
    LIB.mkdir(parents=True, exist_ok=True)
    with (LIB / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """`setup`, or `run` and a command line of Python."""
    try:
        if arguments == ["setup"]:
            setup()
            return 0
        if not arguments or arguments[0] != "run":
            print(__doc__)
            return 2
        if reason := not_ready():
            raise Missing(reason)
        with locked():
            build()
        return start(arguments[1:]).returncode
    except Missing as missing:
        print(f"[aarch64] {missing}.", file=sys.stderr)
        return CANNOT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
