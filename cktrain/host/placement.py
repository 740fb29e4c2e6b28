"""Which cores, memory and network card each rank of a node gets: arithmetic on a topology, nothing is read or bound.

A rank's cores are neighbours: shares are cut at sockets, then NUMA nodes, then last-level caches, as far as the
smallest share stays within an eighth of an even one; ranks wait for the slowest. The ranks of a tensor group talk
most, so first each group gets its cores, then each rank its part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from cktrain.host.topology import Core, Nic, Topology

STAYING_INSIDE = 7 / 8
"""The smallest share may be so much of an even one, for the sake of cuts between sockets, nodes and caches."""
PROGRESS_FROM = 16
"""Cores of a rank from which one of them is the communication thread's: a sixteenth of the compute at most."""

_LEVELS: tuple[Callable[[Core], object], ...] = (
    lambda core: core.package,
    lambda core: (core.package, core.node),
    lambda core: (core.package, core.node, core.cache),
)


@dataclass(frozen=True)
class Share:
    """One rank's part of a node's cores."""

    cpus: tuple[int, ...]
    """One hardware thread of each core."""
    threads: int
    shared: bool
    """Another rank runs on the same core."""


@dataclass(frozen=True)
class Placement:
    """Where one rank of a node runs."""

    cpus: tuple[int, ...]
    """Logical CPUs of its mask, ascending."""
    threads: int
    packages: tuple[int, ...]
    nodes: tuple[int, ...]
    """NUMA nodes of its cores: its memory comes from there."""
    nic: Nic | None
    """The nearest network card."""
    progress_core: int | None
    """Logical CPU of the communication thread; None: it runs where the rank does."""
    shared: bool


def place_ranks(
    topology: Topology,
    allowed: Iterable[int],
    ranks: int,
    *,
    tensor: int = 1,
    threads: int | None = None,
    progress_core: int | None = None,
    alone: bool = False,
) -> list[Placement]:
    """Place the `ranks` of a node.

    Args:
        topology: the node.
        allowed: logical CPUs that the job may use.
        ranks: on this node.
        tensor: size of a tensor group; consecutive ranks form one.
        threads: of each rank; None: one per core. At most the rank's cores.
        progress_core: logical CPU for the communication threads; -1: none; None: one of the rank's own where it
            has enough, or where `threads` leaves one over.
        alone: the world is this one rank, which has nobody to talk to.

    Raises:
        ValueError: no core is allowed.
    """
    cores = topology.cores(allowed)
    shares = split_groups(cores, ranks, tensor)
    core_of = {cpu: core for core in cores for cpu in core.cpus}
    seen: dict[Nic, int] = {}
    places = []
    for share in shares:
        own = [core_of[cpu] for cpu in share.cpus]
        nodes = tuple(sorted({core.node for core in own}))
        nic = None if alone else nearest_nic(topology, nodes, seen)
        place = Placement(
            tuple(sorted(share.cpus)),
            share.threads if threads is None else min(threads, share.threads),
            tuple(sorted({core.package for core in own})),
            nodes,
            nic,
            None,
            share.shared,
        )
        if not alone:
            place = _with_progress(place, share.cpus, threads is not None, progress_core)
        places.append(place)
    return places


def _with_progress(
    place: Placement, cpus: Sequence[int], chosen: bool, progress_core: int | None
) -> Placement:
    """Take a core out of the rank's for its communication thread, where that leaves it enough."""
    if progress_core == -1:
        return place
    if progress_core is None:
        left_over = chosen and place.threads < len(cpus)
        if place.shared or not (left_over or (not chosen and len(cpus) >= PROGRESS_FROM)):
            return place
        progress_core = cpus[-1]
    rest = tuple(sorted(set(cpus) - {progress_core})) or place.cpus
    return replace(place, cpus=rest, threads=min(place.threads, len(rest)), progress_core=progress_core)


def nearest_nic(topology: Topology, nodes: Sequence[int], seen: dict[Nic, int]) -> Nic | None:
    """Return the card to use from `nodes`: up, RDMA before others, same node before same socket before elsewhere.

    Among cards that are equally near, the one that fewest ranks were given so far; `seen` counts them.
    """
    package_of = {thread.node: thread.package for thread in topology.threads}
    packages = {package_of.get(node) for node in nodes}

    def distance(nic: Nic) -> tuple:
        elsewhere = nic.node is None or package_of.get(nic.node) not in packages
        return (not nic.up, not nic.rdma, nic.node not in nodes, elsewhere, seen.get(nic, 0), nic.name)

    nearest = min(topology.nics, key=distance, default=None)
    if nearest is not None:
        seen[nearest] = seen.get(nearest, 0) + 1
    return nearest


