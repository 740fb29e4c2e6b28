"""The split of a node among its ranks, over made-up machines; and the binding itself, on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.comm.environment import ProcessEnvironment
from cktrain.host.bind import bind, plan_binding
from cktrain.host.cpu_limits import CpuLimits
from cktrain.host.placement import STAYING_INSIDE, split_cores
from cktrain.host.topology import HardwareThread, Topology, read_topology


def machine(cores_per_node, nodes_per_package=1, smt=1) -> Topology:
    """A machine with `cores_per_node[i]` cores in node i; siblings are numbered after all cores."""
    total = sum(cores_per_node)
    threads = []
    core = 0
    for node, count in enumerate(cores_per_node):
        first = core
        for _ in range(count):
            for t in range(smt):
                threads.append(
                    HardwareThread(core + t * total, core, node // nodes_per_package, node, cache=first)
                )
            core += 1
    return Topology(tuple(sorted(threads, key=lambda thread: thread.cpu)))


def limits(topology, mask=None, parent=None, cpuset=None, quota=None) -> CpuLimits:
    everything = topology.cpus
    mask = everything if mask is None else frozenset(mask)
    return CpuLimits(
        mask,
        mask if parent is None else frozenset(parent),
        everything if cpuset is None else frozenset(cpuset),
        quota,
    )


def under_mpirun(local_rank, local_size) -> ProcessEnvironment:
    return ProcessEnvironment(local_rank, local_size, local_rank, local_size, "openmpi")


ALONE = ProcessEnvironment()

node_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


class TestSplit:
    @given(node_sizes, st.integers(1, 16), st.sampled_from([1, 2]))
    def test_every_core_once_and_nobody_starved(self, sizes, ranks, smt):
        cores = machine(sizes, smt=smt).cores()
        shares = split_cores(cores, ranks)
        assert len(shares) == ranks
        first_threads = [core.cpus[0] for core in cores]
        if ranks <= len(cores):
            # In order, contiguous, each core's first thread exactly once.
            assert [cpu for share in shares for cpu in share.cpus] == first_threads
            assert min(share.threads for share in shares) >= STAYING_INSIDE * (len(cores) // ranks)
            assert not any(share.shared for share in shares)
        else:
            assert all(share.threads == 1 and len(share.cpus) == 1 and share.shared for share in shares)
            used = [share.cpus[0] for share in shares]
            assert {cpu % len(cores) for cpu in used} == set(range(len(cores)))
            per_core = [sum(cpu % len(cores) == core for cpu in used) for core in range(len(cores))]
            assert max(per_core) - min(per_core) <= 1
            if ranks <= smt * len(cores):
                assert len(set(used)) == ranks  # a hardware thread each
        assert all(share.threads <= len(cores) for share in shares)

    @given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
    def test_equal_nodes_are_not_crossed(self, nodes, cores, ranks_per_node):
        ranks_per_node = min(ranks_per_node, cores)
        topology = machine([cores] * nodes)
        node_of = {thread.cpu: thread.node for thread in topology.threads}
        shares = split_cores(topology.cores(), nodes * ranks_per_node)
        assert all(len({node_of[cpu] for cpu in share.cpus}) == 1 for share in shares)

    @pytest.mark.parametrize(
        "sizes, ranks, expected",
        [
            ([4, 3], 2, [4, 3]),  # a hidden core: the even split 3, 4 would cross
            ([3, 4], 2, [3, 4]),
            ([32, 32], 3, [21, 21, 22]),  # whole nodes would give 16, 16, 32: ranks wait for the slowest
            ([4, 4, 4, 4], 2, [8, 8]),
            ([2, 2, 2], 2, [3, 3]),
            ([64, 64], 8, [16] * 8),
            ([8] * 8, 4, [16] * 4),
            ([1], 1, [1]),
        ],
    )
    def test_sizes(self, sizes, ranks, expected):
        assert [share.threads for share in split_cores(machine(sizes).cores(), ranks)] == expected

    def test_smt_siblings_serve_only_when_ranks_outnumber_cores(self):
        cores = machine([2], smt=2).cores()
        assert [share.cpus for share in split_cores(cores, 2)] == [(0,), (1,)]
        assert sorted(share.cpus[0] for share in split_cores(cores, 4)) == [0, 1, 2, 3]

    def test_no_core(self):
        with pytest.raises(ValueError, match="no core is allowed"):
            split_cores([], 1)


class TestAuto:
    def test_single_process_takes_all_cores(self):
        binding = plan_binding(machine([4, 4], smt=2), limits(machine([4, 4], smt=2)), ALONE, "auto")
        assert (binding.cpus, binding.threads, binding.node) == (tuple(range(8)), 8, None)

    def test_taskset_is_obeyed(self):
        topology = machine([4])
        binding = plan_binding(topology, limits(topology, mask={2}, parent=range(4)), ALONE, "auto")
        assert binding.cpus == (2,)

    @pytest.mark.parametrize("parent", [{0}, set(range(8))])
    def test_single_core_mask_of_mpirun_is_widened(self, parent):
        """With a shell between mpirun and us the parent's mask is the same single core."""
        topology = machine([4, 4])
        given_core = limits(topology, mask={0}, parent=parent)
        binding = plan_binding(topology, given_core, under_mpirun(0, 2), "auto")
        assert (binding.cpus, binding.threads, binding.node) == ((0, 1, 2, 3), 4, 0)
        assert "mask widened from cpu 0, given by the launcher, to 0-3" in binding.message

    def test_mpirun_with_one_rank_is_widened(self):
        topology = machine([4])
        binding = plan_binding(
            topology, limits(topology, mask={0}, parent=range(4)), under_mpirun(0, 1), "auto"
        )
        assert binding.cpus == (0, 1, 2, 3)

    def test_widening_stops_at_the_cpuset(self):
        topology = machine([8])
        held = limits(topology, mask={4}, parent=range(8), cpuset={4, 5})
        binding = plan_binding(topology, held, under_mpirun(0, 1), "auto")
        assert binding.cpus == (4, 5)

    def test_widening_stops_at_the_launchers_own_mask(self):
        topology = machine([8])
        held = limits(topology, mask={2}, parent=range(2, 6))
        shares = [plan_binding(topology, held, under_mpirun(r, 2), "auto").cpus for r in range(2)]
        assert shares == [(2, 3), (4, 5)]

    def test_shared_socket_mask_is_divided(self):
        """Open MPI gives more than two ranks a whole NUMA node, shared with others."""
        topology = machine([4, 4])
        shares = []
        for rank in range(4):
            mask = range(4) if rank % 2 == 0 else range(4, 8)
            held = limits(topology, mask=mask, parent=range(8))
            shares.append(plan_binding(topology, held, under_mpirun(rank, 4), "auto").cpus)
        assert shares == [(0, 1), (2, 3), (4, 5), (6, 7)]

    @pytest.mark.parametrize("sizes", [[16], [8, 8], [64, 64], [2] * 8])
    @pytest.mark.parametrize("ranks", range(1, 17))
    def test_ranks_never_meet(self, sizes, ranks):
        topology = machine(sizes, smt=2)
        bindings = [
            plan_binding(topology, limits(topology), under_mpirun(rank, ranks), "auto")
            for rank in range(ranks)
        ]
        cpus = [cpu for binding in bindings for cpu in binding.cpus]
        progress = [b.progress_core for b in bindings if b.progress_core is not None]
        assert len(cpus) == sum(binding.threads for binding in bindings)
        assert len({*cpus, *progress}) == len(cpus) + len(progress) == sum(sizes)
        assert not any("warning" in binding.message for binding in bindings)

    def test_more_ranks_than_cores_is_said(self):
        topology = machine([2])
        for rank in range(3):
            binding = plan_binding(topology, limits(topology), under_mpirun(rank, 3), "auto")
            assert binding.threads == 1
            assert "warning: 3 ranks share 2 cores" in binding.message
            assert "--cpus-per-task" in binding.message

    def test_cgroup_with_one_core_is_said(self):
        topology = machine([8])
        held = limits(topology, mask={3}, cpuset={3})
        binding = plan_binding(topology, held, under_mpirun(1, 2), "auto")
        assert "2 ranks share 1 core;" in binding.message

    @pytest.mark.parametrize("quota, ranks, threads", [(4.0, 1, 4), (2.5, 1, 2), (3.0, 2, 1), (0.5, 1, 1)])
    def test_quota_limits_threads(self, quota, ranks, threads):
        topology = machine([8])
        binding = plan_binding(topology, limits(topology, quota=quota), under_mpirun(0, ranks), "auto")
        assert binding.threads == threads
        assert f"quota of {quota:g} CPUs" in binding.message

    def test_generous_quota_is_not_mentioned(self):
        topology = machine([8])
        binding = plan_binding(topology, limits(topology, quota=8.0), ALONE, "auto")
        assert binding.threads == 8 and "quota" not in binding.message

    def test_cgroup_with_one_core_is_said_to_a_rank_that_has_it_alone(self):
        topology = machine([8])
        held = limits(topology, mask={3}, cpuset={3})
        binding = plan_binding(topology, held, under_mpirun(0, 1), "auto")
        assert binding.cpus == (3,)
        assert "warning: the cgroup holds 1 of this node's 8 cores" in binding.message
        assert "--cpus-per-task=N" in binding.message

    def test_own_launcher_keeps_to_its_mask(self):
        """`taskset -c 2,3 cktrain launch`: the agent's mask is the user's."""
        topology = machine([8])
        held = limits(topology, mask={2, 3}, parent=range(8))
        shares = [
            plan_binding(topology, held, ProcessEnvironment(r, 2, r, 2, "cktrain"), "auto").cpus
            for r in (0, 1)
        ]
        assert shares == [(2,), (3,)]

    def test_launcher_that_tells_no_count_keeps_the_mask(self):
        topology = machine([8])
        process = ProcessEnvironment(1, None, None, None, "pmix")
        binding = plan_binding(topology, limits(topology, mask={1, 2}), process, "auto")
        assert (binding.cpus, binding.threads) == ((1, 2), 2)
        assert "warning" in binding.message


