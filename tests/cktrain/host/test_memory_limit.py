"""The memory of a node from made-up trees of both cgroup versions."""

from __future__ import annotations

import pytest

from cktrain.host.memory_limit import cgroup_limit, node_memory

MEMINFO = {"proc/meminfo": "MemTotal:       1000 kB\nMemFree:  10 kB\n"}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),
        (
            {
                "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job_7/memory.max": "8192\n",
                "sys/fs/cgroup/slurm/memory.max": "65536\n",
            },
            8192,
        ),
        # The path is the host's, the mount is the container's own group.
        ({"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),
        (
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/unified/job/memory.max": "12288\n",
            },
            12288,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/job/step\n2:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/step/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "20480\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            20480,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "99999999\n"}, 99999999),
    ],
)
def test_the_least_that_is_granted_on_the_way_to_the_root_holds(tmp_path, files, limit):
    for name, text in {**MEMINFO, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    roots = tmp_path / "proc", tmp_path / "sys"
    assert cgroup_limit(*roots) == limit
    assert node_memory(*roots) == min(1000 * 1024, limit or 1 << 60)
