"""Bind this process to its share of the node, before numpy loads.

mpirun and srun hand a rank one core, or all of them, or a socket shared with other ranks, depending on their
defaults; a training rank wants a share of its own. `bind: auto` splits what the job may use on this node
among the node's ranks (`cktrain.host.placement`): neighbouring cores, one hardware thread each, memory from
the NUMA nodes of those cores. `inherit` keeps the mask that the launcher gave. `none` leaves the mask alone
too, but takes it as shared by the node's ranks, so it divides the threads. Both leave the memory policy alone.

What the job may use: a process on its own keeps to its mask (`taskset` is obeyed). Under a launcher it is the
mask of the parent, which is the launcher's own before it bound its ranks, and where that says nothing, the
cgroup's cpuset, up to which a process may widen its mask. Slurm's masks of several cores are its user's
choice and are kept; and where Slurm granted fewer CPUs than the cpuset holds, the others may be another
job's, so nothing is widened.

Never more threads than cores; a cgroup's CPU quota counts, shared by the node's ranks. When ranks outnumber
cores they share them, one thread each, with a warning.

The variables that thread pools read are set here too. The kernels' own pool is the only one that works:
numpy's BLAS (OpenBLAS, MKL) gets one thread, since its workers would spin on the cores of the pool, and
numpy's matmul is only used by the reference kernels. OMP_NUM_THREADS gets the rank's thread count, over the 1
that mpirun-like launchers leave there, for libraries that are built on OpenMP and run in the pool's place.
OPENBLAS_NUM_THREADS and MKL_NUM_THREADS that the user has set are kept. What is replaced, kept or has no effect is said.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cktrain.comm.environment import ProcessEnvironment
from cktrain.host.cpu_limits import CpuLimits, read_cpu_limits
from cktrain.host.memory_policy import policy_of, set_memory_policy
from cktrain.host.placement import Placement, nearest_nic, place_ranks
from cktrain.host.topology import Core, Topology, format_cpulist, read_topology

MODES = ("auto", "inherit", "none")
_OPENMP_PLACES = ("OMP_PLACES", "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
# A mask under these is its user's own.
_BINDS_NOTHING = ("none", "cktrain")


@dataclass(frozen=True)
class Binding:
    """Where this process runs from now on."""

    cpus: tuple[int, ...]
    """Logical CPUs of the affinity mask, ascending."""
    threads: int
    """Threads that the kernels' pool is to have."""
    nodes: tuple[int, ...]
    """NUMA nodes that hold the cpus; empty where the topology is unknown."""
    message: str
    """What was done and why, one or more lines, warnings included."""
    progress_core: int | None = None
    """Logical CPU of the communication thread; None: where the process runs."""
    rdma_device: str | None = None
    """The nearest of several RDMA devices that are up; None where there is nothing to choose."""

    @property
    def node(self) -> int | None:
        """NUMA node that holds all the cpus; None where they span several, or the topology is unknown."""
        return self.nodes[0] if len(self.nodes) == 1 else None


def bind(
    process: ProcessEnvironment,
    *,
    mode: str = "auto",
    threads: int | None = None,
    tensor: int = 1,
    progress_core: int | None = None,
    environ: MutableMapping[str, str] = os.environ,
    sysfs: str | Path = "/sys",
    proc: str | Path = "/proc",
) -> Binding:
    """Bind the calling process and set the variables that thread pools read.

    Args:
        process: this process's place among the node's ranks.
        mode: "auto", "inherit" or "none".
        threads: threads of this rank; None: one per core of its share.
        tensor: size of a tensor group, whose ranks are to be neighbours.
        progress_core: logical CPU of the communication thread; -1: none; None: chosen.
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
        limits = read_cpu_limits(topology, sysfs, proc, environ)
    except (OSError, ValueError) as error:
        binding = _unpinned(threads, error)
    else:
        binding = plan_binding(topology, limits, process, mode, threads, tensor, progress_core)
        if mode == "auto":
            binding = _apply(binding, limits, several_nodes=len({t.node for t in topology.threads}) > 1)
    blas_is_limited = environ.get("OPENBLAS_NUM_THREADS") == "1"  # as by an earlier binding of this process
    for line in _set_thread_variables(binding.threads, environ):
        binding = _with_line(binding, line)
    if "numpy" in sys.modules and not blas_is_limited:
        late = "warning: numpy was loaded before the binding; its BLAS may run threads of its own."
        binding = _with_line(binding, late)
    return binding


def plan_binding(
    topology: Topology,
    limits: CpuLimits,
    process: ProcessEnvironment,
    mode: str,
    threads: int | None = None,
    tensor: int = 1,
    progress_core: int | None = None,
) -> Binding:
    """Decide where a rank runs: a pure function of the machine, what is allowed, and the rank's place."""
    lines: list[str] = []
    if mode == "auto" and (process.local_rank is None or process.local_size is None):
        lines.append(
            f"warning: the {process.source} launcher does not say how many ranks share this node; "
            "each keeps the mask it was given. Set launch.bind: inherit to accept that."
        )
        mode = "inherit"
    if mode == "auto":
        cores, place = _own_share(topology, limits, process, threads, tensor, progress_core, lines)
    else:
        cores, place = _as_given(topology, limits, process, mode, threads, progress_core, lines)
    lines += _warnings(topology, limits, process, mode, cores, place)

    device = None
    if place.nic is not None and sum(nic.rdma and nic.up for nic in topology.nics) > 1:
        device = place.nic.name
    where = f"NUMA node {place.nodes[0]}" if len(place.nodes) == 1 else "several NUMA nodes"
    summary = f"rank {process.rank}: {_count(place.threads, 'thread')} on cpu {format_cpulist(place.cpus)} ({where})"
    if mode == "auto" and len(topology.memory) > 1:
        summary += f", memory {policy_of(place.nodes)}"
    if place.progress_core is not None:
        summary += f", communication on cpu {place.progress_core}"
    if device is not None:
        summary += f", RDMA by {device}"
    message = "\n".join(f"[launch] {line}" for line in [f"{summary}, bind {mode}.", *lines])
    return Binding(place.cpus, place.threads, place.nodes, message, place.progress_core, device)