def under_srun(local_rank, local_size) -> ProcessEnvironment:
    return ProcessEnvironment(local_rank, local_size, local_rank, local_size, "slurm")


class TestSlurm:
    def test_single_core_mask_is_widened_to_the_cpuset(self):
        topology = machine([4, 4])
        held = limits(topology, mask={0}, parent=range(8))
        binding = plan_binding(topology, held, under_srun(1, 2), "auto")
        assert binding.cpus == (4, 5, 6, 7)
        assert "mask widened" in binding.message or "mask moved" in binding.message

    def test_masks_of_several_cores_are_kept(self):
        """--cpus-per-task=2 --cpu-bind: the choice of whoever wrote the script."""
        topology = machine([8], smt=2)
        held = limits(topology, mask={2, 3, 10, 11}, parent=range(16))
        binding = plan_binding(topology, held, under_srun(1, 2), "auto")
        assert (binding.cpus, binding.threads) == ((2, 3), 2)
        assert "srun gave this rank cpu 2-3,10-11: it keeps to these" in binding.message

    def test_a_mask_that_all_ranks_have_is_divided(self):
        topology = machine([8])
        binding = plan_binding(topology, limits(topology), under_srun(1, 2), "auto")
        assert binding.cpus == (4, 5, 6, 7)

    def test_nothing_is_taken_from_another_job(self):
        """A cpuset of the whole node, of which Slurm granted two CPUs to this job."""
        topology = machine([8])
        held = replace(limits(topology, mask={5}, parent=range(8)), granted=2)
        binding = plan_binding(topology, held, under_srun(1, 2), "auto")
        assert binding.cpus == (5,)
        assert "--cpus-per-task=N" in binding.message


