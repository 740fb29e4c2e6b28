"""Groups over a real device, ranks on one host: the contract of every Group, one-sided access, and what goes wrong.

The checks and the faults are those of tests/comm, with another transport. `provider_name` is what the ranks use.

What a group does about a fault is the same code with both providers. Each fault is tried with the native one, whose engine
nothing else tests. pyverbs, by which callers move the operations, has every collective, a killed rank and a mismatch here;
the rest of its faults is left to the night (tests/comm has the callers' code without a device, by fake_verbs).
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import job
import pytest
import test_faults as faults
import test_links as links

pytestmark = pytest.mark.rdma

HERE = Path(__file__).parent
PAYLOAD = 4096  # bytes in a packet of the test device


PYVERBS_AT_NIGHT = pytest.param("pyverbs", marks=pytest.mark.nightly)


@pytest.fixture(params=["native", PYVERBS_AT_NIGHT])
def provider_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The provider that ranks use; that it does not load is a failure of theirs."""
    monkeypatch.setenv("CKTRAIN_VERBS", request.param)
    return str(request.param)


def with_provider(*names: str) -> pytest.MarkDecorator:
    """Not each with both: a job of three ranks takes seconds where Python is emulated."""
    return pytest.mark.parametrize("provider_name", names, indirect=True)


def ended_well(
    ranks: int, program: str, *arguments: str, limit_s: float = 150, **environment: str
) -> list[job.Ended]:
    environment = {"CKTRAIN_TEST_TRANSPORT": "rdma", "CKTRAIN_TEST_TIMEOUT": "60"} | environment
    with job.start(ranks, program, *arguments, **environment) as started:
        ends = started.ends(limit_s)
    assert [end.status for end in ends] == [0] * ranks, "\n---\n".join(end.output for end in ends)
    return ends


@with_provider("native", "pyverbs")
def test_every_collective_and_one_sided_access(provider_name: str, device: str) -> None:
    """The checks of conformance.py; the device's own counters say that the bytes went over RDMA."""
    from ends import counters

    before = counters(device)
    ends = ended_well(2, "rank_program.py", "brief_conformance")
    assert "checks run: 18" in ends[0].output
    ends = ended_well(2, "rank_program.py", "one_sided")
    assert "one-sided: 4" in ends[0].output
    after = counters(device)
    moved = 2 * 2 * (3 << 20) // PAYLOAD  # packets of the one-sided accesses alone
    for name in ("sent_pkts", "rcvd_pkts"):
        assert after[name] - before[name] > moved, name


def test_four_ranks_on_one_device(provider_name: str) -> None:
    ends = ended_well(4, "rank_program.py", "short_conformance")
    assert "checks run: 7" in ends[0].output


@with_provider("native")
def test_memory_beyond_the_arrays(provider_name: str) -> None:
    """At 4 ranks, as much as the calculation says, which tests/comm/test_rdma_group.py holds against 32 MB at 64."""
    from group_memory import PAGE, memory_of_a_group

    calculated = memory_of_a_group(4, PAGE)
    for end in ended_well(4, "rank_program.py", "memory_of_another_group"):
        match = re.search(r"bytes: (\d+)", end.output)
        assert match is not None, end.output
        # The group's objects, and pages of the process they were forked from that are written to now.
        assert abs(int(match[1]) - calculated) < 0.5e6, f"{end.output}calculated: {calculated}"


def test_arenas_travel_without_a_copy(provider_name: str) -> None:
    (end, _) = ended_well(2, "rank_program.py", "reduce_arena")
    match = re.search(r"sent: (\{.*\})", end.output)
    assert match is not None, end.output
    sent = ast.literal_eval(match[1])
    assert sent["direct"] > sent["ring"], sent


