"""The topology as read from made-up sysfs trees, and the kernel's list format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.host.topology import Nic, Topology, describe, format_cpulist, parse_cpulist, read_topology


@pytest.mark.parametrize(
    "text, cpus",
    [("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]), ("5", [5]), ("", []), ("\n", []), ("3,1-2", [1, 2, 3])],
)
def test_cpulist(text, cpus):
    assert parse_cpulist(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "0-99999999999", "²", "0x3", "1 2", "0-3-5"])
def test_what_is_no_cpulist(text):
    with pytest.raises(ValueError, match="is no list of CPUs"):
        parse_cpulist(text)


@given(st.sets(st.integers(0, 300)))
def test_cpulist_round_trip(cpus):
    assert parse_cpulist(format_cpulist(cpus)) == sorted(cpus)


def test_cpulist_is_as_short_as_the_kernel_writes_it():
    assert format_cpulist([7, 0, 1, 2, 4]) == "0-2,4,7"


def test_two_sockets_with_smt(make_sysfs):
    topology = read_topology(make_sysfs(packages=2, nodes=2, cores=4, smt=2))
    assert topology.cpus == frozenset(range(32))
    thread = {t.cpu: t for t in topology.threads}[13 + 16]
    assert (thread.core, thread.package, thread.node, thread.cache) == (13, 1, 3, 12)
    cores = topology.cores()
    assert len(cores) == 16
    assert cores[13].cpus == (13, 29)
    assert [core.node for core in cores] == [n for n in range(4) for _ in range(4)]


def test_allowed_cpus_hide_cores_and_siblings(make_sysfs):
    topology = read_topology(make_sysfs(cores=4, smt=2))
    assert [core.cpus for core in topology.cores({1, 5, 6})] == [(1, 5), (6,)]


def test_offline_cpus(make_sysfs):
    topology = read_topology(make_sysfs(cores=4, smt=2, offline={1, 4}))
    assert [core.cpus for core in topology.cores()] == [(0,), (2, 6), (3, 7), (5,)]


def test_nodes_that_are_numbered_across_sockets_are_grouped(make_sysfs):
    """A core's neighbours in the order share its socket, even where CPU numbers alternate."""
    root = make_sysfs(packages=1, cores=4)
    for cpu in range(4):
        path = root / "devices/system/cpu" / f"cpu{cpu}" / "topology" / "physical_package_id"
        path.write_text(str(cpu % 2))
    assert [core.cpus[0] for core in read_topology(root).cores()] == [0, 2, 1, 3]


def test_bare_tree(tmp_path):
    """A container that shows nothing but the list of CPUs."""
    path = tmp_path / "devices" / "system" / "cpu"
    path.mkdir(parents=True)
    (path / "online").write_text("0-1\n")
    topology = read_topology(tmp_path)
    assert isinstance(topology, Topology)
    assert [core.cpus for core in topology.cores()] == [(0,), (1,)]
    assert {(t.package, t.node) for t in topology.threads} == {(0, 0)}


def test_no_tree(tmp_path):
    with pytest.raises(OSError):
        read_topology(tmp_path)


def test_this_machine():
    assert read_topology().cpus


def test_network_cards_and_memory(make_sysfs):
    root = make_sysfs(
        packages=2,
        cores=2,
        nics=[("mlx5_0", 1, True, True), ("eno1", 0, False, True), ("mlx5_1", -1, True, False)],
    )
    (root / "class/net/docker0").mkdir()  # no device stands behind it
    topology = read_topology(root)
    assert topology.nics == (
        Nic("mlx5_0", True, 1, True),
        Nic("mlx5_1", True, None, False),
        Nic("eno1", False, 0, True),
    )
    assert topology.memory == ((0, 8 << 30), (1, 8 << 30))


def test_description(make_sysfs):
    root = make_sysfs(packages=2, nodes=2, cores=2, smt=2, nics=[("mlx5_0", 1, True, True)])
    assert describe(read_topology(root)).splitlines() == [
        "2 sockets, 4 NUMA nodes, 4 last-level caches, 8 cores, 16 hardware threads",
        "node 0: socket 0, 2 cores, cpu 0-1,8-9, 8.0 GiB",
        "node 1: socket 0, 2 cores, cpu 2-3,10-11, 8.0 GiB",
        "node 2: socket 1, 2 cores, cpu 4-5,12-13, 8.0 GiB",
        "node 3: socket 1, 2 cores, cpu 6-7,14-15, 8.0 GiB",
        "RDMA device mlx5_0: node 1, up",
    ]