class TestProgressCore:
    def test_none_where_cores_are_few(self):
        topology = machine([30])
        assert plan_binding(topology, limits(topology), under_mpirun(0, 2), "auto").progress_core is None

    def test_one_of_sixteen(self):
        topology = machine([32])
        binding = plan_binding(topology, limits(topology), under_mpirun(1, 2), "auto")
        assert (binding.cpus, binding.progress_core, binding.threads) == (tuple(range(16, 31)), 31, 15)
        assert "communication on cpu 31" in binding.message

    def test_a_rank_alone_has_nobody_to_talk_to(self):
        topology = machine([32])
        assert plan_binding(topology, limits(topology), ALONE, "auto").progress_core is None

    def test_a_core_that_threads_leave_over(self):
        topology = machine([8])
        binding = plan_binding(topology, limits(topology), under_mpirun(0, 2), "auto", threads=3)
        assert (binding.cpus, binding.progress_core, binding.threads) == ((0, 1, 2), 3, 3)

    def test_as_asked(self):
        topology = machine([32])
        held = limits(topology)
        given = plan_binding(topology, held, under_mpirun(0, 2), "auto", progress_core=2)
        assert (given.progress_core, given.threads) == (2, 15) and 2 not in given.cpus
        other = plan_binding(topology, held, under_mpirun(1, 2), "auto", progress_core=2)
        assert (other.progress_core, other.threads) == (2, 16)
        none = plan_binding(topology, held, under_mpirun(0, 2), "auto", progress_core=-1)
        assert (none.progress_core, none.threads) == (None, 16)

    def test_a_quota_leaves_cores_over_but_no_time(self):
        topology = machine([64])
        binding = plan_binding(topology, limits(topology, quota=8.0), under_mpirun(0, 2), "auto")
        assert (binding.threads, binding.progress_core) == (4, None)


