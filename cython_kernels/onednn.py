"""Where a libdnnl (oneDNN 3) is looked for, which lends its bf16 products to the set "onednn" (csrc/onednn.c).

cktrain is built without it; what is found is opened at run time, once in a process. docs/onednn.md.
"""

from __future__ import annotations

import os
import site
import sys
from dataclasses import dataclass

from cktrain.cython_kernels import _onednn

SONAME = "libdnnl.so.3"


@dataclass(frozen=True)
class Library:
    """An opened libdnnl; `amx`: it finds AMX here, and the system lets this process use it."""

    path: str
    version: str
    amx: bool

    def __str__(self) -> str:
        return f"oneDNN {self.version} {'on' if self.amx else 'without'} AMX"


def find(named: str | None = None) -> Library:
    """Open `named`; when that is None, the first that fits of the environment's lib/, the user's, the loader's path.

    Raises ValueError with the reason for every place, when none fits.
    """
    reasons = []
    for path in [named] if named else [*_installed(), SONAME]:
        try:
            return Library(path, *_onednn.open_library(path))
        except OSError as error:
            reasons.append(str(error) if path in str(error) else f"{path}: {error}")
    raise ValueError(f"no libdnnl fits ({'; '.join(reasons)})")


def _installed() -> list[str]:
    """Where pip and conda put it: in lib/ of an environment, or of the user's own packages."""
    folders = [sys.prefix, *([site.getuserbase()] if site.ENABLE_USER_SITE else [])]
    paths = [os.path.join(folder, "lib", SONAME) for folder in folders]
    return [path for path in paths if os.path.exists(path)]
