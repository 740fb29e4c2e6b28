"""From a process to its group: who are we, and what carries the bytes.

`init` reads the launcher's environment (`cktrain.comm.environment`); a process on its own, or in a job of
one, gets a `SoloGroup` and never loads MPI. All others get an `MPIGroup` over all ranks of the job.

A program's frame, as the command line has it:

    group = init()
    try:
        code = run(group)
        group.close()
    except BaseException:
        traceback.print_exc()
        abort(group, 1)
    sys.exit(code)

`close` on every rank before a planned exit lets the exit status (0, 75, ...) through mpirun. `abort` on an
unplanned one ends the other ranks too, instead of leaving them to wait for their deadline.

To stop a job and keep its status, signal the ranks, or send SIGUSR1 to mpirun, which passes it on. SIGTERM or
SIGINT to Open MPI 5's mpirun reaches the ranks too, but SIGKILL follows a quarter of a second later, and
mpirun itself ends with 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from cktrain.comm.environment import ProcessEnvironment, job_name, read_process_environment
from cktrain.comm.errors import RendezvousError, TransportUnavailableError
from cktrain.comm.group import Group
from cktrain.comm.solo_group import SoloGroup

TRANSPORTS = ("auto", "mpi", "shm")


def init(
    *,
    transport: str = "auto",
    timeout_s: float = 120.0,
    check: bool = False,
    environ: Mapping[str, str] = os.environ,
    engine_core: int | None = None,
) -> Group:
    """Return the group of all ranks of this job, named "world".

    Args:
        transport: "auto" or "mpi" (the only one that carries bytes between processes).
        timeout_s: deadline of every wait, seconds.
        check: compare the calls of all ranks before each collective (for debugging: a round trip per call).
        environ: the environment to read.
        engine_core: core of the thread that moves asynchronous operations; None: where the process runs.

    Raises:
        ValueError: unknown transport, or a deadline that is not above 0.
        RendezvousError: the launcher's variables contradict each other, or the MPI that mpi4py loads is not
            the one that started the ranks.
        TransportUnavailableError: several ranks, and no MPI to join them.
    """
    if transport not in TRANSPORTS:
        raise ValueError(
            f"[comm] transport {transport!r} is not built in. Give one of {', '.join(TRANSPORTS)}."
        )
    process = read_process_environment(environ)
    if process.size == 1:
        return SoloGroup("world", timeout_s)
    one_node = process.size is not None and process.local_size == process.size
    if transport == "shm" and not one_node:
        raise TransportUnavailableError(
            "comm", "shm", {process.rank: f"{describe(process)}, {process.local_size} of them on this node"},
            "Use comm.transport: auto",
        )  # fmt: skip
    if one_node and transport in ("auto", "shm"):
        return _init_shm(process, timeout_s, environ, engine_core)
    return _init_mpi(process, timeout_s, check)


def _init_shm(
    process: ProcessEnvironment,
    timeout_s: float,
    environ: Mapping[str, str],
    engine_core: int | None,
) -> Group:
    from cktrain.comm.node import join_node
    from cktrain.comm.shm_group import ShmGroup

    assert process.size is not None
    key = job_name(environ, os.getppid())
    node = join_node(key, process.rank, process.rank, process.size, timeout_s, engine_core=engine_core)
    return ShmGroup(node, range(process.size), "world", timeout_s)


def _init_mpi(process: ProcessEnvironment, timeout_s: float, check: bool) -> Group:
    try:
        from cktrain.comm.mpi_group import init_world
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError when it finds no MPI library
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TransportUnavailableError(
            "comm",
            "mpi",
            {process.rank: f"{describe(process)}, but mpi4py does not load: {reason}"},
            'Install it with: pip install "cktrain[mpi]"',
        ) from error
    group, library = init_world(timeout_s, check)
    if process.size is not None and group.size != process.size:
        raise RendezvousError(
            "comm.mpi",
            f"{describe(process)}, but mpi4py's MPI ({library}) sees {group.size}: the ranks were not "
            "started by the mpirun of that MPI",
            _matching_launcher(),
        )
    return group


def abort(group: Group, code: int) -> NoReturn:
    """End this process and all other ranks of its job with exit status `code`.

    For the rank that cannot go on (uncaught exception, lost peer): the others do not wait for it. What was
    printed so far is flushed first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    group.abort(code)


def describe(process: ProcessEnvironment) -> str:
    """Return who this process is, for a message."""
    size = "an unknown number of" if process.size is None else str(process.size)
    return f"the {process.source} environment says rank {process.rank} of {size} ranks"


def _matching_launcher() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return f"Start the job with {beside}"
    return "Start the job with the mpirun of that MPI, or install mpi4py for the MPI whose mpirun you use"