def test_each_rank_is_told_the_nearest_of_several_rdma_devices(make_sysfs):
    nics = [("mlx5_0", 0, True, True), ("mlx5_1", 1, True, True), ("eno1", 1, False, True)]
    topology = read_topology(make_sysfs(packages=2, cores=4, nics=nics))
    bindings = [plan_binding(topology, limits(topology), under_mpirun(r, 4), "auto") for r in range(4)]
    assert [binding.rdma_device for binding in bindings] == ["mlx5_0", "mlx5_0", "mlx5_1", "mlx5_1"]
    assert "RDMA by mlx5_1" in bindings[3].message
    only = read_topology(make_sysfs(packages=2, cores=4, nics=[nics[0], ("mlx5_1", 1, True, False), nics[2]]))
    binding = plan_binding(only, limits(only), under_mpirun(3, 4), "auto")
    assert binding.rdma_device is None


class TestOtherModes:
    def test_inherit_keeps_the_mask(self):
        topology = machine([4], smt=2)
        held = limits(topology, mask={0, 4, 1}, parent=range(8))
        binding = plan_binding(topology, held, under_mpirun(0, 2), "inherit")
        assert (binding.cpus, binding.threads) == ((0, 1, 4), 2)  # two cores, three hardware threads

    def test_inherit_warns_where_nobody_bound(self):
        topology = machine([4])
        binding = plan_binding(topology, limits(topology), under_mpirun(0, 2), "inherit")
        assert "warning" in binding.message and "all 4 cores" in binding.message

    def test_none_divides_threads_but_not_cpus(self):
        topology = machine([4])
        binding = plan_binding(topology, limits(topology), under_mpirun(0, 2), "none")
        assert (binding.cpus, binding.threads) == ((0, 1, 2, 3), 2)


@pytest.mark.parametrize("mode", ["auto", "inherit", "none"])
@pytest.mark.parametrize("threads", [0, 5])
def test_threads_beyond_the_cores(mode, threads):
    topology = machine([4], smt=2)
    with pytest.raises(ValueError, match=rf"threads: {threads} on rank 0, which has 4 cores. Give 1 to 4"):
        plan_binding(topology, limits(topology), ALONE, mode, threads)


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"'close' is unknown. Give one of auto, inherit, none"):
        bind(ALONE, mode="close")


def test_threads_override():
    topology = machine([4])
    assert plan_binding(topology, limits(topology), ALONE, "auto", 3).threads == 3


def test_described_machine(make_sysfs):
    """Two sockets of 64 cores, SMT, in eight nodes: sysfs to shares."""
    topology = read_topology(make_sysfs(packages=2, nodes=4, cores=16, smt=2))
    bindings = [plan_binding(topology, limits(topology), under_mpirun(r, 8), "auto") for r in range(8)]
    assert [binding.node for binding in bindings] == list(range(8))
    assert (bindings[7].cpus, bindings[7].progress_core) == (tuple(range(112, 127)), 127)


PROGRAM = """
import json, os, sys
os.sched_setaffinity(0, json.loads(sys.argv[1]))
from cktrain.comm.environment import read_process_environment
from cktrain.host.bind import bind
binding = bind(read_process_environment(os.environ), **json.loads(sys.argv[2]))
names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
print(json.dumps({
    "cpus": binding.cpus, "threads": binding.threads, "message": binding.message,
    "mask": sorted(os.sched_getaffinity(0)), "numpy": "numpy" in sys.modules,
    "variables": [os.environ.get(name) for name in names],
}))
"""


