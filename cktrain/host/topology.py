"""The node as sysfs describes it: hardware threads, cores, packages, NUMA nodes, caches, memory, network cards.

Plain data, read from a tree whose root is an argument, so that made-up machines can be described as files.
What a file does not say is given its simplest value (one package, one node, no sibling): containers and
virtual machines hide parts of the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HardwareThread:
    """One logical CPU and where it sits."""

    cpu: int
    """Number of the logical CPU, as sched_setaffinity counts."""
    core: int
    """Lowest logical CPU of its physical core; SMT siblings share it."""
    package: int
    """Socket."""
    node: int
    """NUMA node."""
    cache: int
    """Lowest logical CPU that shares its last-level cache."""


@dataclass(frozen=True)
class Core:
    """A physical core and those of its hardware threads that are in question, ascending."""

    cpus: tuple[int, ...]
    package: int
    node: int
    cache: int


@dataclass(frozen=True)
class Nic:
    """A network card: an RDMA device, or a network interface that a device stands behind."""

    name: str
    rdma: bool
    node: int | None
    """NUMA node that it is attached to; None where the machine does not say."""
    up: bool = True


@dataclass(frozen=True)
class Topology:
    """The online hardware threads of one node, ascending; its network cards by name; bytes of memory per NUMA node."""

    threads: tuple[HardwareThread, ...]
    nics: tuple[Nic, ...] = ()
    memory: tuple[tuple[int, int], ...] = ()

    @property
    def cpus(self) -> frozenset[int]:
        """All online logical CPUs."""
        return frozenset(thread.cpu for thread in self.threads)

    def cores(self, allowed: Iterable[int] | None = None) -> list[Core]:
        """Return the cores that have an allowed hardware thread, nearest neighbours first.

        Args:
            allowed: logical CPUs in question; None means all.

        The order is by package, NUMA node, last-level cache, core: a contiguous run of it shares as much as
        it can.
        """
        wanted = self.cpus if allowed is None else frozenset(allowed)
        siblings: dict[tuple[int, int, int, int], list[int]] = {}
        for thread in self.threads:
            if thread.cpu in wanted:
                place = (thread.package, thread.node, thread.cache, thread.core)
                siblings.setdefault(place, []).append(thread.cpu)
        return [
            Core(tuple(sorted(cpus)), package, node, cache)
            for (package, node, cache, _), cpus in sorted(siblings.items())
        ]


def read_topology(sysfs: str | Path = "/sys") -> Topology:
    """Read the topology below `sysfs`.

    Network cards are the RDMA devices and the interfaces with a device; bridges and the like have none.

    Raises:
        OSError: there is no `devices/system/cpu/online`.
        ValueError: a list of CPUs is not in the kernel's format.
    """
    system = Path(sysfs) / "devices" / "system"
    online = parse_cpulist((system / "cpu" / "online").read_text())
    node_of = {}
    for directory in system.glob("node/node[0-9]*"):
        for cpu in parse_cpulist(_read(directory / "cpulist")):
            node_of[cpu] = int(directory.name.removeprefix("node"))
    threads = []
    for cpu in online:
        directory = system / "cpu" / f"cpu{cpu}"
        siblings = _read(directory / "topology" / "thread_siblings_list") or str(cpu)
        package = _read(directory / "topology" / "physical_package_id")
        threads.append(
            HardwareThread(
                cpu=cpu,
                core=min(parse_cpulist(siblings), default=cpu),
                # Some virtual machines report -1.
                package=max(0, int(package)) if package else 0,
                node=node_of.get(cpu, 0),
                cache=_last_level_cache(directory, cpu),
            )
        )
    memory = [(int(d.name.removeprefix("node")), _total_bytes(d)) for d in system.glob("node/node[0-9]*")]
    return Topology(tuple(threads), tuple(_read_nics(Path(sysfs))), tuple(sorted(memory)))


def describe(topology: Topology) -> str:
    """Return the topology in words, a line per NUMA node and per network card."""
    cores = topology.cores()
    threads = len(topology.threads)
    packages, nodes = {core.package for core in cores}, sorted({core.node for core in cores})
    caches = len({core.cache for core in cores})
    lines = [
        f"{_count(len(packages), 'socket')}, {_count(len(nodes), 'NUMA node')}, "
        f"{_count(caches, 'last-level cache')}, {_count(len(cores), 'core')}, "
        f"{_count(threads, 'hardware thread')}"
    ]
    memory = dict(topology.memory)
    for node in nodes:
        inside = [core for core in cores if core.node == node]
        cpus = format_cpulist(cpu for core in inside for cpu in core.cpus)
        sockets = ",".join(map(str, sorted({core.package for core in inside})))
        size = f", {memory[node] / 2**30:.1f} GiB" if memory.get(node) else ""
        lines.append(f"node {node}: socket {sockets}, {_count(len(inside), 'core')}, cpu {cpus}{size}")
    for nic in topology.nics:
        where = "no NUMA node told" if nic.node is None else f"node {nic.node}"
        kind = "RDMA device" if nic.rdma else "interface"
        lines.append(f"{kind} {nic.name}: {where}, {'up' if nic.up else 'down'}")
    return "\n".join(lines)


def _read_nics(sysfs: Path) -> list[Nic]:
    found = []
    for rdma, pattern in ((True, "class/infiniband/*"), (False, "class/net/*")):
        for directory in sorted(sysfs.glob(pattern)):
            node = _read(directory / "device" / "numa_node")
            if rdma:
                states = [_read(port / "state") for port in directory.glob("ports/*")]
                up = any("ACTIVE" in state for state in states)
            elif not (directory / "device").exists():
                continue
            else:
                up = _read(directory / "operstate") == "up"
            found.append(Nic(directory.name, rdma, int(node) if node and int(node) >= 0 else None, up))
    return found


def _total_bytes(node: Path) -> int:
    """Bytes of memory of a NUMA node, from its `meminfo`; 0 where it is not told."""
    for line in _read(node / "meminfo").splitlines():
        if "MemTotal:" in line:
            return int(line.split()[-2]) * 1024
    return 0


def parse_cpulist(text: str) -> list[int]:
    """Parse the kernel's list format, "0-3,8,10-11", ascending and without repeats.

    Raises ValueError for anything else, and for a CPU that no kernel counts up to.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part.strip():
            match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
            if match is None or int(match[2] or match[1]) < int(match[1]):
                raise ValueError(f"{part.strip()[:40]!r} is no list of CPUs as 0-3,8")
            cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(cpus)


def format_cpulist(cpus: Iterable[int]) -> str:
    """Write CPUs in the kernel's list format: the inverse of parse_cpulist."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _last_level_cache(directory: Path, cpu: int) -> int:
    """Return the lowest CPU that shares the cache of the highest level with `cpu`; `cpu` itself if untold."""
    level, shared = 0, str(cpu)
    for index in directory.glob("cache/index[0-9]*"):
        this = int(_read(index / "level") or 0)
        if this > level and (cpus := _read(index / "shared_cpu_list")):
            level, shared = this, cpus
    return min(parse_cpulist(shared), default=cpu)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
