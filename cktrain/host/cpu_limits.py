"""What this process may use of its node: its affinity mask, its cgroup's cpuset, its cgroup's CPU quota.

The mask can be widened by the process itself, up to the cpuset; the cpuset and the quota cannot. Both cgroup
versions are read. Inside a container the path in /proc/self/cgroup may be the host's: then the root of the
mount, which is the container's own group, is read instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cktrain.host.topology import Topology, parse_cpulist


@dataclass(frozen=True)
class CpuLimits:
    """Logical CPUs and CPU time that a process may use."""

    mask: frozenset[int]
    """Affinity mask that the process was started with."""
    parent_mask: frozenset[int]
    """Affinity mask of the process that started it: the launcher's own, where nothing stands between."""
    cpuset: frozenset[int]
    """All that sched_setaffinity will grant: the cgroup's cpuset, of what is online."""
    quota: float | None
    """CPU time per time that the cgroup grants to all its processes together; None: no limit."""
    granted: int | None = None
    """Logical CPUs of this node that Slurm says it granted to the job; None: nobody says."""


def read_cpu_limits(
    topology: Topology,
    sysfs: str | Path = "/sys",
    proc: str | Path = "/proc",
    environ: Mapping[str, str] = os.environ,
) -> CpuLimits:
    """Return what the calling process may use."""
    mask = frozenset(os.sched_getaffinity(0))
    try:
        parent_mask = frozenset(os.sched_getaffinity(os.getppid()))
    except OSError:  # another PID namespace
        parent_mask = mask
    cpuset, quota = read_cgroup(sysfs, proc)
    told = environ.get("SLURM_CPUS_ON_NODE", "")
    granted = int(told) if re.fullmatch("[0-9]{1,6}", told) else None
    cpuset = (cpuset & topology.cpus) if cpuset else topology.cpus
    return CpuLimits(mask, parent_mask, cpuset, quota, granted)


def read_cgroup(sysfs: str | Path, proc: str | Path) -> tuple[frozenset[int], float | None]:
    """Return the cpuset (empty where none is told) and the CPU quota of this process's cgroup.

    The quota is the smallest on the way from the group to the root: each of them holds.
    """
    mount = Path(sysfs) / "fs" / "cgroup"
    cpuset: frozenset[int] = frozenset()
    quotas = []
    for line in _read(Path(proc) / "self" / "cgroup").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:  # version 2: one tree
            roots = [mount, mount / "unified"]
            cpuset_files, quota_of = ["cpuset.cpus.effective"], _quota_v2
        elif "cpuset" in controllers.split(","):
            roots = [mount / "cpuset", mount / controllers]
            cpuset_files, quota_of = ["cpuset.effective_cpus", "cpuset.cpus"], None
        elif "cpu" in controllers.split(","):
            roots = [mount / "cpu", mount / controllers]
            cpuset_files, quota_of = [], _quota_v1
        else:
            continue
        for root in roots:
            for group in group_and_ancestors(root, path):
                for name in cpuset_files:
                    cpuset = cpuset or frozenset(parse_cpulist(_read(group / name)))
                if quota_of is not None and (quota := quota_of(group)) is not None:
                    quotas.append(quota)
    return cpuset, min(quotas, default=None)


def group_and_ancestors(root: Path, path: str) -> list[Path]:
    """The folders of a cgroup and of those that it lies in, up to the root of the mount, whose limits hold, too."""
    group = root / path.strip("/")
    return [group, *(parent for parent in group.parents if parent == root or root in parent.parents)]


def _quota_v2(group: Path) -> float | None:
    fields = _read(group / "cpu.max").split()
    return int(fields[0]) / int(fields[1]) if len(fields) == 2 and fields[0] != "max" else None


def _quota_v1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