def _own_share(
    topology: Topology,
    limits: CpuLimits,
    process: ProcessEnvironment,
    threads: int | None,
    tensor: int,
    progress_core: int | None,
    lines: list[str],
) -> tuple[list[Core], Placement]:
    """`auto`: the cores that the ranks share, and this rank's place among them. What is to be said goes to `lines`."""
    assert process.local_rank is not None and process.local_size is not None
    if _chosen_by_slurm(topology, limits, process):
        job, sharing, index = limits.mask & limits.cpuset, 1, 0
        lines.append(f"srun gave this rank cpu {format_cpulist(limits.mask)}: it keeps to these.")
    else:
        job, sharing, index = _job_cpus(limits, process), process.local_size, process.local_rank
    place_with = partial(place_ranks, topology, job, sharing, tensor=tensor, alone=process.size == 1)
    available = len(place_with(progress_core=-1)[index].cpus)
    _check_threads(threads, available, process)
    limit = _quota_limit(limits, process, threads, available, lines)
    if limit != threads and progress_core is None:
        progress_core = -1  # a quota leaves cores over, but no time for them
    place = place_with(threads=limit, progress_core=progress_core)[index]
    if not limits.mask.issuperset(place.cpus):
        how = "widened" if limits.mask.issubset(place.cpus) else "moved"
        lines.append(
            f"mask {how} from cpu {format_cpulist(limits.mask)}, given by the launcher, to "
            f"{format_cpulist(place.cpus)}."
        )
    return topology.cores(job), place


