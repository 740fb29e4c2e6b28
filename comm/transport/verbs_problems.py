"""Why verbs cannot be had in this Python, in a sentence, and the one thing to do about it.

pyverbs and libibverbs must fit each other. pyverbs calls a function of libibverbs that is no part of its stable
interface; such functions carry a number (the symbol version IBVERBS_PRIVATE_n) that both files must agree on:

| n | rdma-core |
|---|---|
| 34 | 34 to 56 (Debian 12 and 13) |
| 57 | 57, 58 |
| 59 | 59 to 63 |
| 64 | 64 |

A pyverbs from PyPI was built for the newest n, and fails to import with the libibverbs of most distributions, in
words ("undefined symbol", "version not found") that tell nobody what to do. The numbers are read from the two files.
The native provider calls only the stable interface, and has no such trouble.
"""

from __future__ import annotations

import ctypes
import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

RECIPE = "docs/rdma_setup.md"

_RDMA_CORE_OF_PRIVATE = {34: "34 to 56", 57: "57 and 58", 59: "59 to 63", 64: "64"}

# Where distributions put python3-pyverbs: Debian's family, then Fedora's and SUSE's.
DISTRIBUTION_FOLDERS = (
    Path("/usr/lib/python3/dist-packages"),
    *sorted(Path("/usr").glob("lib*/python3.*/site-packages")),
)


class Problem(NamedTuple):
    """What is in the way, and what takes it out of the way."""

    reason: str
    remedy: str


class Library(NamedTuple):
    """The libibverbs that this process loads."""

    path: Path
    version: str
    """rdma-core's, such as "44.0"; "?" where the file name does not tell."""
    private: int | None
    """n of IBVERBS_PRIVATE_n."""


def installed_library(soname: str = "libibverbs.so.1") -> Library | None:
    """Return the libibverbs that the dynamic linker finds, or None."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return None
    maps = Path("/proc/self/maps").read_text()
    found = re.search(r"(/\S*/" + re.escape(soname) + r"\S*)", maps)
    return None if found is None else describe_library(Path(found[1]))


def describe_library(path: Path) -> Library:
    """Return what a libibverbs tells of itself by its name (libibverbs.so.1.14.44.0) and content."""
    path = path.resolve()
    version = re.search(r"\.so\.1\.\d+\.([\d.]+)$", path.name)
    return Library(path, version[1] if version else "?", private_version(path))


def private_version(path: Path) -> int | None:
    """Return the n of IBVERBS_PRIVATE_n that a binary file names, or None."""
    found = re.search(rb"IBVERBS_PRIVATE_(\d+)", path.read_bytes())
    return int(found[1]) if found else None


def explain_import(provider: str, error: ImportError) -> Problem:
    """Return why a provider ("native" or "pyverbs") did not load, seeing the files of this machine."""
    if "libibverbs.so.1" in str(error) and "cannot open shared object" in str(error):
        return _no_library()
    if provider == "native" and "libibverbs.so.1" in str(error):
        return Problem(
            f"the system's libibverbs does not load ({_first_line(error)})",
            "Install it again (apt-get install --reinstall libibverbs1; dnf reinstall libibverbs)",
        )
    if provider == "native":
        return Problem(f"cktrain's own binding does not load ({_first_line(error)})", "Install cktrain again")
    return explain_pyverbs(error, sys.path, DISTRIBUTION_FOLDERS, installed_library())


def explain_pyverbs(
    error: ImportError, search_path: Iterable[str], distribution: Iterable[Path], library: Library | None
) -> Problem:
    """Return why pyverbs did not import.

    Args:
        error: what the import raised.
        search_path: the folders that Python looks into.
        distribution: the folders where a distribution's package may lie, whatever Python it is for.
        library: the system's libibverbs.
    """
    here = next((Path(p) / "pyverbs" for p in search_path if (Path(p) / "pyverbs").is_dir()), None)
    if library is None:
        return _no_library()
    if here is None:
        for folder in distribution:
            if (folder / "pyverbs").is_dir():
                return _elsewhere(folder / "pyverbs")
        return Problem(
            "pyverbs is not installed",
            f"apt-get install python3-pyverbs (dnf: the same name), or see {RECIPE}",
        )
    device = _extension(here, "device")
    if device is None:
        return _elsewhere(here)
    wanted = private_version(device)
    if wanted is not None and library.private is not None and wanted != library.private:
        return Problem(
            f"the pyverbs in {here} was built for rdma-core {_range(wanted)}, and the system's libibverbs is of "
            f"rdma-core {library.version} (private interface {wanted} against {library.private}: they must be "
            "equal)",
            f"Remove that pyverbs (pip uninstall pyverbs) and take the distribution's (apt-get install "
            f"python3-pyverbs), or build one for rdma-core {_range(library.private)} as {RECIPE} shows",
        )
    return Problem(f"the pyverbs in {here} does not import ({_first_line(error)})", f"See {RECIPE}")


def _elsewhere(folder: Path) -> Problem:
    """A pyverbs that this Python does not see, or cannot load."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if _extension(folder, "device") is not None:
        link = Path(sysconfig.get_path("purelib")) / "pyverbs"
        return Problem(
            f"python3-pyverbs is installed, but this Python does not look into {folder.parent}",
            f"ln -s {folder} {link}",
        )
    built_for = sorted({m[1] for f in folder.glob("*.so") if (m := re.search(r"\.cpython-3(\d+)-", f.name))})
    versions = ", ".join(f"3.{minor}" for minor in built_for) or "another Python"
    return Problem(
        f"the pyverbs in {folder} is for Python {versions}, and this is {running}",
        f"Use the native provider, run cktrain with Python {versions}, or build pyverbs for this Python as {RECIPE} "
        "shows",
    )


def _extension(folder: Path, module: str) -> Path | None:
    """The compiled module that this Python would load from a folder."""
    path = folder / f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
    return path if path.exists() else None


def _no_library() -> Problem:
    return Problem(
        "libibverbs is not installed",
        "apt-get install ibverbs-providers rdma-core (dnf: libibverbs rdma-core)",
    )


def _range(private: int) -> str:
    return _RDMA_CORE_OF_PRIVATE.get(private, f"{private} or newer")


def _first_line(error: ImportError) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
