"""From a process to its group: who are we, and what carries the bytes.

`init` reads the launcher's environment (`cktrain.comm.environment`); a process on its own, or in a job of
one, gets a `SoloGroup`. Several ranks meet once, tell each other what they cannot use and why, and all take the first
transport that nobody has anything against (docs/transports.md): a `ShmGroup` on one node; on several an `RdmaGroup`
where all have a device, an `MPIGroup` where MPI started them, else a `TcpGroup`. MPI is loaded only under its own
launchers, and started only where it is used.

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

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

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
from cktrain.comm.layout import node_name
from cktrain.comm.reasons import (
    Reason,
    Reasons,
    as_message,
    choose,
    describe_choice,
    from_message,
    unavailable,
)
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.tuning import Tables, read_tables
from cktrain.comm.waiting import told_by_whom, who_is_waited_for

if TYPE_CHECKING:
    from cktrain.comm.node import NodeMeeting
    from cktrain.comm.rendezvous import Rendezvous
    from cktrain.comm.tcp_group import TcpGroup

log = logging.getLogger("cktrain.comm")

# Launchers under which MPI finds the other ranks.
_BY_MPI = ("openmpi", "pmi", "pmix", "slurm")
TRANSPORTS = ("auto", "rdma", "mpi", "shm", "tcp")
AUTO_ORDER = ("shm", "rdma", "mpi", "tcp")
"""What `auto` tries; the first that no rank has anything against is taken."""


def init(
    *,
    transport: str = "auto",
    timeout_s: float = 120.0,
    check: bool = False,
    environ: Mapping[str, str] = os.environ,
    engine_core: int | None = None,
    interface: str | None = None,
    algorithm: str | None = None,
    tcp_sockets: int | None = None,
    table: str | None = None,
    device: str | None = None,
    gid_index: int | None = None,
    traffic_class: int | None = None,
) -> Group:
    """Return the group of all ranks of this job, named "world".

    Args:
        transport: "auto" (shared memory where all ranks are on one node, else the first of rdma, MPI and TCP that
            works), "shm", "rdma", "mpi" or "tcp".
        timeout_s: deadline of every wait, seconds.
        check: compare the calls of all ranks before each collective (for debugging: a round trip per call).
        environ: the environment to read.
        engine_core: core of the thread that moves asynchronous operations; None: where the process runs.
        interface: network interface or address for TCP; None: the one that leads to rank 0.
        algorithm: preferred algorithm (`cktrain.comm.algorithms`); None: by length.
        tcp_sockets: connections per pair of ranks over TCP, rank 0's counts; None: two between hosts, one inside.
        table: file of a measured table of algorithms (`cktrain.comm.tuning`), rank 0's counts; None: the defaults.
        device, gid_index, traffic_class: of RDMA (docs/rdma_setup.md); None: found, chosen by content, 0.

    Raises:
        ValueError: unknown transport, a deadline that is not above 0, or, on all ranks, a table that rank 0 cannot read.
        RendezvousError: the launcher's variables contradict each other, or the MPI that mpi4py loads is not
            the one that started the ranks.
        TransportUnavailableError: a rank cannot use the transport, or any of them; every such rank and its reason.
    """
    if transport not in TRANSPORTS:
        raise ValueError(
            f"[comm] transport {transport!r} is not built in. Give one of {', '.join(TRANSPORTS)}."
        )
    check_override(algorithm)
    process = read_process_environment(environ)
    if process.size == 1:
        return SoloGroup("world", timeout_s)
    tables, problem = Tables(), ""
    if table and process.rank == 0:
        try:
            tables = read_tables(table)
        except (
            ValueError
        ) as error:  # the others hear of it when they have met, instead of waiting for this rank
            problem = str(error)
    rdma = _Rdma(device, gid_index, traffic_class)
    options = _Options(
        process,
        environ,
        transport,
        timeout_s,
        check,
        engine_core,
        interface,
        algorithm,
        tcp_sockets,
        tables,
        rdma,
    )
    order = AUTO_ORDER if transport == "auto" else (transport,)
    if process.rank == 0:
        log.info("%s", who_is_waited_for(process, environ, timeout_s))
    try:
        meeting = _meet(options, _cannot_use(options, order))
    except RendezvousError as error:
        raise told_by_whom(error, process) from error
    group = None
    while group is None:
        chosen, passed = choose(order, meeting.reasons)
        if chosen is None:
            meeting.part()
            raise told_by_whom(unavailable(transport, passed), process)
        # None: what it needs did not work between the ranks after all, and the meeting has every rank's new reason.
        group = {"shm": _init_shm, "rdma": _init_rdma, "mpi": _init_mpi, "tcp": _init_tcp}[chosen](
            options, meeting
        )
    assert chosen is not None
    _self_test(group, chosen)
    if told := group.broadcast_bytes(problem.encode(), root=0):
        group.close()
        raise ValueError(told.decode())
    _compare_tables(group)
    if group.rank == 0:
        why = (
            "asked for"
            if transport != "auto"
            else "all ranks are on one node"
            if chosen == "shm"
            else _way(group)
        )
        log.info("%s", describe_choice(chosen, passed, group.size, why))
    return group


class _Rdma(NamedTuple):
    """What of RDMA was asked for."""

    device: str | None
    gid_index: int | None
    traffic_class: int | None


@dataclass(frozen=True)
class _Options:
    """What `init` was asked for, and who asks."""

    process: ProcessEnvironment
    environ: Mapping[str, str]
    transport: str
    timeout_s: float
    check: bool
    engine_core: int | None
    interface: str | None
    algorithm: str | None
    tcp_sockets: int | None
    tables: Tables
    rdma: _Rdma

    @property
    def one_node(self) -> bool:
        """Whether all ranks are on this node."""
        return self.process.size is not None and self.process.local_size == self.process.size

    @property
    def by_mpi(self) -> bool:
        """Whether MPI finds the other ranks."""
        return self.process.source in _BY_MPI


@dataclass
class _Meeting:
    """How the ranks met, and what each of them cannot use; they may stay together on the way that they came."""

    reasons: dict[int, Reasons]
    """Of each rank; of this one alone where nothing joined them."""
    node: NodeMeeting | None = None
    rendezvous: Rendezvous | None = None
    started_mpi: bool = False
    at_close: Callable[[], object] = lambda: None
    """What ends with the world besides the rendezvous."""

    def part(self) -> None:
        """End what is not going to be used."""
        for way in (self.node, self.rendezvous):
            if way is not None:
                way.close()
        self.node = self.rendezvous = None


# ----------------------------------------------------------------------------------------- what cannot be used


def _cannot_use(options: _Options, order: Sequence[str]) -> Reasons:
    """What this rank has against the transports of `order`; nothing is started for it."""
    found: Reasons = {}
    for transport in order:
        why = {"shm": _no_shm, "rdma": _no_rdma, "mpi": _no_mpi, "tcp": _no_tcp}[transport](options)
        if why is not None:
            found[transport] = why
        elif transport == "shm":  # no rank has anything against it, so nothing after it matters
            break
    return found


def _no_shm(options: _Options) -> Reason | None:
    if options.one_node:
        return None
    here, size = options.process.local_size, options.process.size
    count = "" if here is None or size is None else f": {here} of {size} are on this one"
    return Reason(f"the ranks are on several nodes{count}", "Use comm.transport: auto")


def _no_rdma(options: _Options) -> Reason | None:
    from cktrain.comm.transport.rdma import why_not

    if (found := why_not(_verbs_provider(options), options.rdma.device, options.rdma.gid_index)) is not None:
        return Reason(*found)
    return _no_tcp(options)  # the ranks meet, and watch over each other, by TCP


def _verbs_provider(options: _Options) -> str:
    return options.environ.get("CKTRAIN_VERBS", "auto")


def _no_mpi(options: _Options) -> Reason | None:
    if not options.by_mpi:
        return Reason(
            f"the ranks were started by {options.process.source}", "Start them by the mpirun of your MPI"
        )
    if (why := _mpi_missing()) is not None:
        return Reason(f"mpi4py does not load: {why}", 'Install it with: pip install "cktrain[mpi]"')
    return None


def _no_tcp(options: _Options) -> Reason | None:
    if meeting_address(options.environ) is None and (not options.by_mpi or _mpi_missing() is not None):
        return Reason(
            "nobody says where rank 0 listens",
            "Set CKTRAIN_RENDEZVOUS=host:port to a free port of rank 0's host, on all ranks",
        )
    return _interface_missing(options.interface) if options.interface else None


def _mpi_missing() -> str | None:
    try:
        importlib.import_module("cktrain.comm.mpi_group")
    except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError when it finds no MPI library
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _interface_missing(interface: str) -> Reason | None:
    from cktrain.comm.rendezvous import address_of_interface

    try:
        address_of_interface(interface)
    except RendezvousError as error:
        return Reason(error.problem, error.remedy)
    return None


# --------------------------------------------------------------------------------------------- the first meeting


def _meet(options: _Options, mine: Reasons) -> _Meeting:
    """Tell the others what this rank cannot use, and hear it of them, on a way that all ranks find alike.

    Which way follows from the environment alone. Ranks that nothing joins know only of themselves.
    """
    process, environ = options.process, options.environ
    address = meeting_address(environ)
    if options.one_node and not (options.transport in ("tcp", "rdma") and address):
        from cktrain.comm.node import meet_on_node

        assert process.size is not None
        key = job_name(environ, os.getppid())
        node = meet_on_node(key, process.rank, process.rank, process.size, options.timeout_s, mine)
        said = [from_message(member["reasons"]) for member in node.members]
        return _Meeting(dict(enumerate(said)), node=node)
    if address and process.size and ("CKTRAIN_SECRET_FILE" in environ or not options.by_mpi):
        rendezvous = _rendezvous(options, address, _secret(environ), mine)
        said = [from_message(member["reasons"]) for member in rendezvous.members]
        return _Meeting(dict(enumerate(said)), rendezvous=rendezvous)
    if options.by_mpi and _mpi_missing() is None:
        return _meet_by_mpi(options, mine)
    return _Meeting({process.rank: mine})  # under mpirun the end of this rank ends those that wait in MPI


def _meet_by_mpi(options: _Options, mine: Reasons) -> _Meeting:
    from cktrain.comm import mpi_group

    started = mpi_group.start()
    said = mpi_group.gather(json.dumps(as_message(mine)).encode())
    _check_mpi_size(options, len(said))
    reasons = {rank: from_message(json.loads(x)) for rank, x in enumerate(said)}
    return _Meeting(reasons, started_mpi=started)


def _secret(environ: Mapping[str, str]) -> bytes | None:
    from cktrain.comm.rendezvous import read_secret

    file = environ.get("CKTRAIN_SECRET_FILE")
    return read_secret(file) if file else None


def _rendezvous(
    options: _Options, address: tuple[str, int], secret: bytes | None, mine: Reasons
) -> Rendezvous:
    from cktrain.comm.rendezvous import meet

    assert options.process.size is not None
    return meet(
        options.process.rank,
        options.process.size,
        address,
        secret,
        options.timeout_s,
        job=options.environ.get("CKTRAIN_JOB", ""),
        interface=None if "tcp" in mine else options.interface,
        node=node_name(options.environ),
        sockets=options.tcp_sockets or 0,
        tables=options.tables.text,
        reasons=mine,
    )


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


def _init_tcp(options: _Options, meeting: _Meeting) -> Group:
    from cktrain.comm.tcp_group import TcpGroup, join_mesh

    rendezvous = _by_address(options, meeting)

    def make_flat(node: tuple[NodeMeeting, list[int]] | None) -> TcpGroup:
        mesh = join_mesh(
            rendezvous, spin=_may_spin(options, rendezvous), engine_core=options.engine_core, node=node
        )
        mesh.at_close = _taken(meeting)
        return TcpGroup(mesh, range(rendezvous.size), "world", options.timeout_s, algorithm=options.algorithm)

    return _in_levels(options, rendezvous, make_flat)


def _in_levels(
    options: _Options,
    rendezvous: Rendezvous,
    make_flat: Callable[[tuple[NodeMeeting, list[int]] | None], TcpGroup],
) -> Group:
    """With shared memory inside the nodes, unless one transport was asked for: then that alone."""
    from cktrain.comm.two_level import over_wires

    if options.transport != "auto":
        return make_flat(None)
    return over_wires(rendezvous, options.timeout_s, make_flat)


def _init_rdma(options: _Options, meeting: _Meeting) -> Group | None:
    """The group, or None where RDMA does not work between the ranks: all of them find so."""
    from cktrain.comm.rdma_group import RdmaGroup
    from cktrain.comm.tcp_group import join_mesh
    from cktrain.comm.transport.rdma import RdmaTransport

    rendezvous = _by_address(options, meeting)
    transport = RdmaTransport(provider=_verbs_provider(options), **options.rdma._asdict())
    try:
        transport.connect(rendezvous)
    except TransportUnavailableError as error:
        for rank, reason in error.reasons.items():
            meeting.reasons.setdefault(rank, {})["rdma"] = Reason(reason, error.remedy)
        return None

    def make_flat(node: tuple[NodeMeeting, list[int]] | None) -> TcpGroup:
        mesh = join_mesh(
            rendezvous,
            spin=_may_spin(options, rendezvous),
            engine_core=options.engine_core,
            where="comm.rdma",
            node=node,
        )
        others = _taken(meeting)

        def close() -> None:
            transport.close()
            others()

        mesh.at_close = close
        return RdmaGroup(
            transport, mesh, range(rendezvous.size), "world", options.timeout_s, algorithm=options.algorithm
        )

    return _in_levels(options, rendezvous, make_flat)


def _by_address(options: _Options, meeting: _Meeting) -> Rendezvous:
    """The meeting by address, which begins now unless the ranks met that way."""
    if meeting.rendezvous is None:
        address, secret = meeting_address(options.environ), _secret(options.environ)
        if address is None:
            address, secret, meeting.at_close = _meeting_by_mpi(options.process, options.interface)
        meeting.rendezvous = _rendezvous(options, address, secret, {})
    return meeting.rendezvous


def _taken(meeting: _Meeting) -> Callable[[], object]:
    """Leave the rendezvous to a group; what else is to be ended with the group."""
    meeting.rendezvous = None
    meeting.part()
    return meeting.at_close


def _may_spin(options: _Options, rendezvous: Rendezvous) -> bool:
    return (options.process.local_size or rendezvous.size) <= len(os.sched_getaffinity(0))


def _meeting_by_mpi(
    process: ProcessEnvironment, interface: str | None
) -> tuple[tuple[str, int], bytes, Callable[[], None]]:
    """Where to meet and a fresh secret, which rank 0 makes and MPI spreads; and what ends MPI again."""
    from cktrain.comm.mpi_group import finalize_plain, spread
    from cktrain.comm.rendezvous import free_port, reachable_address

    mine = None
    if process.rank == 0:
        one_node = process.local_size == process.size and interface is None
        host = "127.0.0.1" if one_node else reachable_address(interface)
        mine = f"{host} {free_port(host)} {os.urandom(32).hex()}".encode()
    host, port, secret = spread(mine).decode().split()
    return (host, int(port)), bytes.fromhex(secret), finalize_plain


def _init_shm(options: _Options, meeting: _Meeting) -> Group:
    from cktrain.comm.node import watch_node
    from cktrain.comm.shm_group import ShmGroup

    assert meeting.node is not None
    node = watch_node(meeting.node, engine_core=options.engine_core)
    return ShmGroup(node, range(node.size), "world", options.timeout_s)


def _init_mpi(options: _Options, meeting: _Meeting) -> Group:
    from cktrain.comm.mpi_group import init_world

    meeting.part()
    group = init_world(options.timeout_s, options.check, started=meeting.started_mpi)
    _check_mpi_size(options, group.size)
    if options.transport != "auto":
        return group
    from cktrain.comm.two_level import over_mpi

    return over_mpi(group, options.timeout_s, options.environ, options.engine_core)


def _check_mpi_size(options: _Options, size: int) -> None:
    from cktrain.comm.mpi_group import library

    if options.process.size not in (None, size) or options.process.rank >= size:
        raise RendezvousError(
            "comm.mpi",
            f"{describe(options.process)}, but mpi4py's MPI ({library()}) sees {size}: the ranks were not "
            "started by the mpirun of that MPI",
            _matching_launcher(),
        )


def abort(group: Group, code: int) -> NoReturn:
    """End this process and all other ranks of its job with exit status `code`.

    For the rank that cannot go on (uncaught exception, lost peer): the others do not wait for it. What was
    printed so far is flushed first.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    group.abort(code)


def transport_of(group: Group) -> str:
    """Which transport a group uses: "shm", "rdma", "tcp", "mpi", in two levels "shm+rdma" and so on, or "none"."""
    if group.flat is not group:
        return f"shm+{transport_of(group.flat)}"
    return {"ShmGroup": "shm", "RdmaGroup": "rdma", "TcpGroup": "tcp", "MPIGroup": "mpi"}.get(
        type(group).__name__, "none"
    )


def tables_of(group: Group) -> Tables | None:
    """The tables of algorithms that a group and its parts choose by; None where there is nothing to choose."""
    mesh = getattr(group.flat, "_mesh", None)
    return None if mesh is None else mesh.tables


def _compare_tables(group: Group) -> None:
    """Ranks that chose differently would wait for each other for ever."""
    if (tables := tables_of(group)) is None:
        return
    digests = group.all_gather_bytes(tables.digest())
    if len(set(digests)) > 1:
        differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        raise RendezvousError(
            "comm",
            f"ranks {', '.join(map(str, differing))} have another table of algorithms than rank 0",
            "Run one version of cktrain on all hosts",
        )


def _way(group: Group) -> str:
    """How ranks on several nodes use the transport between them, in words."""
    return str(getattr(group, "layout", ""))


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