def bind_in_a_process(mask, options=None, **environment):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sorted(mask)), json.dumps(options or {})],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMP_NUM_THREADS": "1",
}


def test_this_process_is_bound_and_its_pools_are_told():
    everything = sorted(os.sched_getaffinity(0))
    got = bind_in_a_process(everything[:1], **MPIRUN)
    assert got["mask"] == list(got["cpus"])
    assert set(got["mask"]) <= set(everything)
    assert len(got["mask"]) == got["threads"] or "quota" in got["message"]
    assert not got["numpy"]
    assert got["variables"] == [str(got["threads"]), "1", "1"]
    cores = read_topology().cores(everything)
    assert len(got["mask"]) == len(cores)


@pytest.mark.parametrize("mode", ["inherit", "none"])
def test_other_modes_leave_the_mask(mode):
    mask = sorted(os.sched_getaffinity(0))[:1]
    got = bind_in_a_process(mask, {"mode": mode}, **MPIRUN)
    assert got["mask"] == mask and got["threads"] == 1


def test_one_openmp_thread_is_repaired_and_said():
    everything = sorted(os.sched_getaffinity(0))
    got = bind_in_a_process(everything, OMP_NUM_THREADS="1")
    assert got["variables"][0] == str(got["threads"])
    assert ("OMP_NUM_THREADS was 1 and is now" in got["message"]) == (got["threads"] > 1)


def test_blas_variables_of_the_user_are_kept():
    got = bind_in_a_process(os.sched_getaffinity(0), OPENBLAS_NUM_THREADS="2")
    assert got["variables"][1:] == ["2", "1"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, []),
        ({"OMP_NUM_THREADS": "2"}, []),
        ({"OMP_NUM_THREADS": "1"}, ["OMP_NUM_THREADS was 1 and is now 2."]),
        ({"OMP_NUM_THREADS": "16"}, ["OMP_NUM_THREADS was 16 and is now 2. Set launch.threads to choose."]),
        ({"OMP_NUM_THREADS": "4,2"}, ["OMP_NUM_THREADS was 4,2 and is now 2. Set launch.threads to choose."]),
        ({"OMP_NUM_THREADS": ""}, ["OMP_NUM_THREADS was '' and is now 2. Set launch.threads to choose."]),
        ({"MKL_NUM_THREADS": "8"}, ["warning: MKL_NUM_THREADS is 8 and was kept"]),
        ({"OPENBLAS_NUM_THREADS": "8", "MKL_NUM_THREADS": "1"}, ["warning: OPENBLAS_NUM_THREADS is 8 and was kept"]),
        ({"GOMP_CPU_AFFINITY": "0-3"}, ["GOMP_CPU_AFFINITY places the threads of OpenMP libraries alone"]),
        ({"OMP_PLACES": "cores", "KMP_AFFINITY": "compact"}, ["OMP_PLACES, KMP_AFFINITY place the threads"]),
    ],
)  # fmt: skip
def test_every_variable_that_is_replaced_kept_or_without_effect_is_said(environ, said):
    from cktrain.host.bind import _set_thread_variables

    lines = _set_thread_variables(2, environ)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
    assert environ["OMP_NUM_THREADS"] == "2"


def test_unreadable_topology_leaves_the_process_unpinned(tmp_path):
    mask = sorted(os.sched_getaffinity(0))
    got = bind_in_a_process(mask, {"sysfs": str(tmp_path)})
    assert got["mask"] == mask and got["threads"] == len(mask)
    assert "warning: the topology cannot be read" in got["message"] and str(tmp_path) in got["message"]


def test_cpus_that_cannot_be_had_leave_the_process_unpinned(make_sysfs, tmp_path):
    """sysfs names CPUs that this machine does not have."""
    sysfs = make_sysfs(cores=4)
    online = sysfs / "devices/system/cpu/online"
    online.write_text("900-903\n")
    mask = sorted(os.sched_getaffinity(0))
    got = bind_in_a_process(mask, {"sysfs": str(sysfs), "proc": str(tmp_path)}, **MPIRUN)
    assert got["mask"] == mask and got["threads"] <= len(mask)
    assert "could not bind" in got["message"]
