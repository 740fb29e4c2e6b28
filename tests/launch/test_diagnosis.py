"""Made-up machines: what is in the way of each is found, with its remedy; a good one has nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cktrain import cython_kernels
from cktrain.comm.transport import verbs, verbs_problems
from cktrain.comm.transport.verbs_problems import Problem
from cktrain.launch import diagnosis, diagnosis_comm
from cktrain.launch.diagnosis import HostPaths, Section
from cktrain.launch.diagnosis_comm import diagnose, flavour

IPV4 = "0000:0000:0000:0000:0000:ffff:0a09:0001"
FE80 = "fe80:0000:0000:0000:e464:81ff:fe24:94b7"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def place(make_sysfs, tmp_path, monkeypatch) -> HostPaths:
    """Two sockets of 4 cores with SMT, all of them allowed, 64 GiB, huge pages by madvise, nothing else."""
    place = HostPaths(
        make_sysfs(packages=2, cores=4, smt=2), tmp_path / "proc", tmp_path / "dev", {"PATH": ""}
    )
    write(place.proc / "cpuinfo", "processor\t: 0\nmodel name\t: Made-up 9000")
    write(place.proc / "meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB")
    write(place.proc / "self" / "cgroup", "0::/job")
    write(place.sysfs / "devices/system/node/node1/meminfo", f"Node 1 MemTotal:  {32 << 20} kB")
    huge_pages(place, "always [madvise] never", "always within_size advise [never] deny force")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(diagnosis, "why_refused", lambda: None)
    return place


def huge_pages(place: HostPaths, anonymous: str, shared: str) -> None:
    folder = place.sysfs / "kernel" / "mm" / "transparent_hugepage"
    write(folder / "enabled", anonymous)
    write(folder / "shmem_enabled", shared)


def problems(section: Section) -> list[str]:
    return [finding.problem for finding in section.findings]


# ---------------------------------------------------------------------------------------- processor and memory


def test_a_good_machine(place):
    found = diagnosis.cores(place)
    assert found.facts["machine"] == "2 sockets, 2 NUMA nodes, 8 cores, 16 hardware threads"
    assert found.facts["NUMA node 1"] == "CPUs 4-7,12-15, 32.0 GiB"
    assert found.facts["for this process"] == "8 cores (0-15)"
    assert diagnosis.memory(place).facts["memory"] == "60.0 GiB of 64.0 GiB free"
    assert not problems(found) and not problems(diagnosis.memory(place))


def test_memory_that_the_kernel_counts_to_no_node(place):
    """A hypervisor's balloon gives memory back after the boot: the nodes' own figures do not grow."""
    write(place.sysfs / "devices/system/node/node0/meminfo", f"Node 0 MemTotal:  {12 << 20} kB")
    found = diagnosis.cores(place)
    assert found.facts["NUMA node 0"] == "CPUs 0-3,8-11, 12.0 GiB"
    assert found.facts["of no NUMA node"].startswith("20.0 GiB of 64.0 GiB: the kernel counts them to none")
    write(place.sysfs / "devices/system/node/node0/meminfo", f"Node 0 MemTotal:  {31 << 20} kB")
    assert "of no NUMA node" not in diagnosis.cores(place).facts


def test_a_single_node_has_the_machines_memory(place, make_sysfs, tmp_path):
    alone = HostPaths(make_sysfs(packages=1, cores=4), place.proc, place.dev, place.environ)
    write(alone.sysfs / "devices/system/node/node0/meminfo", f"Node 0 MemTotal:  {6 << 20} kB")
    found = diagnosis.cores(alone)
    assert found.facts["NUMA node 0"] == "CPUs 0-3, 64.0 GiB" and "of no NUMA node" not in found.facts


def test_a_container_without_memory_policies(place, monkeypatch):
    monkeypatch.setattr(diagnosis, "why_refused", lambda: "Operation not permitted")
    (finding,) = diagnosis.cores(place).findings
    assert "memory cannot be bound to NUMA nodes (Operation not permitted)" in finding.problem
    assert "--cap-add SYS_NICE" in finding.remedy


def test_a_cgroup_of_less_time_than_cores(place):
    write(place.sysfs / "fs/cgroup/job/cpu.max", "250000 100000")
    section = diagnosis.cores(place)
    assert section.facts["for this process"] == "8 cores (0-15), of which the cgroup grants the time of 2.5"
    assert "grants the CPU time of 2.5 of 8 cores" in problems(section)[0]
    assert "launch.threads: 2" in section.findings[0].remedy


def test_a_narrow_mask(place, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 8})
    section = diagnosis.cores(place)
    assert problems(section) == ["this process was started on 1 core of 8"]
    assert section.findings[0].remedy.startswith("taskset -c 0-15 ")


def test_a_cpuset(place, monkeypatch):
    write(place.sysfs / "fs/cgroup/job/cpuset.cpus.effective", "0-1,8-9")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 8, 9})
    section = diagnosis.cores(place)
    assert section.facts["cgroup's cpuset"] == "2 cores (0-1,8-9)" and not section.findings


def test_no_sysfs(tmp_path):
    (problem,) = problems(diagnosis.cores(HostPaths(sysfs=tmp_path)))
    assert "the topology cannot be read" in problem


@pytest.mark.parametrize("limit", ["memory.max", "version 1"])
def test_little_memory(place, limit):
    if limit == "version 1":
        write(place.proc / "self" / "cgroup", "4:memory:/job")
        write(place.sysfs / "fs/cgroup/memory/memory.limit_in_bytes", str((1 << 63) - 4096))
        write(place.sysfs / "fs/cgroup/memory/job/memory.limit_in_bytes", str(256 << 20))
    else:
        write(place.sysfs / "fs/cgroup/job/memory.max", str(256 << 20))
    section = diagnosis.memory(place)
    assert section.facts["cgroup's limit"] == "0.2 GiB"
    assert "256 MiB of memory are free" in problems(section)[0]


def test_no_huge_pages(place, monkeypatch):
    huge_pages(place, "always madvise [never]", "always within_size advise never [deny] force")
    monkeypatch.setattr("platform.release", lambda: "6.1.0-18-amd64")
    (finding,) = diagnosis.memory(place).findings
    assert finding.remedy.startswith("echo madvise | sudo tee ") and finding.remedy.endswith("/enabled")
    monkeypatch.setattr("platform.release", lambda: "5.14.0-362.el9")  # it cannot gather them itself
    assert [f.remedy.rpartition("/")[2] for f in diagnosis.memory(place).findings] == [
        "enabled",
        "shmem_enabled",
    ]


def test_isa_that_is_not_here(place):
    section = diagnosis.processor(HostPaths(place.sysfs, place.proc, place.dev, {"CKTRAIN_ISA": "sve"}))
    assert section.facts["model"] == "Made-up 9000"
    assert section.findings[-1].blocks and "CKTRAIN_ISA is 'sve'" in problems(section)[-1]


def test_onednn_without_a_library(place, monkeypatch):
    monkeypatch.setattr("cktrain.cython_kernels.available", lambda: ["reference", *cython_kernels.ISAS])
    environ = {"CKTRAIN_ISA": "onednn", "CKTRAIN_LIBDNNL": "/nowhere/libdnnl.so.3"}
    finding = diagnosis.processor(HostPaths(place.sysfs, place.proc, place.dev, environ)).findings[-1]
    assert finding.blocks and "no libdnnl fits (/nowhere/libdnnl.so.3: " in finding.problem
    assert "cktrain[onednn]" in finding.remedy


def test_amx_that_is_not_used(place, monkeypatch):
    idle = cython_kernels.Choice("avx512bf16", "AMX is not used: it is not permitted", "Permit it")
    monkeypatch.setattr("cktrain.cython_kernels.choose", lambda: idle)
    section = diagnosis.processor(place)
    (finding,) = (f for f in section.findings if "AMX" in f.problem)
    assert not finding.blocks and finding.remedy == "Permit it"
    assert section.facts["AMX"] == "AMX is not used: it is not permitted"


def test_contradicting_launcher(place):
    environ = {"RANK": "3", "WORLD_SIZE": "2"}
    (finding,) = diagnosis.software(HostPaths(place.sysfs, place.proc, place.dev, environ)).findings
    assert finding.blocks and "rank 3 of size 2" in finding.problem


# --------------------------------------------------------------------------------------------------------- RDMA


def add_device(place: HostPaths, *gids: str, state: str = "4: ACTIVE", mtu: int = 9000) -> None:
    port = place.sysfs / "class/infiniband/rxe0/ports/1"
    write(port / "state", state)
    write(port / "link_layer", "Ethernet")
    for index, gid in enumerate(gids):
        write(port / "gids" / str(index), gid)
        write(port / "gid_attrs" / "types" / str(index), "RoCE v2")
        write(port / "gid_attrs" / "ndevs" / str(index), "eth0")
    write(place.sysfs / "class/net/eth0/mtu", str(mtu))
    write(place.sysfs / "class/infiniband_verbs/uverbs0/ibdev", "rxe0")
    write(place.dev / "infiniband" / "uverbs0", "")


@pytest.fixture
def with_verbs(monkeypatch):
    """Both providers load, as much memory as wanted may be locked, and groups exist over them."""
    monkeypatch.setattr(verbs, "load_provider", lambda name: None)
    monkeypatch.setattr("cktrain.comm.transport.rdma_device._memlock", lambda: None)
    monkeypatch.setattr("cktrain.comm.bootstrap.TRANSPORTS", ("auto", "rdma", "mpi", "shm", "tcp"))


def test_a_good_device(place, with_verbs):
    add_device(place, FE80, IPV4)
    section = diagnosis_comm.verbs(place)
    assert not problems(section)
    assert section.facts["rxe0 port 1"] == (
        "ACTIVE, Ethernet, GID 1 10.9.0.1 (RoCE v2), eth0 MTU 9000: 4096 bytes in a packet"
    )


def test_a_small_mtu_is_advice(place, with_verbs):
    add_device(place, IPV4, mtu=1500)
    section = diagnosis_comm.verbs(place)
    assert problems(section) == ["eth0 has MTU 1500, so RDMA packets of rxe0 carry 1024 bytes, not 4096"]
    assert "sudo ip link set eth0 mtu 9000" in section.findings[0].remedy
    assert diagnosis_comm._transport("rdma", section).usable


@pytest.mark.parametrize(
    "gids, state, words, remedy",
    [
        ([IPV4], "1: DOWN", "port 1 of rxe0 is DOWN", "sudo ip link set eth0 up"),
        ([FE80], "4: ACTIVE", "only a link-local RoCEv2 GID", "ip address add"),
    ],
)
def test_a_device_that_cannot_be_used(place, with_verbs, gids, state, words, remedy):
    add_device(place, *gids, state=state)
    section = diagnosis_comm.verbs(place)
    transport = diagnosis_comm._transport("rdma", section)
    assert not transport.usable and words in transport.reason and remedy in transport.remedy


def test_memlock_and_providers(place, with_verbs, monkeypatch):
    add_device(place, IPV4)
    monkeypatch.setattr("cktrain.comm.transport.rdma_device._memlock", lambda: 8 << 20)

    def refuse(name: str) -> None:
        raise verbs.ProviderError({name: Problem(f"{name} is not built", "install libibverbs-dev")})

    monkeypatch.setattr(verbs, "load_provider", refuse)
    monkeypatch.setattr(verbs_problems, "installed_library", lambda: None)
    section = diagnosis_comm.verbs(place)
    memlock, native, pyverbs = section.findings
    assert "may lock 8,388,608 bytes" in memlock.problem and "ulimit -l unlimited" in memlock.remedy
    assert (native.problem, pyverbs.problem) == (
        "native: native is not built",
        "pyverbs: pyverbs is not built",
    )
    assert section.facts["libibverbs"] == "not installed"


# ------------------------------------------------------------------------------------------- MPI, TCP, the choice


@pytest.mark.parametrize(
    "text, name",
    [
        ("Open MPI v5.0.8, package: ...", "Open MPI"),
        ("mpirun (Open MPI) 4.1.4", "Open MPI"),
        ("HYDRA build details:\n    Version: 4.0.2", "MPICH"),
        ("MPICH Version:      4.3.0", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13", "Intel MPI"),
        ("something", "an unknown MPI"),
    ],
)
def test_flavours_of_mpi(text, name):
    assert flavour(text) == name


def run_with(library: subprocess.CompletedProcess[str], mpirun: str):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, mpirun, "") if len(command) == 2 else library

    return run


def test_mpirun_of_another_mpi(place, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "mpirun").chmod(0o755)
    place = HostPaths(place.sysfs, place.proc, place.dev, {"PATH": str(tmp_path / "bin")})
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.1.2")
    loaded = subprocess.CompletedProcess([], 0, "Open MPI v5.0.8\n", "")
    monkeypatch.setattr("subprocess.run", run_with(loaded, "mpirun (Open MPI) 5.0.8"))
    section = diagnosis_comm.message_passing(place)
    assert section.facts["mpi4py"] == "4.1.2, loads Open MPI v5.0.8" and not section.findings
    monkeypatch.setattr("subprocess.run", run_with(loaded, "HYDRA build details:"))
    (finding,) = diagnosis_comm.message_passing(place).findings
    assert "mpirun is of MPICH and mpi4py loads Open MPI" in finding.problem
    failed = subprocess.CompletedProcess([], 1, "", "Traceback...\nImportError: libmpi.so.12 is missing\n")
    monkeypatch.setattr("subprocess.run", run_with(failed, ""))
    (finding,) = diagnosis_comm.message_passing(place).findings
    assert finding.problem == "mpi4py does not load: ImportError: libmpi.so.12 is missing"
    assert 'pip install "cktrain[mpi]"' in finding.remedy


def test_secret_that_others_may_read(place, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    secret.chmod(0o644)
    environ = {"CKTRAIN_SECRET_FILE": str(secret)}
    section = diagnosis_comm.sockets(HostPaths(place.sysfs, place.proc, place.dev, environ), "lo")
    assert [f.remedy for f in section.findings if "0644" in f.problem] == [f"chmod 600 {secret}"]
    assert any("no route to another one" in problem for problem in problems(section))


@pytest.fixture
def no_mpi(monkeypatch):
    def section(place: HostPaths) -> Section:
        found = Section("MPI")
        found.add("mpi4py does not load: none", "install it", prevents=True)
        return found

    monkeypatch.setattr(diagnosis_comm, "message_passing", section)
    monkeypatch.setattr("cktrain.comm.rendezvous.reachable_address", lambda interface: "10.0.0.1")


def test_what_would_be_used_and_why_not_the_others(place, no_mpi):
    found = diagnose(place)
    one, several = found.choices
    assert (one.where, one.transport, one.passed_over) == ("one node", "shm", ())
    assert several.transport == "tcp"
    assert [each.name for each in several.passed_over] == ["rdma", "mpi"]
    assert "/sys/class/infiniband is missing" in several.passed_over[0].reason
    assert found.ready


def test_a_good_device_would_be_used(place, no_mpi, with_verbs):
    add_device(place, IPV4)
    assert [choice.transport for choice in diagnose(place).choices] == ["shm", "rdma"]


def test_a_forced_transport_that_is_missing_blocks(place, no_mpi):
    found = diagnose(place, transport="mpi")
    assert not found.ready and [choice.transport for choice in found.choices] == [None, None]
    blocking = [f for section in found.sections for f in section.findings if f.blocks]
    assert [f.problem for f in blocking] == ["comm.transport is mpi, and mpi4py does not load: none"]
    assert diagnose(place, transport="shm").ready