def _as_given(
    topology: Topology,
    limits: CpuLimits,
    process: ProcessEnvironment,
    mode: str,
    threads: int | None,
    progress_core: int | None,
    lines: list[str],
) -> tuple[list[Core], Placement]:
    """`inherit` and `none`: the mask as it is, all of its cores' threads or the rank's part of them."""
    ranks = process.local_size or 1
    cores = topology.cores(limits.mask)
    count = len(cores) if mode == "inherit" else max(1, len(cores) // ranks)
    _check_threads(threads, len(cores), process)
    limit = _quota_limit(limits, process, threads, count, lines)
    nodes = tuple(sorted({core.node for core in cores}))
    place = Placement(
        cpus=tuple(sorted(limits.mask)),
        threads=count if limit is None else limit,
        packages=tuple(sorted({core.package for core in cores})),
        nodes=nodes,
        nic=None if process.size == 1 else nearest_nic(topology, nodes, {}),
        progress_core=None if progress_core == -1 else progress_core,
        shared=mode == "none" and ranks > len(cores),
    )
    return cores, place


def _warnings(
    topology: Topology,
    limits: CpuLimits,
    process: ProcessEnvironment,
    mode: str,
    cores: list[Core],
    place: Placement,
) -> list[str]:
    """Ranks that are in each other's way, and a rank that was given less than it could use."""
    ranks, every = process.local_size or 1, len(topology.cores())
    if place.shared:
        return [
            f"warning: {ranks} ranks share {_count(len(cores), 'core')}; each runs one thread and waits for "
            "the others. Start fewer ranks, or give the job more cores (srun --cpus-per-task, "
            "mpirun --map-by)."
        ]
    if mode == "inherit" and ranks > 1 and limits.mask == limits.cpuset:
        return [
            f"warning: launch.bind is inherit, and each of the {ranks} ranks was given all "
            f"{_count(len(cores), 'core')}, so their threads collide. Let the launcher bind, or set "
            "launch.bind: auto."
        ]
    if process.source not in _BINDS_NOTHING and len(cores) == 1 < every:
        held = "cgroup" if len(topology.cores(limits.cpuset)) == 1 else "job's mask"
        return [
            f"warning: the {held} holds 1 of this node's {every} cores, so the rank runs one thread and communicates "
            "on the same core. Ask for more: srun or sbatch --cpus-per-task=N."
        ]
    return []


def _check_threads(threads: int | None, available: int, process: ProcessEnvironment) -> None:
    if threads is not None and not 1 <= threads <= available:
        raise ValueError(
            f"[launch] threads: {threads} on rank {process.rank}, which has {_count(available, 'core')}. "
            f"Give 1 to {available}, or leave launch.threads out."
        )


def _quota_limit(
    limits: CpuLimits, process: ProcessEnvironment, threads: int | None, available: int, lines: list[str]
) -> int | None:
    """Threads as asked for, else as the cgroup's quota allows; None: as many as cores."""
    if threads is not None or limits.quota is None:
        return threads
    ranks = process.local_size or 1
    granted = max(1, int(limits.quota / ranks))
    if granted >= available:
        return None
    lines.append(
        f"the cgroup's quota of {limits.quota:g} CPUs for {_count(ranks, 'rank')} allows "
        f"{granted} of {available} threads."
    )
    return granted


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _chosen_by_slurm(topology: Topology, limits: CpuLimits, process: ProcessEnvironment) -> bool:
    """Slurm gave this rank a mask of its own that is to be kept.

    Several cores, and not so many that the node's ranks must share them, are somebody's choice (--cpus-per-task,
    --cpu-bind). A single one is srun's default, to be widened within the cpuset, unless the cpuset holds more than
    Slurm says that it granted: then the other CPUs may be another job's.
    """
    if process.source != "slurm":
        return False
    mask = limits.mask & limits.cpuset
    if len(topology.cores(mask)) > 1:
        ranks = process.local_size or 1
        own = len(topology.cores(mask)) * ranks <= len(topology.cores(limits.cpuset))
        return ranks > 1 and own
    return limits.granted is not None and limits.granted < len(limits.cpuset)


def _job_cpus(limits: CpuLimits, process: ProcessEnvironment) -> frozenset[int]:
    """Return the CPUs that are the job's on this node, all its ranks together."""
    mask = limits.mask & limits.cpuset or limits.cpuset
    alone = process.local_size == 1
    if process.source in _BINDS_NOTHING or (alone and len(mask) > 1):
        return mask
    parent = limits.parent_mask & limits.cpuset
    if parent and not parent <= mask:
        return parent
    # The parent has our mask: the launcher bound nothing, or a shell stands between it and us.
    return mask if len(mask) > 1 else limits.cpuset


def _with_line(binding: Binding, line: str) -> Binding:
    return replace(binding, message=f"{binding.message}\n[launch] {line}") if line else binding


def _apply(binding: Binding, limits: CpuLimits, *, several_nodes: bool) -> Binding:
    try:
        os.sched_setaffinity(0, binding.cpus)
    except OSError as error:
        mask = format_cpulist(limits.mask)
        binding = replace(
            binding,
            cpus=tuple(sorted(limits.mask)),
            threads=min(binding.threads, len(limits.mask)),
            nodes=(),
            progress_core=None,
        )
        line = f"warning: could not bind ({error}); the process stays on cpu {mask}, unpinned."
        return _with_line(binding, line)
    if several_nodes:
        try:
            set_memory_policy(binding.nodes)
        except OSError as error:
            line = f"warning: the kernel refused the memory policy ({error}); memory comes from where it is first used."
            return _with_line(binding, line)
    return binding


def _unpinned(threads: int | None, error: Exception) -> Binding:
    """Without a topology nothing is pinned; the mask still says how many threads make sense."""
    mask = tuple(sorted(os.sched_getaffinity(0)))
    return Binding(
        mask,
        threads or len(mask),
        (),
        f"[launch] warning: the topology cannot be read ({error}); the process stays on cpu "
        f"{format_cpulist(mask)}, unpinned.",
    )


def _set_thread_variables(threads: int, environ: MutableMapping[str, str]) -> list[str]:
    """Set them; return what there is to say about it: every value of the user's that is replaced, kept or without effect."""
    lines = []
    before = environ.get("OMP_NUM_THREADS")
    environ["OMP_NUM_THREADS"] = str(threads)
    if before not in (None, str(threads)):
        decides = "" if before == "1" else " Set launch.threads to choose."  # launchers leave a 1 there
        lines.append(f"OMP_NUM_THREADS was {before or chr(39) * 2} and is now {threads}.{decides}")
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if environ.setdefault(name, "1") != "1":
            lines.append(
                f"warning: {name} is {environ[name]} and was kept: numpy's BLAS runs threads of its own beside the "
                "kernels'. Unset it."
            )
    if placed := [name for name in _OPENMP_PLACES if environ.get(name)]:
        lines.append(
            f"{', '.join(placed)} {'place' if len(placed) > 1 else 'places'} the threads of OpenMP libraries alone; "
            "cktrain's own are placed by launch.bind."
        )
    return lines