# -------------------------------------------------------------------------------------------- splitting cores


def split_groups(cores: Sequence[Core], ranks: int, tensor: int) -> list[Share]:
    """Split `cores` among the ranks so that each `tensor` consecutive ones have neighbouring cores.

    Groups that do not fill the node evenly, or that have fewer cores than ranks, are split as if alone.
    """
    groups = ranks // tensor if tensor > 0 and ranks % tensor == 0 else 0
    if tensor <= 1 or groups <= 1 or groups > len(cores) or ranks > len(cores):
        return split_cores(cores, ranks)
    bounds = _bounds(cores, groups)
    if min(end - begin for begin, end in pairwise(bounds)) < tensor:
        return split_cores(cores, ranks)
    return [share for begin, end in pairwise(bounds) for share in split_cores(cores[begin:end], tensor)]


def split_cores(cores: Sequence[Core], ranks: int) -> list[Share]:
    """Split `cores` (nearest neighbours first) among `ranks`, one hardware thread per core.

    Every core goes to exactly one rank. With more ranks than cores, rank r gets one hardware thread of core
    r·cores//ranks, and the ranks of one core get different ones as far as it has them.
    """
    if not cores:
        raise ValueError("[launch] no core is allowed to this process. Check its affinity mask and cpuset.")
    if ranks > len(cores):
        shares = []
        core_of = [rank * len(cores) // ranks for rank in range(ranks)]
        for rank, index in enumerate(core_of):
            cpus = cores[index].cpus
            place = rank - core_of.index(index)
            shares.append(Share((cpus[place % len(cpus)],), 1, True))
        return shares
    return [
        Share(tuple(core.cpus[0] for core in cores[begin:end]), end - begin, False)
        for begin, end in pairwise(_bounds(cores, ranks))
    ]


def _bounds(cores: Sequence[Core], parts: int) -> list[int]:
    """Where each part's cores begin, and the end."""
    floor = STAYING_INSIDE * (len(cores) // parts)
    return list(accumulate(_sizes(cores, parts, _LEVELS, floor), initial=0))


def _sizes(
    cores: Sequence[Core], parts: int, levels: Sequence[Callable[[Core], object]], floor: float
) -> list[int]:
    """Cores per part, cut at the borders of the first level where no part falls below `floor`."""
    for number, level in enumerate(levels):
        blocks = _blocks(cores, level)
        if len(blocks) == 1:
            continue
        if parts >= len(blocks):
            per_block = _parts_per_block(blocks, parts)
            if all(block // count >= floor for block, count in zip(blocks, per_block, strict=True)):
                ends = list(accumulate(blocks, initial=0))
                rest = levels[number + 1 :]
                return [
                    size
                    for (begin, end), count in zip(pairwise(ends), per_block, strict=True)
                    for size in _sizes(cores[begin:end], count, rest, floor)
                ]
        else:
            sizes = _whole_blocks(blocks, parts)
            if min(sizes) >= floor:
                return sizes
    bounds = [part * len(cores) // parts for part in range(parts + 1)]
    return [end - begin for begin, end in pairwise(bounds)]


def _blocks(cores: Sequence[Core], level: Callable[[Core], object]) -> list[int]:
    """Cores per socket, node or cache, in the order of the cores."""
    sizes: list[int] = []
    before: object = None
    for core in cores:
        if sizes and level(core) == before:
            sizes[-1] += 1
        else:
            sizes.append(1)
        before = level(core)
    return sizes


def _parts_per_block(blocks: Sequence[int], parts: int) -> list[int]:
    """One part per block, then one more where shares suffer least."""
    count = [1] * len(blocks)
    for _ in range(parts - len(blocks)):
        widest = max(range(len(blocks)), key=lambda i: blocks[i] / (count[i] + 1))
        count[widest] += 1
    return count


def _whole_blocks(blocks: Sequence[int], parts: int) -> list[int]:
    """Whole blocks for each part, up to the border nearest to its even share."""
    ends = list(accumulate(blocks))
    bounds = [0]
    for part in range(1, parts):
        ideal = part * ends[-1] / parts
        # As many borders as parts must be left behind this one.
        candidates = [end for end in ends[: len(ends) - (parts - part)] if end > bounds[-1]]
        bounds.append(min(candidates, key=lambda end: abs(end - ideal)))
    bounds.append(ends[-1])
    return [end - begin for begin, end in pairwise(bounds)]
