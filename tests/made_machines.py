"""Made-up machines, as the files that the kernel would show of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pytest

from cktrain.host.topology import format_cpulist


@pytest.fixture
def make_sysfs(tmp_path: Path) -> Callable[..., Path]:
    """`make_sysfs(packages, nodes, ...)` is write_sysfs in the test's own folder."""
    return partial(write_sysfs, tmp_path)


def write_sysfs(
    folder: Path,
    packages: int = 1,
    nodes: int = 1,
    cores: int = 4,
    smt: int = 1,
    offline: Collection[int] = (),
    cache: int | None = None,
    nics: Collection[tuple[str, int, bool, bool]] = (),
) -> Path:
    """Write a tree in the folder and return its root. A large machine has thousands of files: share what is only read.

    `nodes` NUMA nodes per package, `cores` cores per node, `smt` hardware threads per core, `cache` cores per
    last-level cache (a node's by default), `nics` as (name, node, is it RDMA, is it up). As Linux on x86 numbers them:
    all cores' first threads come first, then their siblings.
    """
    root = folder / f"sys{len(list(folder.iterdir()))}"
    system = root / "devices" / "system"
    total = packages * nodes * cores
    online = [cpu for cpu in range(total * smt) if cpu not in offline]
    write(system / "cpu" / "online", format_cpulist(online))
    for cpu in online:
        core = cpu % total
        directory = system / "cpu" / f"cpu{cpu}"
        siblings = [core + total * t for t in range(smt) if core + total * t in online]
        node = core // cores
        shared = [c for c in online if c % total // (cache or cores) == core // (cache or cores)]
        write(directory / "topology" / "thread_siblings_list", format_cpulist(siblings))
        write(directory / "topology" / "physical_package_id", str(node // nodes))
        for index, (level, cpus) in enumerate([(1, siblings), (1, siblings), (2, siblings), (3, shared)]):
            write(directory / "cache" / f"index{index}" / "level", str(level))
            write(directory / "cache" / f"index{index}" / "shared_cpu_list", format_cpulist(cpus))
    for node in range(packages * nodes):
        cpus = [cpu for cpu in online if cpu % total // cores == node]
        write(system / "node" / f"node{node}" / "cpulist", format_cpulist(cpus))
        write(system / "node" / f"node{node}" / "meminfo", f"Node {node} MemTotal:       8388608 kB")
    for name, node, rdma, up in nics:
        directory = root / "class" / ("infiniband" if rdma else "net") / name
        write(directory / "device" / "numa_node", str(node))
        if rdma:
            write(directory / "ports" / "1" / "state", "4: ACTIVE" if up else "1: DOWN")
        else:
            write(directory / "operstate", "up" if up else "down")
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
