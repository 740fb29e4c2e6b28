"""The node's processors as sysfs describes them: hardware threads, cores, packages, NUMA nodes, caches.

Plain data, read from a tree whose root is an argument, so that made-up machines can be described as files.
What a file does not say is given its simplest value (one package, one node, no sibling): containers and
virtual machines hide parts of the tree.
"""

from __future__ import annotations

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
class Topology:
    """The online hardware threads of one node, ascending."""

    threads: tuple[HardwareThread, ...]

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
    return Topology(tuple(threads))


def parse_cpulist(text: str) -> list[int]:
    """Parse the kernel's list format, "0-3,8,10-11", ascending and without repeats."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part.strip():
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
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
