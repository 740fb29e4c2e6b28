"""Placements on made-up machines: sockets, nodes, caches, hidden cores, tensor groups, cards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_machines import write_sysfs

from cktrain.host.placement import STAYING_INSIDE, place_ranks, split_groups
from cktrain.host.topology import Nic, Topology, read_topology
from cktrain.launch.topology_file import HostDescription


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    """Two sockets of 64 cores in eight nodes, with SMT."""
    return read_topology(write_sysfs(tmp_path_factory.mktemp("big"), packages=2, nodes=4, cores=16, smt=2))


@pytest.fixture(scope="module")
def two_sockets(tmp_path_factory: pytest.TempPathFactory) -> Topology:
    """Two sockets of 64 cores, a node each, with SMT."""
    return read_topology(write_sysfs(tmp_path_factory.mktemp("two"), packages=2, nodes=1, cores=64, smt=2))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16, 32, 64, 128])
def test_eight_nodes(big, ranks):
    """Fewer ranks than nodes span whole ones; more share one without crossing it."""
    places = place_ranks(big, big.cpus, ranks, progress_core=-1)
    assert [place.threads for place in places] == [128 // ranks] * ranks
    assert {len(place.nodes) for place in places} == {max(1, 8 // ranks)}
    assert all(len(place.packages) == 1 for place in places) or ranks == 1
    assert sorted(cpu for place in places for cpu in place.cpus) == list(range(128))  # first threads only


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_two_sockets_of_64(two_sockets, ranks):
    places = place_ranks(two_sockets, two_sockets.cpus, ranks, progress_core=-1)
    assert all(len(place.nodes) == 1 for place in places)
    assert [place.nodes[0] for place in places] == [0] * (ranks // 2) + [1] * (ranks // 2)


def test_each_progress_core_is_its_ranks_own(two_sockets):
    places = place_ranks(two_sockets, two_sockets.cpus, 4)
    assert [place.progress_core for place in places] == [31, 63, 95, 127]
    assert [place.threads for place in places] == [31] * 4


def test_hidden_cores_do_not_move_a_rank_to_another_socket(two_sockets):
    """Six cores of the first socket are another job's: 58 and 64 are better than 61 and 61 across sockets."""
    hidden = {cpu + shift for cpu in range(6) for shift in (0, 128)}
    places = place_ranks(two_sockets, two_sockets.cpus - hidden, 2, progress_core=-1)
    assert [(place.threads, place.nodes) for place in places] == [(58, (0,)), (64, (1,))]


def test_many_hidden_cores_do(two_sockets):
    """With 32 of them gone, one rank would wait for the other half of the time."""
    hidden = {cpu + shift for cpu in range(32) for shift in (0, 128)}
    places = place_ranks(two_sockets, two_sockets.cpus - hidden, 2, progress_core=-1)
    assert [place.threads for place in places] == [48, 48]
    assert places[0].nodes == (0, 1)


def test_a_hidden_sibling_leaves_the_core(two_sockets):
    places = place_ranks(two_sockets, two_sockets.cpus - {0, 129}, 2, progress_core=-1)
    assert places[0].cpus[-1] == 128  # of core 0 the second thread
    assert [place.threads for place in places] == [64, 64]


def test_caches_are_not_cut_where_it_can_be_helped(make_sysfs):
    """A node of 8 caches of 8 cores among 3, 4 and 7 ranks."""
    topology = read_topology(make_sysfs(cores=64, cache=8))
    sizes = {
        r: [p.threads for p in place_ranks(topology, topology.cpus, r, progress_core=-1)] for r in (3, 4, 7)
    }
    assert sizes[4] == [16] * 4
    assert sizes[3] == [21, 21, 22]  # whole caches would leave 16
    assert sorted(sizes[7]) == [8, 8, 8, 8, 8, 8, 16]  # nine each, but for the caches


class TestTensorGroups:
    def test_a_group_stays_inside_a_socket(self, two_sockets):
        """Six ranks in groups of three: by ranks alone the third would stand with one foot in each socket."""
        places = place_ranks(two_sockets, two_sockets.cpus, 6, tensor=3, progress_core=-1)
        assert [place.packages for place in places] == [(0,)] * 3 + [(1,)] * 3
        assert [place.threads for place in places] == [21, 21, 22] * 2

    @pytest.mark.parametrize("tensor", [2, 4, 8])
    def test_of_eight_nodes(self, big, tensor):
        places = place_ranks(big, big.cpus, 16, tensor=tensor, progress_core=-1)
        for begin in range(0, 16, tensor):
            group = places[begin : begin + tensor]
            assert len({package for place in group for package in place.packages}) == 1
        assert all(len(place.nodes) == 1 for place in places)

    def test_a_group_larger_than_a_socket_spans_it(self, two_sockets):
        places = place_ranks(two_sockets, two_sockets.cpus, 4, tensor=4, progress_core=-1)
        assert [place.packages for place in places] == [(0,), (0,), (1,), (1,)]

    @given(
        st.integers(1, 2),
        st.integers(1, 4),
        st.integers(1, 12),
        st.integers(1, 6),
        st.integers(1, 4),
        st.data(),
    )
    def test_every_core_once_and_nobody_starved(self, packages, nodes, cores, groups, tensor, data):
        machine = HostDescription(name="a", sockets=packages, nodes_per_socket=nodes, cores_per_node=cores)
        topology = machine.topology()
        hidden = data.draw(st.sets(st.sampled_from(sorted(topology.cpus)), max_size=len(topology.cpus) - 1))
        allowed = topology.cores(topology.cpus - hidden)
        shares = split_groups(allowed, groups * tensor, tensor)
        assert len(shares) == groups * tensor
        if groups * tensor <= len(allowed):
            assert [cpu for share in shares for cpu in share.cpus] == [core.cpus[0] for core in allowed]
            # A group has seven eighths of an even part at least, and a rank seven eighths of an even part of that.
            group = STAYING_INSIDE * (len(allowed) // groups)
            assert min(share.threads for share in shares) >= STAYING_INSIDE * (int(group) // tensor)


class TestNics:
    def nic(self, name, node, rdma=True, up=True):
        return Nic(name, rdma, node, up)

    def names(self, topology, nics, ranks):
        machine = Topology(topology.threads, tuple(nics), topology.memory)
        return [place.nic.name for place in place_ranks(machine, machine.cpus, ranks)]

    def test_of_the_same_node_then_of_the_same_socket(self, big):
        nics = [self.nic("a", 1), self.nic("b", 6)]
        assert self.names(big, nics, 8) == ["a"] * 4 + ["b"] * 4
        assert self.names(big, [*nics, self.nic("c", 3)], 8) == ["a", "a", "c", "c"] + ["b"] * 4

    def test_ranks_of_a_node_take_turns(self, two_sockets):
        nics = [self.nic(name, node) for node in (0, 1) for name in (f"x{node}", f"y{node}")]
        assert self.names(two_sockets, nics, 8) == ["x0", "y0", "x0", "y0", "x1", "y1", "x1", "y1"]

    def test_what_is_down_or_no_rdma_comes_last(self, two_sockets):
        nics = [self.nic("down", 0, up=False), self.nic("far", 1), self.nic("eth", 0, rdma=False)]
        assert self.names(two_sockets, nics, 2) == ["far", "far"]

    def test_a_card_without_a_node_is_better_than_none(self, two_sockets):
        assert self.names(two_sockets, [self.nic("a", None)], 2) == ["a", "a"]

    def test_none(self, two_sockets):
        assert {place.nic for place in place_ranks(two_sockets, two_sockets.cpus, 2)} == {None}
