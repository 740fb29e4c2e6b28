"""What may join ranks here: MPI, RDMA verbs, TCP and shared memory; which of them a run would take, and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cktrain.launch import diagnosis
from cktrain.launch.diagnosis import Choice, Diagnosis, HostPaths, Section, Transport

if TYPE_CHECKING:
    from cktrain.comm.transport.rdma_device import PortDescription
    from cktrain.comm.transport.verbs_problems import Problem

_MPI_S = 20
# What a first model's gradients would take, to judge the limit of locked memory by.
_REGISTER_BYTES = 1 << 30
# Payload sizes of RoCE packets, and what headers take of the interface's MTU.
_RDMA_MTUS, _ROCE_HEADER_BYTES = (4096, 2048, 1024, 512, 256), 80


def diagnose(
    place: HostPaths | None = None,
    *,
    transport: str = "auto",
    device: str | None = None,
    gid_index: int | None = None,
    interface: str | None = None,
) -> Diagnosis:
    """Look at everything; the options are the keys of `comm:` that a run would have."""
    place = place or HostPaths()
    shared, mpi, rdma, tcp = (
        shared_memory(),
        message_passing(place),
        verbs(place, device, gid_index),
        sockets(place, interface),
    )
    transports = [
        _transport(name, section) for name, section in zip(_NAMES, (shared, rdma, mpi, tcp), strict=True)
    ]
    choices = [
        _choose("one node", transport, ("shm",), transports),
        _choose("several nodes", transport, ("rdma", "mpi", "tcp"), transports),
    ]
    sections = [
        diagnosis.software(place),
        diagnosis.processor(place),
        diagnosis.cores(place),
        diagnosis.memory(place),
    ]
    found = Diagnosis(socket.gethostname(), [*sections, shared, mpi, rdma, tcp], transports, choices)
    if transport != "auto" and all(choice.transport is None for choice in choices):
        asked = next(t for t in transports if t.name == transport)
        sections[0].add(f"comm.transport is {transport}, and {asked.reason}", asked.remedy, blocks=True)
    return found


_NAMES = ("shm", "rdma", "mpi", "tcp")


def _transport(name: str, section: Section) -> Transport:
    """Usable, or why not: the deepest cause, which a section finds first."""
    for finding in section.findings:
        if finding.prevents:
            return Transport(name, False, finding.problem, finding.remedy)
    return Transport(name, True)


def _choose(where: str, asked: str, order: Sequence[str], transports: Sequence[Transport]) -> Choice:
    """As `cktrain.comm.bootstrap` does, of what this machine alone can tell."""
    by_name = {transport.name: transport for transport in transports}
    if asked != "auto":
        order = (asked,) if asked != "shm" or where == "one node" else ()
    passed: list[Transport] = []
    for name in order:
        if by_name[name].usable:
            return Choice(where, name, tuple(passed))
        passed.append(by_name[name])
    return Choice(where, None, tuple(passed))


# ------------------------------------------------------------------------------------------------ what there is


def shared_memory() -> Section:
    """The compiled engine that shared memory and TCP run on."""
    section = Section("shared memory")
    try:
        importlib.import_module("cktrain.comm._engine")
    except ImportError as error:
        section.add(
            f"the compiled engine does not load ({_first_line(error)})",
            "Install cktrain again where a C compiler is: pip install --force-reinstall .",
            prevents=True,
        )
        return section
    section.facts["engine"] = "loads"
    return section


def message_passing(place: HostPaths) -> Section:
    """mpi4py, the MPI that it loads, and the mpirun on the PATH."""
    section = Section("MPI")
    remedy = 'pip install "cktrain[mpi]", or mpi4py for the MPI that you have'
    # In a process of its own: a broken MPI ends its process instead of raising.
    code = "from cktrain.comm import mpi_group; print(mpi_group.library())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_MPI_S, check=False
        )
        lines, failed = (done.stdout + done.stderr).strip().splitlines() or ["?"], done.returncode != 0
    except subprocess.TimeoutExpired:
        lines, failed = [f"no answer for {_MPI_S} s"], True
    if failed:
        section.add(f"mpi4py does not load: {lines[-1]}", remedy, prevents=True)
        return section
    library = lines[-1]
    section.facts["mpi4py"] = f"{importlib.metadata.version('mpi4py')}, loads {library}"
    program = shutil.which("mpirun", path=place.environ.get("PATH"))
    if program is None:
        section.add(
            "there is no mpirun on the PATH",
            f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH", if mpirun is there; '
            f"or install the MPI: {library}",
            prevents=True,
        )
        return section
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    section.facts["mpirun"] = f"{program} ({flavour(shown)})"
    if flavour(shown) != flavour(library):
        section.add(
            f"mpirun is of {flavour(shown)} and mpi4py loads {flavour(library)}: each rank would find itself alone",
            f"Use the mpirun of {flavour(library)}, or install mpi4py for {flavour(shown)}",
            prevents=True,
        )
    return section


def flavour(text: str) -> str:
    """Which MPI speaks: of its library's version or of `mpirun --version`."""
    for pattern, name in (
        (r"Open MPI|OpenRTE|prte", "Open MPI"),
        (r"Intel", "Intel MPI"),
        (r"MVAPICH", "MVAPICH"),
        (r"MPICH|HYDRA", "MPICH"),
    ):
        if re.search(pattern, text):
            return name
    return "an unknown MPI"


