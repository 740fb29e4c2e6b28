"""Bind this process to its share of the node, before numpy loads.

mpirun and srun hand a rank one core, or all of them, or a socket shared with other ranks, depending on their
defaults; a training rank wants a share of its own. `bind: auto` splits what the job may use on this node
among the node's ranks: contiguous by socket, NUMA node, last-level cache and core, one hardware thread per
core. `inherit` keeps the mask that the launcher gave. `none` leaves the mask alone too, but takes it as
shared by the node's ranks, so it divides the threads.

What the job may use: a process on its own keeps to its mask (`taskset` is obeyed). Under a launcher it is the
mask of the parent, which is the launcher's own before it bound its ranks, and where that says nothing, the
cgroup's cpuset, up to which a process may widen its mask.

Never more threads than cores; a cgroup's CPU quota counts, shared by the node's ranks. When ranks outnumber
cores they share them, one thread each, with a warning.

The variables that thread pools read are set here too. The kernels' own pool is the only one that works:
numpy's BLAS (OpenBLAS, MKL) gets one thread, since its workers would spin on the cores of the pool, and
numpy's matmul is only used by the reference kernels. OMP_NUM_THREADS gets the rank's thread count, over the 1
that mpirun-like launchers leave there, for libraries that are built on OpenMP and run in the pool's place.
OPENBLAS_NUM_THREADS and MKL_NUM_THREADS that the user has set are kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from cktrain.comm.environment import ProcessEnvironment
from cktrain.launch.allowance import Allowance, read_allowance
from cktrain.launch.topology import Core, Topology, format_cpulist, read_topology

MODES = ("auto", "inherit", "none")


@dataclass(frozen=True)
class Binding:
    """Where this process runs from now on."""

    cpus: tuple[int, ...]
    """Logical CPUs of the affinity mask, ascending."""
    threads: int
    """Threads that the kernels' pool is to have."""
    node: int | None
    """NUMA node that holds all the cpus; None where they span several, or the topology is unknown."""
    message: str
    """What was done and why, one or more lines, warnings included."""


@dataclass(frozen=True)
class Share:
    """One rank's part of a node's cores."""

    cpus: tuple[int, ...]
    threads: int
    shared: bool
    """Another rank runs on the same core."""


def bind(
    process: ProcessEnvironment,
    *,
    mode: str = "auto",
    threads: int | None = None,
    environ: MutableMapping[str, str] = os.environ,
    sysfs: str | Path = "/sys",
    proc: str | Path = "/proc",
) -> Binding:
    """Bind the calling process and set the variables that thread pools read.

    Args:
        process: this process's place among the node's ranks.
        mode: "auto", "inherit" or "none".
        threads: threads of this rank; None: one per core of its share.
        environ: where the variables are set.
        sysfs: where the machine is described.
        proc: where this process is described.

    Raises:
        ValueError: unknown mode, or `threads` below 1 or above the rank's cores.
    """
    if mode not in MODES:
        raise ValueError(f"[launch] bind: {mode!r} is unknown. Give one of {', '.join(MODES)}.")
    try:
        topology = read_topology(sysfs)
        allowance = read_allowance(topology, sysfs, proc)
    except (OSError, ValueError) as error:
        binding = _unpinned(threads, error)
    else:
        binding = plan_binding(topology, allowance, process, mode, threads)
        if mode == "auto":
            binding = _apply(binding, allowance)
    _set_thread_variables(binding.threads, environ)
    if "numpy" in sys.modules:
        late = "warning: numpy was loaded before the binding; its BLAS may run threads of its own."
        binding = Binding(binding.cpus, binding.threads, binding.node, f"{binding.message}\n[launch] {late}")
    return binding


