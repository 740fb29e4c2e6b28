"""From a process to its group: who are we, and what carries the bytes.

`init` reads the launcher's environment (`cktrain.comm.environment`); a process on its own, or in a job of
one, gets a `SoloGroup`. Ranks of one node get a `ShmGroup`; ranks on several nodes an `MPIGroup` where MPI started
them, else a `TcpGroup` (docs/transports.md). MPI is loaded only where it is used.

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

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from cktrain.comm.algorithms import check_override
from cktrain.comm.environment import (
    ProcessEnvironment,
    job_name,
    meeting_address,
    read_process_environment,
)
from cktrain.comm.errors import RendezvousError, TransportUnavailableError
from cktrain.comm.group import Group
from cktrain.comm.solo_group import SoloGroup

log = logging.getLogger("cktrain.comm")

# Launchers under which MPI finds the other ranks.
_BY_MPI = ("openmpi", "pmi", "pmix", "slurm")
TRANSPORTS = ("auto", "rdma", "mpi", "shm", "tcp")


def init(
    *,
    transport: str = "auto",
    timeout_s: float = 120.0,
    check: bool = False,
    environ: Mapping[str, str] = os.environ,
    engine_core: int | None = None,
    interface: str | None = None,
    algorithm: str | None = None,
) -> Group:
    """Return the group of all ranks of this job, named "world".

    Args:
        transport: "auto" (shared memory where all ranks are on one node, else MPI), "shm", "mpi" or "tcp".
        timeout_s: deadline of every wait, seconds.
        check: compare the calls of all ranks before each collective (for debugging: a round trip per call).
        environ: the environment to read.
        engine_core: core of the thread that moves asynchronous operations; None: where the process runs.
        interface: network interface or address for TCP; None: the one that leads to rank 0.
        algorithm: preferred algorithm (`cktrain.comm.algorithms`); None: by length.

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
    check_override(algorithm)
    process = read_process_environment(environ)
    if process.size == 1:
        return SoloGroup("world", timeout_s)
    group, chosen = _choose(process, transport, timeout_s, check, environ, engine_core, interface, algorithm)
    _self_test(group, transport_of(group))
    if group.rank == 0:
        log.info("%s", chosen)
    return group


def _choose(
    process: ProcessEnvironment,
    transport: str,
    timeout_s: float,
    check: bool,
    environ: Mapping[str, str],
    engine_core: int | None,
    interface: str | None,
    algorithm: str | None,
) -> tuple[Group, str]:
    """The group, and a line that says what was chosen and why the others were not.

    Order: shm where all ranks are on one node, else mpi, else tcp. It follows from what the launcher says, which is the
    same on all ranks.
    """
    one_node = process.size is not None and process.local_size == process.size
    if transport == "shm" and not one_node:
        raise TransportUnavailableError(
            "comm", "shm", {process.rank: f"{describe(process)}, {process.local_size} of them on this node"},
            "Use comm.transport: auto",
        )  # fmt: skip
    if transport == "shm" or (transport == "auto" and one_node):
        how = "asked for" if transport == "shm" else "all ranks are on one node"
        return _init_shm(process, timeout_s, environ, engine_core), f"transport: shm ({how})"
    if transport == "tcp":
        group = _init_tcp(process, timeout_s, environ, engine_core, interface, algorithm)
        return group, "transport: tcp (asked for)"
    if transport == "mpi":
        return _init_mpi(process, timeout_s, check), "transport: mpi (asked for)"
    passed_over = ["rdma: this version has no group over it", "shm: the ranks are on several nodes"]
    if process.source in _BY_MPI:
        try:
            group = _init_mpi(process, timeout_s, check)
            return group, f"transport: mpi; not used: {'; '.join(passed_over)}"
        except TransportUnavailableError as error:
            passed_over.append(f"mpi: {error.reasons[process.rank]}")
            if meeting_address(environ) is None:
                raise
    else:
        passed_over.append(f"mpi: the ranks were started by {process.source}")
    group = _init_tcp(process, timeout_s, environ, engine_core, interface, algorithm)
    return group, f"transport: tcp; not used: {'; '.join(passed_over)}"