@pytest.mark.parametrize(
    ("provider_name", "kind", "lost"),
    [
        ("native", "large", 0),
        ("native", "async", 2),
        ("pyverbs", "reduce_scatter", 0),
        pytest.param("native", "barrier", 1, marks=pytest.mark.nightly),
        pytest.param("pyverbs", "async", 2, marks=pytest.mark.nightly),
        pytest.param("pyverbs", "large", 1, marks=pytest.mark.nightly),
    ],
    indirect=["provider_name"],
)
def test_a_rank_that_stops_and_is_then_killed(provider_name: str, kind: str, lost: int) -> None:
    """While it is stopped all are warned of it, and wait; killed, it is named by all.

    The warning takes 2 s without a heartbeat of the rank that is waited for; soft-RoCE may have to send again what is
    on its way first.
    """
    # A mebibyte, which goes in several pieces too: each costs CPU time where a device is emulated.
    how = {"CKTRAIN_TEST_TRANSPORT": "rdma", "CKTRAIN_TEST_LARGE": "250007"}
    with job.start(3, "rank_program.py", "repeat", kind, **how) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        ranks.signal(lost, signal.SIGSTOP)
        for rank in {0, 1, 2} - {lost}:
            # Where the host starves a rank for 2 s the others may warn of that one first.
            waits = rf"\[comm\.rdma\] rank {rank} waits in .* on group world for .*rank {lost} on .*\(no heartbeat"
            ranks.wait_for(waits, rank)
        ranks.signal(lost, signal.SIGCONT)
        time.sleep(0.5)
        since = ranks.signal(lost, signal.SIGKILL)
        ends = ranks.ends(20)
    job.assert_lost(ends, lost, since)


def test_stopped_for_ever_is_a_timeout(provider_name: str) -> None:
    faults.test_stopped_for_ever_is_a_timeout_that_names_it("rdma")