def plan_binding(
    topology: Topology,
    allowance: Allowance,
    process: ProcessEnvironment,
    mode: str,
    threads: int | None = None,
) -> Binding:
    """Decide where a rank runs: a pure function of the machine, what is allowed, and the rank's place."""
    lines = []
    ranks = process.local_size or 1
    if process.local_rank is None or process.local_size is None:
        if mode == "auto":
            lines.append(
                f"warning: the {process.source} launcher does not say how many ranks share this node; "
                "each keeps the mask it was given. Set launch.bind: inherit to accept that."
            )
            mode = "inherit"
        local_rank = 0
    else:
        local_rank = process.local_rank

    if mode == "auto":
        job = _job_cpus(allowance, process)
        cores = topology.cores(job)
        share = split_cores(cores, ranks)[local_rank]
        if not allowance.mask.issuperset(share.cpus):
            how = "widened" if allowance.mask.issubset(share.cpus) else "moved"
            lines.append(
                f"mask {how} from cpu {format_cpulist(allowance.mask)}, given by the launcher, to "
                f"{format_cpulist(share.cpus)}."
            )
    else:
        cores = topology.cores(allowance.mask)
        count = len(cores) if mode == "inherit" else max(1, len(cores) // ranks)
        share = Share(tuple(sorted(allowance.mask)), count, mode == "none" and ranks > len(cores))

    if share.shared:
        lines.append(
            f"warning: {ranks} ranks share {_count(len(cores), 'core')}; each runs one thread and waits for "
            "the others. Start fewer ranks, or give the job more cores (srun --cpus-per-task, "
            "mpirun --map-by)."
        )
    elif mode == "inherit" and ranks > 1 and allowance.mask == allowance.cpuset:
        lines.append(
            f"warning: launch.bind is inherit, and each of the {ranks} ranks was given all "
            f"{_count(len(cores), 'core')}, so their threads collide. Let the launcher bind, or set "
            "launch.bind: auto."
        )
    count = share.threads
    if allowance.quota is not None:
        granted = max(1, int(allowance.quota / ranks))
        if granted < count:
            lines.append(
                f"the cgroup's quota of {allowance.quota:g} CPUs for {_count(ranks, 'rank')} allows "
                f"{granted} of {count} threads."
            )
            count = granted
    if threads is not None:
        available = len(topology.cores(share.cpus))
        if not 1 <= threads <= available:
            raise ValueError(
                f"[launch] threads: {threads} on rank {process.rank}, which has {_count(available, 'core')}. "
                f"Give 1 to {available}, or leave launch.threads out."
            )
        count = threads
    nodes = {core.node for core in topology.cores(share.cpus)}
    node = nodes.pop() if len(nodes) == 1 else None
    where = "several NUMA nodes" if node is None else f"NUMA node {node}"
    summary = (
        f"rank {process.rank}: {_count(count, 'thread')} on cpu {format_cpulist(share.cpus)} ({where}), "
        f"bind {mode}."
    )
    message = "\n".join(f"[launch] {line}" for line in [summary, *lines])
    return Binding(tuple(sorted(share.cpus)), count, node, message)


def split_cores(cores: Sequence[Core], ranks: int) -> list[Share]:
    """Split `cores` (nearest neighbours first) among `ranks`, one hardware thread per core.

    Every core goes to exactly one rank, and the smallest share is as large as it can be. Among such splits
    one that keeps ranks inside NUMA nodes is taken where there is one. With more ranks than cores, rank r
    gets one hardware thread of core r·cores//ranks, and the ranks of one core get different ones as far as it
    has them.
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
    bounds = _node_bounds(cores, ranks)
    if bounds is None:
        bounds = [rank * len(cores) // ranks for rank in range(ranks + 1)]
    return [
        Share(tuple(core.cpus[0] for core in cores[begin:end]), end - begin, False)
        for begin, end in pairwise(bounds)
    ]


def _node_bounds(cores: Sequence[Core], ranks: int) -> list[int] | None:
    """Return where each rank's cores begin so that no rank crosses a NUMA node without filling whole ones.

    None where that would make the smallest share smaller than an even split does: ranks wait for the slowest.
    """
    nodes: list[int] = []  # cores per node, in the order of the cores
    for index, core in enumerate(cores):
        if index and (core.package, core.node) == (cores[index - 1].package, cores[index - 1].node):
            nodes[-1] += 1
        else:
            nodes.append(1)
    smallest = len(cores) // ranks
    sizes: list[int] = []
    if ranks >= len(nodes):
        # As many ranks per node as fit with full shares; then one more where the share suffers least.
        per_node = [1] * len(nodes)
        for _ in range(ranks - len(nodes)):
            widest = max(range(len(nodes)), key=lambda i: nodes[i] / (per_node[i] + 1))
            per_node[widest] += 1
        for count, parts in zip(nodes, per_node, strict=True):
            sizes += [(part + 1) * count // parts - part * count // parts for part in range(parts)]
    else:
        ends = list(accumulate(nodes))
        # Each rank takes whole nodes, up to the boundary nearest to its even share.
        bounds = [0]
        for rank in range(1, ranks):
            ideal = rank * len(cores) / ranks
            candidates = [end for end in ends if end > bounds[-1]][: len(nodes)]
            bounds.append(min(candidates, key=lambda end: abs(end - ideal)))
        bounds.append(len(cores))
        sizes = [end - begin for begin, end in pairwise(bounds)]
    if min(sizes) < smallest:
        return None
    return list(accumulate(sizes, initial=0))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _job_cpus(allowance: Allowance, process: ProcessEnvironment) -> frozenset[int]:
    """Return the CPUs that are the job's on this node, all its ranks together."""
    mask = allowance.mask & allowance.cpuset or allowance.cpuset
    alone = process.local_size == 1
    if process.source == "none" or (alone and len(mask) > 1):
        return mask
    parent = allowance.parent_mask & allowance.cpuset
    if parent and not parent <= mask:
        return parent
    # The parent has our mask: the launcher bound nothing, or a shell stands between it and us.
    return mask if len(mask) > 1 else allowance.cpuset


def _apply(binding: Binding, allowance: Allowance) -> Binding:
    try:
        os.sched_setaffinity(0, binding.cpus)
    except OSError as error:
        mask = format_cpulist(allowance.mask)
        line = f"[launch] warning: could not bind ({error}); the process stays on cpu {mask}, unpinned."
        threads = min(binding.threads, len(allowance.mask))
        return Binding(tuple(sorted(allowance.mask)), threads, None, f"{binding.message}\n{line}")
    return binding


def _unpinned(threads: int | None, error: Exception) -> Binding:
    """Without a topology nothing is pinned; the mask still says how many threads make sense."""
    mask = tuple(sorted(os.sched_getaffinity(0)))
    return Binding(
        mask,
        threads or len(mask),
        None,
        f"[launch] warning: the topology cannot be read ({error}); the process stays on cpu "
        f"{format_cpulist(mask)}, unpinned.",
    )


def _set_thread_variables(threads: int, environ: MutableMapping[str, str]) -> None:
    environ["OMP_NUM_THREADS"] = str(threads)
    environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    environ.setdefault("MKL_NUM_THREADS", "1")