def verbs(place: HostPaths, device: str | None = None, gid_index: int | None = None) -> Section:
    """libibverbs and its providers, devices with their ports and GIDs, locked memory."""
    from cktrain.comm import bootstrap
    from cktrain.comm.transport import rdma_device, verbs_problems

    section = Section("RDMA")
    library = verbs_problems.installed_library()
    section.facts["libibverbs"] = (
        "not installed" if library is None else f"rdma-core {library.version} ({library.path})"
    )
    drivers = sorted(path.stem for path in Path("/etc/libibverbs.d").glob("*.driver"))
    if drivers:
        section.facts["its drivers"] = ", ".join(drivers)
    loaded = []
    for provider, problem in _providers().items():
        section.facts[f"provider {provider}"] = "loads" if problem is None else problem.reason
        loaded += [provider] * (problem is None)
    system = rdma_device.describe_system(place.sysfs, place.dev)
    for found in rdma_device.problems(
        system, device=device, gid_index=gid_index, one_host=False, register_bytes=_REGISTER_BYTES
    ):
        section.add(found.reason, found.remedy, prevents=True)
    if not loaded:
        for provider, problem in _providers().items():
            if problem is not None:
                section.add(f"{provider}: {problem.reason}", problem.remedy, prevents=True)
    if "rdma" not in bootstrap.TRANSPORTS:
        section.add("this version has no group over RDMA", "Use comm.transport: auto", prevents=True)
    for each in system.devices:
        for port in each.ports:
            section.facts[f"{each.name} port {port.number}"] = _describe_port(place, section, each.name, port)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    exempt = (
        " (this process is exempt)"
        if system.memlock_bytes is None and limit != resource.RLIM_INFINITY
        else ""
    )
    section.facts["memlock"] = (
        "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10:,} KiB{exempt}"
    )
    return section


def _providers() -> dict[str, Problem | None]:
    """Each provider of verbs, and why it does not load."""
    from cktrain.comm.transport import verbs as seam

    found: dict[str, Problem | None] = {}
    for name in seam.PROVIDERS:
        try:
            seam.load_provider(name)
            found[name] = None
        except seam.ProviderError as error:
            found[name] = error.problems[name]
    return found


def _describe_port(place: HostPaths, section: Section, device: str, port: PortDescription) -> str:
    from cktrain.comm.transport.gid import NoUsableGid, choose_gid

    words = [port.state, port.link_layer]
    try:
        gid = choose_gid(port.gids, device=device)
        words.append(f"GID {gid.index} {gid} ({gid.kind})")
    except NoUsableGid:
        words.append(f"{len(port.gids)} GIDs, none usable between nodes")
    for interface in port.interfaces if port.link_layer == "Ethernet" else ():
        text = diagnosis._read(place.sysfs / "class" / "net" / interface / "mtu")
        if text.isdigit():
            payload = next((m for m in _RDMA_MTUS if m + _ROCE_HEADER_BYTES <= int(text)), 256)
            words.append(f"{interface} MTU {text}: {payload} bytes in a packet")
            if payload < _RDMA_MTUS[0]:
                section.add(
                    f"{interface} has MTU {text}, so RDMA packets of {device} carry {payload} bytes, not 4096",
                    f"sudo ip link set {interface} mtu 9000 (on all hosts, and the switch must allow it)",
                )
    return ", ".join(words)


def sockets(place: HostPaths, interface: str | None = None) -> Section:
    """The address that other hosts reach this one at, and the secret."""
    from cktrain.comm.errors import RendezvousError
    from cktrain.comm.rendezvous import reachable_address, read_secret

    section = Section("TCP")
    try:
        address = reachable_address(interface)
    except RendezvousError as error:
        section.add(error.problem, error.remedy, prevents=True)
        return section
    section.facts["address"] = address
    if address.startswith("127."):
        section.add(
            "this host has no route to another one",
            "Give an interface an address, or set comm.interface",
            prevents=True,
        )
    file = place.environ.get("CKTRAIN_SECRET_FILE")
    if file:
        try:
            read_secret(file)
            section.facts["secret"] = file
        except RendezvousError as error:
            section.add(error.problem, error.remedy, prevents=True)
    else:
        section.facts["secret"] = (
            "CKTRAIN_SECRET_FILE is not set: needed between hosts, unless MPI starts the ranks"
        )
    section.facts["rendezvous"] = place.environ.get(
        "CKTRAIN_RENDEZVOUS", "not set: needed unless MPI starts the ranks"
    )
    return section


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
