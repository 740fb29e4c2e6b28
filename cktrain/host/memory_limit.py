"""How much memory this process's node has for it: the machine's, or the least that a cgroup on the way to the root grants.

Both cgroup versions are read, and each ancestor's limit holds, too. What is free at the moment is not asked.
"""

from __future__ import annotations

import re
from pathlib import Path

from cktrain.host.cpu_limits import group_and_ancestors

UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as a very large number."""


def node_memory(proc: str | Path = "/proc", sysfs: str | Path = "/sys") -> int:
    """Bytes that all processes of this one's cgroup may have together on this node."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(Path(proc) / "meminfo"), re.MULTILINE)
    assert found is not None, "meminfo names MemTotal"
    total = int(found[1]) * 1024
    limit = cgroup_limit(proc, sysfs)
    return total if limit is None else min(total, limit)


def cgroup_limit(proc: str | Path = "/proc", sysfs: str | Path = "/sys") -> int | None:
    """The smallest memory limit on the way from this process's cgroup to the root, bytes; None: there is none."""
    limits = []
    mount = Path(sysfs) / "fs" / "cgroup"
    for line in _read(Path(proc) / "self" / "cgroup").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            roots, name = [mount, mount / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            roots, name = [mount / "memory", mount / controllers], "memory.limit_in_bytes"
        else:
            continue
        for root in roots:
            for group in group_and_ancestors(root, path):
                text = _read(group / name)
                if text.isdigit() and int(text) < UNLIMITED:
                    limits.append(int(text))
    return min(limits, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
