"""cpuset and CPU quota from made-up cgroup trees, both versions."""

from __future__ import annotations

import os

import pytest

from cktrain.host.cpu_limits import read_cgroup, read_cpu_limits
from cktrain.host.topology import read_topology


@pytest.fixture
def tree(tmp_path):
    """`tree({path: text})` writes files below tmp_path and returns (sysfs, proc)."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "sys", tmp_path / "proc"

    return write


def test_version_2(tree):
    roots = tree(
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            "sys/fs/cgroup/slurm/job_7/step_0/cpuset.cpus.effective": "4-7\n",
            "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "800000 100000\n",
        }
    )
    assert read_cgroup(*roots) == (frozenset({4, 5, 6, 7}), 2.5)


def test_version_2_inside_a_container(tree):
    """The path is the host's, the mount is the container's own group."""
    roots = tree(
        {
            "proc/self/cgroup": "0::/docker/0123abc\n",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-1\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
        }
    )
    assert read_cgroup(*roots) == (frozenset({0, 1}), 1.5)


def test_version_1(tree):
    roots = tree(
        {
            "proc/self/cgroup": "5:memory:/job\n3:cpuset:/job\n2:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/cpuset/job/cpuset.effective_cpus": "2-3\n",
            "sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0-3\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        }
    )
    assert read_cgroup(*roots) == (frozenset({2, 3}), 3.0)


def test_nothing_told(tree):
    assert read_cgroup(*tree({})) == (frozenset(), None)


def test_without_a_cpuset_all_that_is_online_may_be_had(tree, make_sysfs):
    sysfs = make_sysfs(cores=6)
    limits = read_cpu_limits(read_topology(sysfs), sysfs, tree({})[1])
    assert limits.cpuset == frozenset(range(6))
    assert limits.mask == frozenset(os.sched_getaffinity(0))
    assert limits.quota is None
