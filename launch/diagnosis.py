"""What this machine offers a training run, and what is in the way, each with the command that mends it.

`diagnose` reads; nothing is changed, started or bound. The roots of /sys, /proc and /dev are arguments, so that a
machine made up of files can be looked at. The processor and its memory stand here, what joins ranks in
`cktrain.launch.diagnosis_comm`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cktrain.host.cpu_limits import CpuLimits, read_cpu_limits
from cktrain.host.memory_limit import cgroup_limit
from cktrain.host.memory_policy import why_refused
from cktrain.host.topology import Topology, format_cpulist, read_topology

_MIB = 1 << 20
# Where tmpfs pages can be gathered into huge ones whatever the settings say (MADV_COLLAPSE).
_COLLAPSE_KERNEL = (6, 1)
_LITTLE_MEMORY = 512 * _MIB
_UNCOUNTED = 0.02
"""The part of the machine's memory that may be counted to no NUMA node without being worth a line."""


@dataclass(frozen=True)
class Finding:
    """Something that is in the way, and the one thing to do about it."""

    problem: str
    remedy: str
    blocks: bool = False
    """Training cannot start."""
    prevents: bool = False
    """The transport of this section cannot be used; without either mark something is merely slower than need be."""


@dataclass
class Section:
    """One subject: what there is, and what is wrong with it."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, problem: str, remedy: str, *, blocks: bool = False, prevents: bool = False) -> None:
        """Note a finding."""
        self.findings.append(Finding(problem, remedy, blocks, prevents))


@dataclass(frozen=True)
class Transport:
    """A way for bytes between ranks: usable here, or why not and what to do."""

    name: str
    usable: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Choice:
    """What `comm.transport: auto` takes, or what was asked for."""

    where: str
    """"one node" or "several nodes"."""
    transport: str | None
    """None: ranks cannot be joined there."""
    passed_over: tuple[Transport, ...]


@dataclass
class Diagnosis:
    """All sections, and which transport would be used."""

    host: str
    sections: list[Section]
    transports: list[Transport]
    choices: list[Choice]

    @property
    def ready(self) -> bool:
        """Whether training can start."""
        return not any(finding.blocks for section in self.sections for finding in section.findings)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"ready": self.ready, **asdict(self)}


@dataclass(frozen=True)
class HostPaths:
    """Where to look."""

    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


def software(place: HostPaths) -> Section:
    """Python, and whether the launcher's variables make sense."""
    from cktrain import __version__
    from cktrain.comm.environment import read_process_environment
    from cktrain.comm.errors import RendezvousError

    section = Section("software")
    section.facts["cktrain"] = f"{__version__}, Python {platform.python_version()} ({sys.executable})"
    section.facts["kernel"] = platform.release()
    try:
        process = read_process_environment(place.environ)
    except RendezvousError as error:
        section.add(error.problem, error.remedy, blocks=True)
    else:
        alone = process.source == "none"
        section.facts["started by"] = (
            "hand" if alone else f"{process.source}, rank {process.rank} of {process.size}"
        )
    return section


def processor(place: HostPaths) -> Section:
    """Instruction sets, as the kernels see them."""
    from cktrain import cython_kernels

    section = Section("processor")
    model = [line for line in _read(place.proc / "cpuinfo").splitlines() if line.startswith("model name")]
    section.facts["model"] = model[0].partition(":")[2].strip() if model else platform.machine()
    available = cython_kernels.available()
    section.facts["instruction sets"] = ", ".join(available[1:]) or "none"
    if len(available) == 1:
        section.add(
            "the compiled kernels are not there; the reference in numpy is hundreds of times slower",
            "Install cktrain again where a C compiler and Python's headers are: pip install --force-reinstall .",
        )
        return section
    built = cython_kernels.build_info()
    if built["left_out"]:
        section.add(
            f"the compiler ({built['compiler']}) does not know {', '.join(built['left_out'])}",
            "Install gcc 10 or newer, then install cktrain again: pip install --force-reinstall .",
        )
    best, why, remedy = cython_kernels.choose()
    if remedy:
        section.add(why, remedy)
    forced = place.environ.get("CKTRAIN_ISA")
    if forced == cython_kernels.ONEDNN and cython_kernels.AVX512BF16 in available:
        try:
            library = cython_kernels.find_onednn(place.environ.get("CKTRAIN_LIBDNNL"))
            why = f"{library} computes bf16 products, as CKTRAIN_ISA says"
        except ValueError as error:
            section.add(f"CKTRAIN_ISA is {forced!r}: {error}", cython_kernels.ONEDNN_REMEDY, blocks=True)
    elif forced and forced not in available:
        section.add(
            f"CKTRAIN_ISA is {forced!r}, which this CPU or this build does not have",
            "unset CKTRAIN_ISA",
            blocks=True,
        )
    section.facts["used"] = forced or best
    section.facts["bf16"] = (
        "in hardware" if "avx512bf16" in available else "not in hardware; precision: auto takes fp32"
    )
    section.facts["AMX"] = why or "not in hardware"
    return section