def test_killed_while_all_are_idle(provider_name: str, tmp_path: Path) -> None:
    faults.test_killed_while_all_are_idle("rdma", tmp_path)


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rank was killed that had forked: no port, no queue pair; the same job starts again at once."""
    before = queue_pairs()
    port = job.free_port()
    same = {"CKTRAIN_JOB": f"again-{os.getpid()}", "CKTRAIN_RENDEZVOUS": f"127.0.0.1:{port}"}
    for provider, kind in (("native", "message"), ("pyverbs", "barrier")):
        same |= {"CKTRAIN_VERBS": provider, "CKTRAIN_TEST_TRANSPORT": "rdma"}
        with job.start(3, "rank_program.py", "fork_and_repeat", kind, **same) as ranks:
            for rank in range(3):
                ranks.wait_for("running", rank)
            assert queue_pairs() > before
            since = ranks.signal(1, signal.SIGKILL)
            ends = ranks.ends(20)
        job.assert_lost(ends, 1, since)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert f"0100007F:{port:04X}" not in listening
    deadline = time.monotonic() + job.PATIENCE * 20  # the children have the device open for another 5 s
    while queue_pairs() > before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert queue_pairs() == before


def queue_pairs() -> int:
    """What the kernel has, of all devices."""
    shown = subprocess.run(["rdma", "resource"], capture_output=True, text=True, check=True).stdout
    return sum(int(n) for n in re.findall(r"\bqp (\d+)", shown))


def test_a_lost_control_connection(provider_name: str) -> None:
    links.test_a_lost_control_connection_is_found_out_while_payload_passes("rdma")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_end_a_waiting_rank(provider_name: str, number: int, status: int) -> None:
    faults.test_signals_end_a_waiting_rank("rdma", number, status)


def test_deadline_stretches_for_a_rank_at_work(provider_name: str) -> None:
    faults.test_deadline_stretches_for_a_rank_at_work("rdma")


def test_ranks_that_share_a_core(provider_name: str) -> None:
    with job.start(3, "rank_program.py", "share_a_core", "20", CKTRAIN_TEST_TRANSPORT="rdma") as ranks:
        ends = ranks.ends(60)
    assert [end.status for end in ends] == [0, 0, 0], ends


@with_provider("native", "pyverbs")
@pytest.mark.parametrize(
    ("difference", "mine", "theirs", "how"),
    [
        ("length", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)", "large"),
        ("operation", "all_reduce(float32[100], sum)", "broadcast(float32[100], root=0)", "async"),
    ],
)
def test_mismatch_is_named_on_all_sides(
    provider_name: str, difference: str, mine: str, theirs: str, how: str
) -> None:
    faults.test_mismatch_is_named_on_all_sides("rdma", difference, mine, theirs, how)


def test_ranks_in_different_groups_are_told_so(provider_name: str) -> None:
    ways = {"native": ["whole", "message"], "pyverbs": ["part", "async"]}[provider_name]
    for end in ended_well(3, "rank_program.py", "cross_groups", *ways):
        for way in ways:
            told = re.search(
                rf"^{way} after (\S+) s: (\[comm\.rdma\] rank \d called .*)$", end.output, re.MULTILINE
            )
            assert told is not None and float(told[1]) < 10, end.output  # of 60
            assert "but rank " in told[2], end.output


def test_groups_in_another_order_are_no_mismatch(provider_name: str) -> None:
    faults.test_groups_in_another_order_are_no_mismatch("rdma")


def test_exception_on_one_rank_ends_all(provider_name: str) -> None:
    faults.test_exception_on_one_rank_ends_all("rdma")


def test_planned_exits_are_no_failures(provider_name: str) -> None:
    faults.test_planned_exits_are_no_failures("rdma", 75)


@with_provider("native")
def test_waiting_rank_leaves_its_core_to_others(provider_name: str) -> None:
    """By the completion channel; under emulation the first looks cost ten times what they cost outside.

    A guest counts as CPU time what its host took while a rank looked, which the least of three waits has least of.
    """
    with job.start(2, "rank_program.py", "cpu_time_of_waiting", "3", CKTRAIN_TEST_TRANSPORT="rdma") as ranks:
        ends = ranks.ends(60)
    used = [float(seconds) for seconds in re.findall(r"cpu: (\S+)", ends[0].output)]
    assert len(used) == 3 and min(used) < 0.6, f"{ends[0].output} in waits of 2 s"


# ----------------------------------------------------------------------------------- what keeps it from being used


def refused(*expected: str, **environment: str) -> None:
    """Two ranks of which one cannot: both end with 1, and both give the reason."""
    with job.start(
        2, "rank_program.py", "exit_with", "0", CKTRAIN_TEST_TRANSPORT="rdma", **environment
    ) as ranks:
        ends = ranks.ends(60)
    for end in ends:
        assert end.status == 1, end.output
        for words in expected:
            assert words in end.output, end.output


@with_provider("native")
def test_every_rank_says_why_rdma_is_refused(provider_name: str) -> None:
    refused("transport rdma is not available", "there is no RDMA device mlx9", CKTRAIN_TEST_DEVICE="mlx9")
    refused("entry 77 of the GID table of rxe0 is empty", CKTRAIN_TEST_GID="77")


@pytest.mark.nightly  # in processes of its own; test_verbs_problems.py has every way in which pyverbs does not load
def test_a_provider_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pyverbs of another rdma-core: the reason names it, on every rank."""
    broken = tmp_path / "pyverbs"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise ImportError("undefined symbol: ibv_query_gid_type")\n')
    path = f"{tmp_path}:{':'.join(p for p in sys.path if p)}"
    refused("pyverbs", CKTRAIN_VERBS="pyverbs", PYTHONPATH=path)


@with_provider("native")
def test_auto_takes_rdma_and_falls_back(provider_name: str, capfd: Any) -> None:
    """Ranks that say they are on two nodes: rdma before tcp, and tcp where one has no device, with the reason."""
    for device, words in (("", "transport: rdma"), ("mlx9", "transport: tcp")):
        ends = ended_well(
            2, "rank_program.py", "exit_with", "0",
            CKTRAIN_TEST_TRANSPORT="auto", LOCAL_WORLD_SIZE="1", LOCAL_RANK="0", CKTRAIN_TEST_DEVICE=device,
            CKTRAIN_TEST_LOG="INFO",
        )  # fmt: skip
        assert words in ends[0].output, ends[0].output
        assert not device or "there is no RDMA device mlx9" in ends[0].output
