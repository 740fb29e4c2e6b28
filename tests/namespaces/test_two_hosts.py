"""Jobs over two hosts: the losses of one process, one failure stops all, and nothing is left on either host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.namespaces

CKTRAIN = [sys.executable, "-m", "cktrain.launch.cli"]
ENDLESS = "run.steps=1000000"


@pytest.fixture
def launch(cluster, runs):
    """`launch(name, *settings)` starts two ranks on each host."""

    def start(name: str, *settings: str, hosts: str | None = None) -> subprocess.Popen[str]:
        a, b = cluster.hosts
        where = ["--rsh", str(cluster.shell), "--hosts", hosts or f"{a}:2,{b}:2"]
        return runs.start(*CKTRAIN, "launch", *where, *runs.command(name, *settings))

    return start


def ended(process: subprocess.Popen[str], limit_s: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=limit_s)
    return process.returncode, output


@pytest.mark.parametrize("layout", ["data", "tensor over pipeline"])
def test_launch_over_two_hosts_equals_one_process(launch, runs, cluster, expected, layout):
    """fp64 on the reference kernels: only the order of additions differs, 1e-10."""
    settings = [] if layout == "data" else ["parallel.tensor=2", "parallel.pipeline=2"]
    status, output = ended(launch(layout, *settings))
    assert status == 0, output
    np.testing.assert_allclose(runs.losses(layout), expected, rtol=0, atol=1e-10)
    assert "transport: tcp (asked for)" in output
    cluster.assert_empty()


def mpirun(cluster) -> list[str]:
    """Two ranks on each host, which say where they are; started on the first, it reaches the second by the same shell.

    Open MPI's daemon crashes without HOME, which the shell does not give, so the launch agent does. Without a mapping
    --oversubscribe would put all ranks on the first host.
    """
    program = shutil.which(
        "mpirun", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    )
    assert program is not None
    daemon = f"env HOME=/ PATH=/usr/bin:/bin {os.path.join(os.path.dirname(program), 'prted')}"
    options = [
        *("--allow-run-as-root", "--oversubscribe", "--prtemca", "plm_ssh_agent", str(cluster.shell)),
        *(
            "--prtemca",
            "prte_launch_agent",
            daemon,
            "--host",
            ",".join(f"{host}:2" for host in cluster.hosts),
        ),
        *("-x", "CKTRAIN_ISA", "--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp"),
        *("--map-by", "ppr:2:node"),
    ]
    say = ["sh", "-c", 'echo "a rank on $(hostname)"; exec "$@"', "-"]
    return cluster.inside(cluster.hosts[0], program, *options, "-n", "4", *say)


@pytest.mark.parametrize("transport", ["tcp", "mpi"])
def test_mpirun_over_two_hosts_equals_one_process(runs, cluster, expected, transport):
    name = f"mpirun-{transport}"
    train = runs.command(name, f"comm.transport={transport}")
    status, output = ended(runs.start(*mpirun(cluster), *CKTRAIN, *train))
    assert status == 0, output
    assert [output.count(f"a rank on {host}") for host in cluster.hosts] == [2, 2]
    np.testing.assert_allclose(runs.losses(name), expected, rtol=0, atol=1e-10)
    cluster.assert_empty()


def test_a_killed_rank_on_the_other_host_stops_all(launch, runs, cluster, expected):
    process = launch("killed", ENDLESS)
    runs.wait_for_step("killed", 6, process)
    os.kill(cluster.ranks(cluster.hosts[1])[0], signal.SIGKILL)
    began = time.monotonic()
    status, output = ended(process)
    assert time.monotonic() - began < 20
    assert status == 128 + signal.SIGKILL
    assert f"rank 2 on {cluster.hosts[1]} was killed by SIGKILL" in output
    cluster.assert_empty()
    # The last complete checkpoint is intact: one process goes on from it, with the same losses.
    done = runs.folder / "killed" / "checkpoints"
    steps = [int(path.name.removeprefix("step-")) for path in done.glob("step-*")]
    assert steps and max(steps) % 5 == 0
    again = runs.start(*CKTRAIN, *runs.command("killed", f"run.steps={max(steps) + 1}"))
    status, output = ended(again)
    assert status == 0 and "resumed from" in output, output


@pytest.mark.parametrize("way", ["the launcher is killed", "the wire breaks"])
def test_nothing_is_left_when(launch, runs, cluster, way):
    process = launch(way, ENDLESS)
    runs.wait_for_step(way, 2, process)
    if way == "the launcher is killed":
        process.kill()
    else:
        subprocess.run(["ip", "-n", cluster.hosts[1], "link", "set", "wire", "down"], check=True)
    status, output = ended(process)
    assert status != 0
    if way == "the wire breaks":
        assert "lost rank" in output, output
    cluster.assert_empty(limit_s=20)


def test_a_signal_stops_all_hosts_with_a_checkpoint(launch, runs, cluster):
    process = launch("signal", ENDLESS)
    runs.wait_for_step("signal", 2, process)
    process.send_signal(signal.SIGUSR1)
    status, output = ended(process)
    assert status == 75, output
    assert "resume with: cktrain launch --hosts" in output
    cluster.assert_empty()


def test_ctrl_z_stops_the_ranks_of_both_hosts_and_fg_lets_them_go_on(launch, runs, cluster):
    """For longer than ranks wait for each other, and than a rank that shows no heartbeat is waited for in silence."""
    timeout_s = (
        8  # the ranks meet within it too: on two busy cores four interpreters need several seconds to start
    )
    process = launch("suspended", ENDLESS, f"comm.timeout_s={timeout_s}")
    runs.wait_for_step("suspended", 2, process)
    process.send_signal(signal.SIGTSTP)
    ranks = [pid for host in cluster.hosts for pid in cluster.ranks(host)]
    assert len(ranks) == 4
    deadline = time.monotonic() + 30
    while {state_of(pid) for pid in (*ranks, process.pid)} != {"T"}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = len(runs.losses("suspended"))
    time.sleep(timeout_s + 1)
    assert len(runs.losses("suspended")) == before
    process.send_signal(signal.SIGCONT)
    runs.wait_for_step("suspended", before + 5, process)
    process.send_signal(signal.SIGUSR1)
    status, output = ended(process)
    assert status == 75, output
    assert "lost rank" not in output and "not complete" not in output, output
    cluster.assert_empty()


def state_of(pid: int) -> str:
    """R, S … or T for one that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_host_that_is_not_there(launch, runs, cluster):
    status, output = ended(launch("absent", hosts=f"{cluster.hosts[0]}:1,198.18.255.255:1"))
    assert status == 1
    assert "198.18.255.255 cannot be reached" in output and cluster.hosts[0] not in output
    assert not (runs.folder / "absent").exists()
    cluster.assert_empty()
