"""The whole job on all its hosts: which rank runs where, as rows of a table, before anything is started.

Pure arithmetic on the hosts' topologies; each rank later works out its own row in the same way (`cktrain.host.bind`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cktrain.config import LaunchConfig
from cktrain.host.memory_policy import policy_of
from cktrain.host.placement import Placement, place_ranks
from cktrain.host.topology import Topology, format_cpulist
from cktrain.parallel.mesh import AXES, Mesh


@dataclass(frozen=True)
class HostFacts:
    """A host, and the logical CPUs that the job may use on it."""

    name: str
    topology: Topology
    allowed: frozenset[int]

    @property
    def numa_nodes(self) -> int:
        """NUMA nodes that have an allowed core: as many ranks, where the user names no number."""
        return len({core.node for core in self.topology.cores(self.allowed)})


@dataclass(frozen=True)
class Row:
    """One rank."""

    rank: int
    host: str
    place: Placement
    coordinates: Mapping[str, int]
    """Where it stands on each axis of the mesh."""


def lay_out(hosts: Sequence[HostFacts], counts: Sequence[int], mesh: Mesh, launch: LaunchConfig) -> list[Row]:
    """Place `counts[i]` consecutive ranks on host i.

    Raises:
        ValueError: `launch.threads` is more than the cores of a rank.
    """
    rows: list[Row] = []
    for host, ranks in zip(hosts, counts, strict=True):
        places = place_ranks(
            host.topology,
            host.allowed,
            ranks,
            tensor=mesh.tensor,
            threads=launch.threads,
            progress_core=launch.progress_core,
            alone=mesh.world == 1,
        )
        for place in places:
            rank = len(rows)
            if launch.threads is not None and place.threads < launch.threads:
                raise ValueError(
                    f"[launch] threads: {launch.threads} on rank {rank} ({host.name}), which has room for "
                    f"{place.threads}. Lower launch.threads or start fewer ranks."
                )
            rows.append(Row(rank, host.name, place, mesh.coordinates(rank)))
    return rows


def warnings(rows: Sequence[Row], mesh: Mesh) -> list[str]:
    """What will be slow: shared cores, tensor groups across sockets or hosts."""
    found = []
    crowded = sorted({row.host for row in rows if row.place.shared})
    if crowded:
        found.append(
            f"warning: more ranks than cores on {', '.join(crowded)}: they share cores. Start fewer ranks."
        )
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(mesh.rank({**row.coordinates, "tensor": 0}), []).append(row)
    across_hosts = sum(len({row.host for row in group}) > 1 for group in groups.values())
    across_sockets = sum(
        len({row.host for row in group}) == 1
        and len({package for row in group for package in row.place.packages}) > 1
        for group in groups.values()
    )
    for number, border in ((across_hosts, "hosts"), (across_sockets, "sockets")):
        if number and mesh.tensor > 1:
            found.append(
                f"warning: {number} of {len(groups)} tensor groups span {border}: activations cross that border in "
                f"every layer. Choose parallel.tensor and the ranks per host so that groups fit."
            )
    return found


def table(rows: Sequence[Row], launch: LaunchConfig) -> str:
    """One line per rank."""
    header = (
        *("rank", "host", "socket", "NUMA", "cores", "threads", "memory", "NIC", "progress"),
        *AXES,
    )
    lines = [header]
    for row in rows:
        place = row.place
        bound = launch.bind == "auto"
        lines.append(
            (
                str(row.rank),
                row.host,
                _numbers(place.packages),
                _numbers(place.nodes),
                format_cpulist(place.cpus) if bound else f"as given ({launch.bind})",
                str(place.threads) if bound else "as given",
                policy_of(place.nodes) if bound else "as given",
                place.nic.name if place.nic else "-",
                "-" if place.progress_core is None else str(place.progress_core),
                *(str(row.coordinates[axis]) for axis in AXES),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _numbers(values: Sequence[int]) -> str:
    return ",".join(map(str, values))