def cores(place: HostPaths) -> Section:
    """Sockets, NUMA nodes, and how many cores the mask and the cgroup leave."""
    section = Section("cores")
    try:
        topology = read_topology(place.sysfs)
    except (OSError, ValueError) as error:
        section.add(f"the topology cannot be read ({error})", "Mount sysfs: mount -t sysfs sysfs /sys")
        return section
    limits = read_cpu_limits(topology, place.sysfs, place.proc)
    every = topology.cores()
    packages, nodes = {core.package for core in every}, {core.node for core in every}
    threads = f", {len(topology.cpus)} hardware threads" if len(topology.cpus) > len(every) else ""
    section.facts["machine"] = f"{_count(len(packages), 'socket')}, {_count(len(nodes), 'NUMA node')}, " + (
        f"{_count(len(every), 'core')}{threads}"
    )
    machine, own = _meminfo(place.proc / "meminfo", "MemTotal"), {n: _node_bytes(place, n) for n in nodes}
    if len(nodes) == 1:  # its own figure may lack what a hypervisor's balloon gave back after the boot
        own = {node: machine or total for node, total in own.items()}
    for node, total in sorted(own.items()):
        cpus = format_cpulist(thread.cpu for thread in topology.threads if thread.node == node)
        section.facts[f"NUMA node {node}"] = f"CPUs {cpus}" + (f", {_gib(total)}" if total else "")
    if machine and all(own.values()) and (rest := machine - sum(own.values())) > _UNCOUNTED * machine:
        section.facts["of no NUMA node"] = (
            f"{_gib(rest)} of {_gib(machine)}: the kernel counts them to none, as where a hypervisor's balloon "
            "changes the memory"
        )
    if len(nodes) > 1 and (why := why_refused()) is not None:
        section.add(
            f"memory cannot be bound to NUMA nodes ({why}): a rank's arrays may lie on another node's memory",
            "Allow it to the container (docker: --cap-add SYS_NICE; podman: the same)",
        )
    _judge_limits(section, topology, limits)
    return section


def _judge_limits(section: Section, topology: Topology, limits: CpuLimits) -> None:
    mine, granted = topology.cores(limits.mask), topology.cores(limits.cpuset)
    quota = "" if limits.quota is None else f", of which the cgroup grants the time of {limits.quota:g}"
    section.facts["for this process"] = f"{_count(len(mine), 'core')} ({format_cpulist(limits.mask)}){quota}"
    if limits.quota is not None and limits.quota < len(mine):
        section.add(
            f"the cgroup grants the CPU time of {limits.quota:g} of {_count(len(mine), 'core')}: threads beyond "
            "it are stopped again and again",
            f"Set launch.threads: {max(1, int(limits.quota))}, or raise the limit (docker: --cpus, Slurm: "
            "--cpus-per-task, Kubernetes: resources.limits.cpu)",
        )
    if len(granted) < len(topology.cores()):
        section.facts["cgroup's cpuset"] = f"{_count(len(granted), 'core')} ({format_cpulist(limits.cpuset)})"
    if len(mine) < len(granted):
        section.add(
            f"this process was started on {_count(len(mine), 'core')} of {len(granted)}",
            f"taskset -c {format_cpulist(limits.cpuset)} cktrain ... (a launcher's ranks take their share "
            "themselves)",
        )


def _node_bytes(place: HostPaths, node: int) -> int:
    """Bytes that the kernel counts to a NUMA node; 0 where it does not say."""
    meminfo = place.sysfs / "devices" / "system" / "node" / f"node{node}" / "meminfo"
    return _meminfo(meminfo, "MemTotal") or 0


def memory(place: HostPaths) -> Section:
    """How much there is, and huge pages."""
    section = Section("memory")
    meminfo = place.proc / "meminfo"
    total, free = _meminfo(meminfo, "MemTotal"), _meminfo(meminfo, "MemAvailable")
    limit = cgroup_limit(place.proc, place.sysfs)
    if total and free:
        section.facts["memory"] = f"{_gib(free)} of {_gib(total)} free"
    if limit and (not total or limit < total):
        section.facts["cgroup's limit"] = _gib(limit)
    usable = min(x for x in (free, limit, 1 << 62) if x)
    if usable < _LITTLE_MEMORY:
        section.add(
            f"{usable / _MIB:,.0f} MiB of memory are free: the interpreter and its libraries alone take 200",
            "End other programs, or raise the container's limit (docker: --memory)",
        )
    huge = place.sysfs / "kernel" / "mm" / "transparent_hugepage"
    anonymous, shared = _setting(huge / "enabled"), _setting(huge / "shmem_enabled")
    section.facts["huge pages"] = f"{anonymous or 'unknown'}; of shared memory: {shared or 'unknown'}"
    if anonymous == "never":
        section.add(
            "transparent huge pages are off: parameters and activations lie in pages of 4 KiB",
            f"echo madvise | sudo tee {huge / 'enabled'}",
        )
    if shared in ("never", "deny") and _kernel() < _COLLAPSE_KERNEL:
        section.add(
            "shared memory gets no huge pages: gradients that ranks of a node reduce in place lie in pages of 4 KiB",
            f"echo advise | sudo tee {huge / 'shmem_enabled'}",
        )
    return section


def _meminfo(path: Path, key: str) -> int | None:
    """A line of a meminfo file in bytes; a node's has "Node 0 " before the key."""
    for line in _read(path).splitlines():
        words = line.replace(":", " ").split()
        if key in words and words[-1] == "kB":
            return int(words[-2]) << 10
    return None


def _setting(path: Path) -> str:
    """The word in brackets."""
    _, _, rest = _read(path).partition("[")
    return rest.partition("]")[0]


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.1f} GiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
