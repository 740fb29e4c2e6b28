"""The process of somebody who uses cktrain as a library: it is bound once, before the first numpy array if that can be.

The command line binds for each command (`bind.py`). A script or a notebook has its own order of imports: `import cktrain`
loads nothing, and the first `bind`, `load` or `train` binds. Where numpy is loaded already, binding still places the
kernels' threads, but it comes too late for numpy's own; what that costs is said once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import MutableMapping

from cktrain.comm.environment import ProcessEnvironment, read_process_environment
from cktrain.config import LaunchConfig
from cktrain.host.bind import Binding, bind

_bound: list[Binding] = []

LATE = (
    "numpy was loaded before cktrain bound this process to its cores: numpy's BLAS has a thread per core already, and "
    "while numpy multiplies they take the cores from cktrain's kernels. Nothing is wrong, but both are slower. Call "
    "cktrain.bind() before `import numpy`, or set OPENBLAS_NUM_THREADS=1 (MKL_NUM_THREADS=1)."
)


def environment() -> MutableMapping[str, str]:
    """What the process was told from outside."""
    return os.environ


def rank_of_this_process() -> ProcessEnvironment:
    """Its place in the job that a launcher has started; alone where there is none."""
    return read_process_environment(os.environ)


def bind_once(threads: int | None = None) -> Binding:
    """Bind this process, unless that was done; returns where it runs.

    `threads` of the kernels; None: one per core that the process may use, or what was chosen before. Raises ValueError
    where the process has fewer cores.
    """
    if not _bound:
        if "numpy" in sys.modules and os.environ.get("OPENBLAS_NUM_THREADS") != "1":
            warnings.warn(LATE, stacklevel=3)
        _bound.append(bind(read_process_environment({}), threads=threads))
    found = _bound[0]
    if threads is not None and not 1 <= threads <= len(found.cpus):
        raise ValueError(
            f"[host] threads: {threads}, and this process is bound to {len(found.cpus)} cores. Give 1 to {len(found.cpus)}."
        )
    return found


def bind_for(launch: LaunchConfig, tensor: int, process: ProcessEnvironment) -> Binding:
    """Bind this rank of a run as the configuration's `launch:` says; `tensor` ranks are to be neighbours. ValueError."""
    binding = bind(
        process,
        mode=launch.bind,
        threads=launch.threads,
        tensor=tensor,
        progress_core=launch.progress_core,
    )
    _bound[:] = [binding]
    return binding
