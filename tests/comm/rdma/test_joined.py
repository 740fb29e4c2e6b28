"""Two machines with a wire between them: both run this file, in step, as GUEST_ROLE A and B (tests/guest).

Each test is written for both sides at once; `meeting.exchange()` is a barrier. netem works on the wire, which
loopback on one device never crosses. What the wire does is repaired or told by the device: one provider shows it in CI, the
other at night.
"""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import machine_load
import numpy as np
import pytest
from ends import ADDRESSES, WAIT_S

from cktrain.comm.transport.rdma_device import mtu_problem
from cktrain.comm.transport.verbs import status_name

pytestmark = pytest.mark.rdma_joined

PIECE = 64 << 10
one_provider = pytest.mark.parametrize(
    "provider", ["native", pytest.param("pyverbs", marks=pytest.mark.nightly)], indirect=True
)


@pytest.fixture
def end(provider: Any, device: str, meeting: Any) -> Iterator[Any]:
    """This machine's end, connected to the other's."""
    from ends import End

    made = End(provider, device)
    made.connect(meeting.exchange(made.card()))
    meeting.exchange()
    yield made
    meeting.exchange()
    made.close()


def bytes_of(role: str, count: int) -> np.ndarray:
    """The bytes that a side sends; the other side knows them."""
    return np.random.default_rng(ord(role)).integers(0, 256, count, dtype=np.uint8)


def exchange_pieces(end: Any, role: str, pieces: int, meeting: Any) -> None:
    """Both sides write pieces into the other's upper half, and compare what came; receives are posted first."""
    other = "B" if role == "A" else "A"
    half = end.memory.size // 2
    total = pieces * PIECE
    assert total <= half
    end.memory[:total] = bytes_of(role, total)
    end.pair.post_receive(end.region, 0, 0, count=pieces)
    meeting.exchange()
    for i in range(pieces):
        end.write(i * PIECE, PIECE, to=half + i * PIECE, imm_data=i, wr_id=i)
    end.finished(pieces)
    assert [c.imm_data for c in end.received(pieces)] == list(range(pieces))
    assert np.array_equal(end.memory[half : half + total], bytes_of(other, total))


def change(*command: str) -> None:
    subprocess.run(command, check=True)


def test_the_gid_is_the_address_on_the_wire(end: Any, role: str) -> None:
    from ends import ADDRESSES

    assert str(end.gid) == ADDRESSES[role] and end.gid.family == "ipv4"


def test_both_ways_at_once(end: Any, role: str, device: str, meeting: Any) -> None:
    from ends import counters

    before = counters(device)
    exchange_pieces(end, role, 8, meeting)
    after = counters(device)
    for name in ("sent_pkts", "rcvd_pkts"):
        assert after[name] - before[name] >= 8 * PIECE // 4096, name


def test_read_across(end: Any, role: str, meeting: Any) -> None:
    end.memory[:PIECE] = bytes_of(role, PIECE)
    meeting.exchange()
    end.read(PIECE, PIECE, source=0)
    end.finished()
    assert np.array_equal(end.memory[PIECE : 2 * PIECE], bytes_of("B" if role == "A" else "A", PIECE))


@one_provider
@pytest.mark.parametrize(
    ("trouble", "repairs"),
    [
        ("delay 3ms rate 1gbit", False),
        ("loss 1%", True),
        ("delay 2ms reorder 1% gap 5", True),
        ("duplicate 2%", False),
        ("corrupt 1%", True),
    ],
)
def test_a_bad_wire(
    end: Any, role: str, device: str, wire: str, meeting: Any, trouble: str, repairs: bool
) -> None:
    """Whatever the wire does to packets, the bytes are right. Seeds cannot be set: the numbers make it certain."""
    from ends import counters

    before = counters(device)
    change("tc", "qdisc", "add", "dev", wire, "root", "netem", "limit", "20000", *trouble.split())
    try:
        for _ in range(5):
            exchange_pieces(end, role, 8, meeting)
    finally:
        change("tc", "qdisc", "del", "dev", wire, "root")
    after = counters(device)
    signs = ("out_of_seq_request", "rcvd_seq_err", "duplicate_request", "completer_retry_err")
    seen = {name: after[name] - before[name] for name in signs}
    total = sum(seen.values()) + int(meeting.exchange(str(sum(seen.values())).encode()))
    print(trouble, seen)
    # 640 packets of data each way: that 1 % of them spares all has a chance of 0.99**1280, one in 400,000.
    assert not repairs or total > 0


def test_a_smaller_mtu_at_one_end(provider: Any, device: str, role: str, wire: str, meeting: Any) -> None:
    from ends import End

    if role == "B":
        change("ip", "link", "set", wire, "mtu", "1500")
    try:
        meeting.exchange()
        end = End(provider, device)
        mtus = {role: end.address.mtu}
        mtus["B" if role == "A" else "A"] = int(meeting.exchange(str(end.address.mtu).encode()))
        assert mtus == {"A": 4096, "B": 1024}
        problem = mtu_problem([mtus["A"], mtus["B"]], ["a", "b"])
        assert problem is not None and "1024 on b, 4096 on a; all use 1024" in problem.reason
        end.connect(meeting.exchange(end.card()))
        exchange_pieces(end, role, 4, meeting)
        meeting.exchange()
        end.close()
    finally:
        if role == "B":
            change("ip", "link", "set", wire, "mtu", "9000")
        meeting.exchange()


@one_provider
def test_a_link_that_flaps_is_survived(end: Any, role: str, wire: str, meeting: Any) -> None:
    """The other's link is away for 0.4 s, the packets are lost, and the retries (17 and 6: 3.8 s) bring them."""
    meeting.exchange()
    if role == "B":
        change("ip", "link", "set", wire, "down")
        time.sleep(0.4)
        change("ip", "link", "set", wire, "up")
    else:
        time.sleep(0.1)
        end.memory[:PIECE] = bytes_of("A", PIECE)
        end.write(0, PIECE, to=PIECE)
        end.finished()
    meeting.exchange()
    if role == "B":
        assert np.array_equal(end.memory[PIECE : 2 * PIECE], bytes_of("A", PIECE))


@one_provider
def test_a_lost_link_breaks_the_queue_pair_in_time(end: Any, role: str, wire: str, meeting: Any) -> None:
    settings = end.settings
    status, lasted, took = "", 0.0, 0.0
    meeting.exchange()
    if role == "B":
        change("ip", "link", "set", wire, "down")
        time.sleep(2 + 3 * settings.failure_s)
        change("ip", "link", "set", wire, "up")
    else:
        ping = ["busybox", "ping", "-c", "1", "-W", "1", ADDRESSES["B"]]
        while subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0:
            pass  # B's command takes its time where B is emulated on a busy host
        began, now = time.monotonic(), machine_load.now()
        end.write(0, PIECE)
        while not (failed := end.sends.poll(1)):
            assert machine_load.now() - now < WAIT_S
            machine_load.nap()
        status, lasted, took = (
            status_name(failed[0].status),
            time.monotonic() - began,
            machine_load.now() - now,
        )
    # A failure that kept one of them from coming here would leave both out of step in all tests after it.
    meeting.exchange()
    if role == "A":
        assert status == "RETRY_EXC_ERR"
        print(f"{took:.2f} s; nominal {settings.failure_s:.2f} s")
        assert 0.9 * settings.failure_s < lasted and took < 2 * settings.failure_s
