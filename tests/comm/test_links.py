"""Links that break between hosts: a dead one is found out by all within 6 s, a short break is survived.

The hosts are network namespaces at a bridge (hosts.py); pulling a cable loses packets without telling anybody.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import hosts
import job
import machine_load
import pytest

from cktrain.comm import _engine

LINK_S = 6.0


@pytest.fixture(scope="module")
def lab() -> Iterator[hosts.Lab]:
    if reason := hosts.missing():
        pytest.skip(f"no network namespaces here: {reason}")
    with hosts.joined(3) as made:
        yield made


@pytest.fixture
def common(tmp_path: Path) -> dict[str, str]:
    """Between hosts a secret is needed."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123456789abcdef" * 2)
    secret.chmod(0o600)
    return {"CKTRAIN_TEST_TRANSPORT": "tcp", "CKTRAIN_SECRET_FILE": str(secret)}


@pytest.mark.namespaces
@pytest.mark.parametrize("kind", ["large", "barrier", "async"])
def test_a_dead_link_is_found_out_by_all(lab, common, kind):
    with job.start(3, "rank_program.py", "repeat", kind, lab=lab, **common) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        try:
            lab.pull(2)
            since = machine_load.now()
            ends = ranks.ends(20)
        finally:
            lab.plug(2)
    for rank, end in enumerate(ends):
        assert end.status == 1, end.output
        assert end.at - since < LINK_S + job.slack_s(), f"rank {rank} took {end.at - since:.1f} s"
    for end in ends[:2]:
        assert ": lost rank 2 on " in end.output, end.output
        assert (
            "no answer for 5 s: its host or the link to it is down" in end.output
            or "as another" in end.output
        )
    assert (
        ": lost rank 0 on " in ends[2].output or ": lost rank 1 on " in ends[2].output
    )  # it sees the others go


@pytest.mark.namespaces
def test_a_short_break_is_survived(lab, common):
    with job.start(3, "rank_program.py", "stress", "1500", "3", lab=lab, **common) as ranks:
        for _ in range(4):
            time.sleep(0.5)
            lab.pull(1)
            time.sleep(0.2)
            lab.plug(1)
        ends = ranks.ends(60)
    assert [end.status for end in ends] == [0, 0, 0], ends


@pytest.mark.namespaces
def test_a_dead_link_while_a_rank_is_late(lab, common):
    """Nobody sends payload: the heartbeats alone find it out."""
    with job.start(3, "rank_program.py", "wait_for_one", "sleep", "60", lab=lab, **common) as ranks:
        ranks.wait_for("late", 2)
        try:
            lab.pull(2)
            since = time.monotonic()
            while any(p.poll() is None for p in ranks.processes[:2]) and time.monotonic() < since + 15:
                time.sleep(0.01)
            took = time.monotonic() - since
        finally:
            lab.plug(2)
        ranks.processes[2].kill()
        ends = ranks.ends(5)
    assert took < LINK_S + job.slack_s(), f"{took:.1f} s"
    assert all(": lost rank 2 on " in end.output for end in ends[:2]), ends


@pytest.mark.parametrize("transport", ["tcp"])
def test_a_lost_control_connection_is_found_out_while_payload_passes(transport):
    """Its packets alone are dropped; each end of it loses the other, and the third rank hears of it."""
    with job.start(3, "rank_program.py", "lose_control", CKTRAIN_TEST_TRANSPORT=transport) as ranks:
        for rank in range(3):
            ranks.wait_for("running", rank)
        since = machine_load.now()
        ends = ranks.ends(20)
    for rank, end in enumerate(ends):
        assert end.status == 1, end.output
        assert end.at - since < LINK_S + job.slack_s(), f"rank {rank} took {end.at - since:.1f} s"
        found = re.search(r"operations since: (\d+)", end.output)
        assert found is not None and int(found[1]) > 10, end.output
    # Also where rank 1 hears of it first and goes, and the other end sees that.
    assert ": lost rank 2 on " in ends[0].output and ": lost rank 0 on " in ends[2].output, ends
    assert any("its control connection had no answer for 5 s" in ends[rank].output for rank in (0, 2)), ends


def test_a_stopped_rank_is_not_told_more_than_its_buffers_hold():
    """Full buffers would look like a dead link; a peer that reads nothing gets no more heartbeats until it does."""
    frame = struct.Struct(f"<QQQQII{_engine.FRAME_BYTES - 40}x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    fd = os.memfd_create("seats")
    os.ftruncate(fd, 2 * _engine.SEAT_BYTES)
    world = _engine.World(0, 0, 2, _engine.Mapping(fd, 2 * _engine.SEAT_BYTES), spin=False)
    os.close(fd)

    def unread() -> int:
        return int(struct.unpack("i", fcntl.ioctl(theirs, termios.FIONREAD, bytes(4)))[0]) // frame.size

    world.watch([(ours.fileno(), 1, 1, _engine.CONTROL)])
    try:
        time.sleep(6)  # four a second
        told = unread()
        time.sleep(0.8)
        assert 15 < told == unread() < 25
        theirs.sendall(frame.pack(0, 0, 0, told, 0, 0))
        time.sleep(0.8)
        assert unread() > told
        assert world.failure() is None
    finally:
        world.stop()
        ours.close()
        theirs.close()


@pytest.mark.namespaces
def test_a_dead_link_to_a_stopped_rank(lab, common):
    """No heartbeats go to it any more; the kernel's probes find the link dead all the same."""
    with job.start(3, "rank_program.py", "wait_for_one", "sleep", "60", lab=lab, **common) as ranks:
        ranks.wait_for("late", 2)
        ranks.signal(2, signal.SIGSTOP)
        time.sleep(7)
        try:
            lab.pull(2)
            since = time.monotonic()
            while any(p.poll() is None for p in ranks.processes[:2]) and time.monotonic() < since + 15:
                time.sleep(0.01)
            took = time.monotonic() - since
        finally:
            lab.plug(2)
        ranks.processes[2].kill()
        ends = ranks.ends(5)
    assert took < LINK_S + job.slack_s(), f"{took:.1f} s"
    assert all(": lost rank 2 on " in end.output for end in ends[:2]), ends
