"""What happens when a rank dies, stops, is late, or calls something else; each case with its bound in time.

The ranks are plain processes: mpirun would stop them all when one dies, before they could see it themselves. All
survivors must end with status 1 and a message that names the lost rank.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import job
import machine_load
import pytest

TRANSPORTS = ["shm", "tcp"]
STANDSTILL_S = 3.0
"""Within which ranks that wait for each other find it out."""

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize(
    "kind", ["small", "large", "arena", "async", "barrier", "broadcast", "all_to_all", "message"]
)
def test_killed_rank_is_named_by_all(transport, kind, lost):
    if kind == "arena" and transport != "shm":
        kind = "reduce_scatter"
    with job.start(3, "rank_program.py", "repeat", kind, CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        since = ranks.signal(lost, signal.SIGKILL)
        ends = ranks.ends(20)
    job.assert_lost(ends, lost, since)
    survivor = ends[1 if lost == 0 else 0].output
    assert "during" in survivor
    assert "last operation was" in survivor or transport != "shm"


def test_killed_rank_that_has_forked(transport):
    """Its child keeps copies of its sockets open, which must not hide its end."""
    with job.start(
        3, "rank_program.py", "fork_and_repeat", "small", CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        since = ranks.signal(1, signal.SIGKILL)
        ends = ranks.ends(20)
    job.assert_lost(ends, 1, since)


def test_killed_while_all_are_idle(transport, tmp_path):
    """Nobody waits when it happens; the next operation raises at once."""
    with job.start(
        3, "rank_program.py", "repeat", "idle", str(tmp_path / "go"), CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        ranks.signal(2, signal.SIGKILL)
        time.sleep(1)
        since = machine_load.now()
        (tmp_path / "go").touch()
        ranks.until_ended(0, limit_s=10)
        ranks.signal(1, signal.SIGKILL)
        ends = ranks.ends(5)
    job.assert_lost([ends[0]], 2, since)


def test_killed_while_meeting(transport):
    with job.start(
        3,
        "rank_program.py",
        "exit_with",
        "0",
        only=[0, 1],
        CKTRAIN_TEST_TRANSPORT=transport,
        CKTRAIN_TEST_TIMEOUT="3",
    ) as ranks:
        time.sleep(0.8)
        ranks.signal(1, signal.SIGKILL)
        ends = ranks.ends(12)
    assert ends[0].status == 1
    assert "RendezvousError" in ends[0].output and "2" in ends[0].output, ends[0].output


def test_stopped_for_a_while_is_a_warning(transport):
    with job.start(
        3, "rank_program.py", "wait_for_one", "sleep", "1", CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        ranks.wait_for("late", 2)
        ranks.signal(2, signal.SIGSTOP)
        time.sleep(4)
        ranks.signal(2, signal.SIGCONT)
        ends = ranks.ends(20)
    assert [end.status for end in ends] == [0, 0, 0], ends
    warning = rf"\[comm\.{transport}\] rank 0 waits in all_reduce\(float32\[10\], sum\) on group world for rank 2 on "
    assert re.search(warning, ends[0].output), ends[0].output
    assert "no heartbeat" in ends[0].output


def test_stopped_for_ever_is_a_timeout_that_names_it(transport):
    with job.start(
        3,
        "rank_program.py",
        "wait_for_one",
        "sleep",
        "1",
        CKTRAIN_TEST_TRANSPORT=transport,
        CKTRAIN_TEST_TIMEOUT="4",
    ) as ranks:
        ranks.wait_for("late", 2)
        began = ranks.signal(2, signal.SIGSTOP)
        took = ranks.until_ended(0, 1, limit_s=15) - began
        ranks.signal(2, signal.SIGKILL)
        ends = ranks.ends(5)
    assert [end.status for end in ends] == [1, 1, -signal.SIGKILL], ends
    assert took < 4 + job.slack_s()
    assert any("not complete after 4 s; ranks not heard from: 2" in end.output for end in ends[:2]), ends
    for end in ends[:2]:  # the second to give up may see the first one go instead
        waited = re.search(r"waited (\S+) s", end.output)
        assert waited is not None, end.output
        gave_up = "not complete after 4 s" in end.output and float(waited[1]) >= 4
        assert gave_up or ": lost rank " in end.output, end.output


@pytest.mark.parametrize("operation", ["all_reduce", "all_to_all"])
def test_sleeping_rank_is_a_timeout(transport, operation):
    """It is alive and does nothing: the deadline does not stretch. (What it would send has no elements in all_to_all.)"""
    with job.start(
        2,
        "rank_program.py",
        "wait_for_one",
        "sleep",
        "60",
        operation,
        CKTRAIN_TEST_TRANSPORT=transport,
        CKTRAIN_TEST_TIMEOUT="1",
    ) as ranks:
        ranks.wait_for("late", 1)
        began = machine_load.now()
        took = ranks.until_ended(0, limit_s=10) - began
        ranks.signal(1, signal.SIGKILL)
        ends = ranks.ends(5)
    assert ends[0].status == 1
    assert "not complete after 1 s; ranks not heard from: 1" in ends[0].output
    assert took < 1 + job.slack_s()


def test_ranks_that_share_a_core(transport):
    with job.start(3, "rank_program.py", "share_a_core", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends(60)
    assert [end.status for end in ends] == [0, 0, 0], ends


def test_deadline_stretches_for_a_rank_at_work(transport):
    """Computing (or writing a checkpoint) for longer than the deadline is no failure.

    A rank that the host of a guest lets do nothing for half of the deadline is not at work: there it is longer.
    """
    seconds, late = ("2", "5") if machine_load.IN_GUEST else ("1", "3")
    how = {"CKTRAIN_TEST_TRANSPORT": transport, "CKTRAIN_TEST_TIMEOUT": seconds}
    with job.start(2, "rank_program.py", "wait_for_one", "compute", late, **how) as ranks:
        ends = ranks.ends(20)
    assert [end.status for end in ends] == [0, 0], ends
    assert f"at work: waiting for another {seconds} s" in ends[0].output


@pytest.mark.parametrize(
    "difference, mine, theirs",
    [
        ("length", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"),
        ("dtype", "all_reduce(float32[100], sum)", "all_reduce(int32[100], sum)"),
        ("op", "all_reduce(float32[100], sum)", "all_reduce(float32[100], max)"),
        ("operation", "all_reduce(float32[100], sum)", "broadcast(float32[100], root=0)"),
        ("root", "broadcast(float32[100], root=0)", "broadcast(float32[100], root=1)"),
    ],
)
@pytest.mark.parametrize("how", ["", "async", "large"])
def test_mismatch_is_named_on_all_sides(transport, difference, mine, theirs, how):
    arguments = [difference, *([how] if how else [])]
    with job.start(3, "rank_program.py", "differ", *arguments, CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends()
    job.assert_together(ends)
    if how == "large":
        mine, theirs = (
            x.replace("[100]", "[200,000]").replace("[50]", "[100,000]").replace("[51]", "[100,001]")
            for x in (mine, theirs)
        )
    for rank, end in enumerate(ends):
        assert end.status == 1, end.output
        assert "AssertionError" not in end.output, end.output
        odd = rank == 2
        called = f"[comm.{transport}] rank {rank} called {theirs if odd else mine}, but "
        assert called in end.output, end.output
        assert f"called {mine if odd else theirs}" in end.output


@pytest.mark.parametrize("how", ["", "async"])
def test_a_count_of_one_pair_that_differs_is_named_by_all(transport, how):
    """Rank 2 sends rank 0 one element more than that expects; rank 1 hears of it from them."""
    arguments = ["lengths", *([how] if how else [])]
    with job.start(3, "rank_program.py", "differ", *arguments, CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends()
    job.assert_together(ends)
    assert_pair_is_named(ends, transport)


def assert_pair_is_named(ends: list[job.Ended], *transports: str) -> None:
    """By all, of an all_to_all in which the last rank sends rank 0 two elements where that expects one."""
    last = len(ends) - 1
    calls = {
        0: f"called all_to_all(float32, 1 to and 1 from rank {last})",
        last: "called all_to_all(float32, 2 to and 1 from rank 0)",
    }
    for rank, end in enumerate(ends):
        assert end.status == 1 and "AssertionError" not in end.output, end.output
        assert re.search(
            rf"\[comm\.({'|'.join(transports)})\] rank {rank} called all_to_all\(float32", end.output
        ), end.output
        for other, call in calls.items():
            assert f"rank {other} {call}" in end.output, end.output


def test_a_mismatch_is_named_by_who_waits_for_a_later_operation(transport):
    with job.start(
        3, "rank_program.py", "differ_before_a_later_one", CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        ends = ranks.ends()
    job.assert_together(ends)
    for rank, end in enumerate(ends):
        assert end.status == 1 and "AssertionError" not in end.output, end.output
        called = "all_reduce(float32[51], sum)" if rank == 2 else "all_reduce(float32[50], sum)"
        assert f"[comm.{transport}] rank {rank} called {called}, but " in end.output, end.output


def test_ranks_in_different_groups_are_told_so(transport):
    """Long before the deadline, all of them, and nothing was written."""
    call = "all_reduce(float32[100], sum)"
    expected = {
        "whole": (f"{call} on group world.0", f"{call} on another group world.0"),
        "part": (f"{call} on group world.0", f"{call} on a group without rank 0"),
        "async": (
            "broadcast(float32[100], root=0) with async_=True on group world.0",
            "on another group world.0",
        ),
        "lane": (f"{call} on group", f"{call} with async_=True on group"),
        "message": ("recv(float32[100], source=1) on group", "recv(float32[100], source=0) on another group"),
    }
    ways = ["whole", "lane"] if transport == "shm" else ["part", "async", "message"]
    with job.start(3, "rank_program.py", "cross_groups", *ways, CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends(40)
    assert [end.status for end in ends] == [0, 0, 0], ends
    told = [dict(re.findall(r"^(\w+) after (.*)$", end.output, re.MULTILINE)) for end in ends]
    for way in ways:
        for rank in range(3):
            took, _, words = told[rank][way].partition(" s: ")
            assert float(took) < STANDSTILL_S + job.slack_s(), told[rank][way]
            assert words.startswith(f"[comm.{transport}] rank {rank} called ") and "but rank" in words, words
        mine, theirs = expected[way]
        assert f"rank 0 called {mine}" in told[0][way] and theirs in told[0][way], told[0][way]


def test_groups_in_another_order_are_no_mismatch(transport):
    """What is in flight moves on while its rank waits for something else, however long that takes."""
    with job.start(3, "rank_program.py", "cross_legally", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends(30)
    assert [end.status for end in ends] == [0, 0, 0], ends
    assert all("crossed" in end.output and "called" not in end.output for end in ends), ends


def test_exception_on_one_rank_ends_all(transport):
    with job.start(3, "rank_program.py", "fail_on_one_rank", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends()
    job.assert_together(ends)
    assert [end.status for end in ends] == [1, 1, 1]
    assert "a mistake on one rank" in ends[1].output
    assert ": lost rank 1 on " in ends[0].output


def test_exit_without_close_is_a_lost_rank(transport):
    with job.start(3, "rank_program.py", "leave_early", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends(10)
    assert [end.status for end in ends] == [1, 1, 0], ends
    assert ": lost rank 2 on " in ends[0].output and ": lost rank 2 on " in ends[1].output


@pytest.mark.parametrize("status", [0, 2, 75])
def test_planned_exits_are_no_failures(transport, status):
    with job.start(3, "rank_program.py", "exit_with", str(status), CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends()
    job.assert_together(ends)
    assert [end.status for end in ends] == [status] * 3, ends
    assert all(job.but_for_stalls(end.output) == "" for end in ends), ends


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_end_a_waiting_rank(transport, number, status):
    with job.start(
        2, "rank_program.py", "wait_for_one", "sleep", "60", CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        ranks.wait_for("late", 1)
        time.sleep(0.5)
        since = ranks.signal(0, number)
        took = ranks.until_ended(0, limit_s=10) - since
        ranks.signal(1, signal.SIGKILL)
        ends = ranks.ends(5)
    assert ends[0].status == status
    assert took < job.KILLED_S + job.slack_s()


def test_nothing_is_left_behind(transport):
    """After a kill: no shared memory, no socket names, no ports; the same job starts again at once at the same port."""
    before = set(os.listdir("/dev/shm"))
    same = {"CKTRAIN_JOB": f"again-{os.getpid()}", "CKTRAIN_RENDEZVOUS": f"127.0.0.1:{job.free_port()}"}
    for _ in range(2):
        with job.start(
            3, "rank_program.py", "repeat", "large", CKTRAIN_TEST_TRANSPORT=transport, **same
        ) as ranks:
            for rank in range(3):
                ranks.wait_for("running", rank)
            ranks.signal(1, signal.SIGKILL)
            ranks.ends(20)
    new = set(os.listdir("/dev/shm")) - before
    assert not [name for name in new if "cktrain" in name or "memfd" in name]
    assert f"/{same['CKTRAIN_JOB']}" not in Path("/proc/net/unix").read_text()
    port = int(same["CKTRAIN_RENDEZVOUS"].partition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    assert f"0100007F:{port:04X}" not in listening


def test_waiting_rank_leaves_its_core_to_others(transport):
    with job.start(2, "rank_program.py", "cpu_time_of_waiting", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        ends = ranks.ends(20)
    match = re.search(r"cpu: (\S+)", ends[0].output)
    assert match is not None, ends[0].output
    assert float(match[1]) < 0.2, f"{match[1]} s of CPU in a wait of 2 s"


def shares(ends: list[job.Ended]) -> list[tuple[float, float]]:
    """What each rank says that comm's threads and its process took of a core."""
    found = [re.search(r"threads: (\S+) process: (\S+)", end.output) for end in ends]
    assert all(found), ends
    return [(float(m[1]), float(m[2])) for m in found if m]


def test_idle_engine_costs_nothing(transport):
    """It sleeps; the watch thread looks ten times a second. The bound is the issue's: 1 % of a step."""
    with job.start(
        2, "rank_program.py", "cpu_of_the_engine", "idle", CKTRAIN_TEST_TRANSPORT=transport
    ) as ranks:
        ends = ranks.ends(20)
    assert all(threads < 0.01 for threads, _ in shares(ends)), shares(ends)


def test_engine_does_not_spin_where_ranks_outnumber_cores(transport):
    """Four ranks on one core, three of them wait for 2 s: whoever spins or yields would take a third of it."""
    crowded = {"CKTRAIN_TEST_TRANSPORT": transport, "CKTRAIN_TEST_CORES": "1"}
    with job.start(4, "rank_program.py", "cpu_of_the_engine", "waiting", **crowded) as ranks:
        ends = ranks.ends(30)
    assert all(process < 0.03 for _, process in shares(ends)), shares(ends)