def _self_test(group: Group, transport: str) -> None:
    """A message of every rank must come through, both ways of moving it, before the group is anybody's."""
    expected = group.size * (group.size + 1) // 2
    for length in (1, 100_000):
        array = np.full(length, group.rank + 1, np.int64)
        group.all_reduce(array)
        wrong = int(np.count_nonzero(array != expected))
        if wrong:
            raise TransportUnavailableError(
                "comm",
                transport,
                {group.rank: f"the self-test got {wrong:,} of {length:,} numbers wrong"},
                "Use another comm.transport, and report this",
            )


def _init_tcp(
    process: ProcessEnvironment,
    timeout_s: float,
    environ: Mapping[str, str],
    engine_core: int | None,
    interface: str | None,
    algorithm: str | None,
) -> Group:
    from cktrain.comm.rendezvous import meet, read_secret
    from cktrain.comm.tcp_group import TcpGroup, join_mesh

    address, size = meeting_address(environ), process.size
    file = environ.get("CKTRAIN_SECRET_FILE")
    secret = read_secret(file) if file else None
    at_close = None
    if address is None and process.source in _BY_MPI:
        address, secret, at_close = _meeting_by_mpi(process, interface)
    if address is None or size is None:
        raise TransportUnavailableError(
            "comm", "tcp", {process.rank: f"{describe(process)}, and nobody says where rank 0 listens"},
            "Set CKTRAIN_RENDEZVOUS=host:port to a free port of rank 0's host, on all ranks",
        )  # fmt: skip
    meeting = meet(
        process.rank,
        size,
        address,
        secret,
        timeout_s,
        job=environ.get("CKTRAIN_JOB", ""),
        interface=interface,
    )
    spin = (process.local_size or size) <= len(os.sched_getaffinity(0))
    mesh = join_mesh(meeting, spin=spin, engine_core=engine_core)
    if at_close is not None:
        mesh.at_close = at_close
    return TcpGroup(mesh, range(size), "world", timeout_s, algorithm=algorithm)


def _meeting_by_mpi(
    process: ProcessEnvironment, interface: str | None
) -> tuple[tuple[str, int], bytes, Callable[[], None]]:
    """Where to meet and a fresh secret, which rank 0 makes and MPI spreads; and what ends MPI again."""
    from cktrain.comm.rendezvous import free_port, reachable_address

    try:
        from cktrain.comm.mpi_group import finalize_plain, spread
    except (ImportError, RuntimeError) as error:
        raise TransportUnavailableError(
            "comm",
            "tcp",
            {
                process.rank: f"nobody says where rank 0 listens, and mpi4py, which could, does not load: {error}"
            },
            "Set CKTRAIN_RENDEZVOUS=host:port and CKTRAIN_SECRET_FILE on all ranks",
        ) from error
    mine = None
    if process.rank == 0:
        one_node = process.local_size == process.size and interface is None
        host = "127.0.0.1" if one_node else reachable_address(interface)
        mine = f"{host} {free_port(host)} {os.urandom(32).hex()}".encode()
    host, port, secret = spread(mine).decode().split()
    return (host, int(port)), bytes.fromhex(secret), finalize_plain


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


def transport_of(group: Group) -> str:
    """Which transport a group uses: "shm", "tcp", "mpi" or "none"."""
    return {"ShmGroup": "shm", "TcpGroup": "tcp", "MPIGroup": "mpi"}.get(type(group).__name__, "none")


def finalize_rivals() -> None:
    """End an MPI that was only measured (`mpi_group.plain_all_reduce`)."""
    if "cktrain.comm.mpi_group" in sys.modules:
        from cktrain.comm.mpi_group import finalize_plain

        finalize_plain()


def describe(process: ProcessEnvironment) -> str:
    """Return who this process is, for a message."""
    size = "an unknown number of" if process.size is None else str(process.size)
    return f"the {process.source} environment says rank {process.rank} of {size} ranks"


def _matching_launcher() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return f"Start the job with {beside}"
    return "Start the job with the mpirun of that MPI, or install mpi4py for the MPI whose mpirun you use"
