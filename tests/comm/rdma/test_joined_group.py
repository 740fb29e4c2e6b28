"""Groups on two machines with a wire between them: both run this file, in step (see test_joined.py).

A has the lower ranks. They meet over the wire, so they need a secret; netem delays, loses and cuts what RDMA and TCP carry.
"""

from __future__ import annotations

import math
import os
import re
import select
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import job
import machine_load
import pytest
from ends import ADDRESSES, TURN_S

pytestmark = pytest.mark.rdma_joined

TWO_LEVEL_CHECKS = [
    "check_all_reduce",
    "check_flat",
    "check_reduce_scatter_counts",
    "check_all_gather_counts",
    "check_broadcast",
    "check_all_to_all",
    "check_all_to_all_counts",
    "check_send_and_recv",
    "check_async",
]
LOST_S = 6 + 2
"""A lost peer is told within six seconds, and an emulated machine takes some time to print it."""
TOLD_S = 2 + 2
"""Of them two are cktrain's own, from the moment at which the device has used up its retries."""
PORTS = range(29700, 29800)
one_provider = pytest.mark.parametrize(
    "provider_name", ["native", pytest.param("pyverbs", marks=pytest.mark.nightly)]
)
"""What a group does about a lost wire is the same code with both; who polls differs, of which test_group.py has both."""


def change(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def nursery() -> Any:
    """Ranks are forked."""
    return job.nursery(rdma=True)


def kernel_side(pid: int) -> str:
    """Where each thread of a process stands in the kernel."""
    shown = ""
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
        shown += f"thread {task.name} {(task / 'comm').read_text().strip()} {state}:\n{(task / 'stack').read_text()}"
    return shown


class Retries:
    """When this machine's device used them up, by its own counter, in seconds of machine_load.now.

    Each retry sends all that is under way again, which emulated takes its time, another one on each machine and under each
    load: no bound in seconds holds for it. What a device takes is not cktrain's, and a card's is its own too.
    """

    def __init__(self, device: str):
        self._device = device
        self._before = self._count()
        self._began = machine_load.now()
        self.after_s = math.inf

    def _count(self) -> int:
        from ends import counters

        return counters(self._device)["retry_exceeded_err"]

    def look(self) -> None:
        if self.after_s == math.inf and self._count() > self._before:
            self.after_s = machine_load.now() - self._began


class Rank:
    """A rank of a program."""

    def __init__(self, nursery: Any, place: dict[str, str], *arguments: str):
        self.process = nursery.start(["rank_program.py", *arguments], {**os.environ, **place})
        self.output = ""

    def wait_for(self, text: str, limit_s: float = 300, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until it has printed that."""
        deadline = time.monotonic() + limit_s
        while text not in self.output:
            meanwhile()
            if not select.select([self.process.stdout], [], [], 0)[0]:
                assert time.monotonic() < deadline, f"did not say {text!r} in {limit_s:g} s:\n{self.output}"
                machine_load.nap()
                continue
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, f"ended without saying {text!r}:\n{self.output}"
            self.output += more.decode(errors="replace")

    def end(self, limit_s: float = 300) -> tuple[int, str]:
        """Its status and all that it printed."""
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(machine_load.NAP_S)
        hung = self.process.poll() is None
        shown = kernel_side(self.process.pid) if hung else ""
        self.process.kill()
        self.output += self.process.communicate()[0]
        assert not hung, f"hung for {limit_s:g} s:\n{self.output}\n{shown}"
        return self.process.returncode, self.output


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The same bytes on both machines."""
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture
def start(nursery: Any, role: str, secret: Path, request: pytest.FixtureRequest) -> Any:
    """`start(provider, program, ...)` is this machine's rank of two; with `local=2` its two of four."""
    # The same port on both machines, whatever became of the tests before.
    port = PORTS[zlib.crc32(request.node.name.encode()) % len(PORTS)]

    def begin(provider: str, *arguments: str, local: int = 1, **environment: str) -> Any:
        common = {
            "CKTRAIN_RENDEZVOUS": f"{ADDRESSES['A']}:{port}",
            "CKTRAIN_SECRET_FILE": str(secret),
            "CKTRAIN_TEST_TRANSPORT": "rdma",
            "CKTRAIN_TEST_LARGE": "250007",  # a mebibyte, in several pieces: each costs CPU time here
            "CKTRAIN_TEST_TIMEOUT": "60",
            "CKTRAIN_TEST_MEETING": str(TURN_S),
            "CKTRAIN_VERBS": provider,
            "WORLD_SIZE": str(2 * local),
            "LOCAL_WORLD_SIZE": str(local),
        }
        ranks = []
        for i in range(local):
            place = {"RANK": str(local * "AB".index(role) + i), "LOCAL_RANK": str(i)}
            ranks.append(Rank(nursery, common | place | environment, *arguments))
        return ranks[0] if local == 1 else ranks

    return begin


@pytest.fixture
def trouble(wire: str) -> Iterator[Any]:
    """`trouble("delay 2ms")` disturbs what this machine sends, until the test ends."""
    made = []

    def begin(words: str) -> None:
        change("tc", "qdisc", "add", "dev", wire, "root", "netem", "limit", "20000", *words.split())
        made.append(words)

    yield begin
    if made:
        change("tc", "qdisc", "del", "dev", wire, "root")


@pytest.mark.parametrize(
    ("provider_name", "words"),
    [
        ("native", ""),
        ("pyverbs", ""),
        ("native", "delay 2ms loss 0.5%"),
        pytest.param("pyverbs", "delay 2ms loss 0.5%", marks=pytest.mark.nightly),
    ],
)
def test_collectives_over_the_wire(
    role: str, start: Any, meeting: Any, trouble: Any, provider_name: str, words: str, device: str
) -> None:
    from ends import counters

    before = counters(device)
    if words:
        trouble(words)
    meeting.exchange()
    status, output = start(provider_name, "short_conformance").end()
    assert status == 0, output
    assert role == "B" or "checks run: 7" in output
    after = counters(device)
    assert after["sent_pkts"] - before["sent_pkts"] > 100
    meeting.exchange()


@one_provider
def test_a_link_that_is_lost_for_good(
    role: str, start: Any, meeting: Any, wire: str, provider_name: str
) -> None:
    """Both sides raise within 6 s, naming the other.

    Their processes may end later: soft-RoCE destroys a queue pair only when the network card has let go of its last
    packets, which a card that is down may not do before it is up again, or after 50 s (rxe_pool.c).
    """
    rank = start(provider_name, "repeat", "large")
    rank.wait_for("running")
    meeting.exchange()
    began = machine_load.now()
    if role == "B":
        change("ip", "link", "set", wire, "down")
    try:
        rank.wait_for("lost rank")
        took = machine_load.now() - began
        time.sleep(max(0.0, LOST_S + 2 - took))  # until the other side, too, must have said so
    finally:
        if role == "B":
            change("ip", "link", "set", wire, "up")
    status, output = rank.end()
    assert status == 1, output
    other = 1 - "AB".index(role)
    assert re.search(rf"lost rank {other} on .*\(.*\) during", output), output
    assert took < LOST_S, f"{took:.1f} s"
    time.sleep(1)
    meeting.exchange()


@one_provider
def test_a_wire_that_loses_rdma_alone(
    role: str, start: Any, meeting: Any, wire: str, device: str, provider_name: str
) -> None:
    """RoCEv2's packets (UDP to port 4791) of B vanish, the control connection lives: the retries tell it.

    The side whose retries end first breaks the connection, and both must say so within two seconds.
    """
    from cktrain.comm.transport.queue_pair import Settings

    rank = start(provider_name, "repeat", "large")
    rank.wait_for("running")
    meeting.exchange()
    retries, began = Retries(device), machine_load.now()
    if role == "B":
        for words in (
            "qdisc add dev {} root handle 1: prio priomap" + 16 * " 0",
            "qdisc add dev {} parent 1:3 netem loss 100%",
            "filter add dev {} parent 1: protocol ip u32 match ip protocol 17 0xff match ip dport 4791 0xffff flowid 1:3",
        ):
            change("tc", *words.format(wire).split())
    try:
        rank.wait_for("lost rank", meanwhile=retries.look)
        took = machine_load.now() - began
        retries.look()
        status, output = rank.end()
    finally:
        if role == "B":
            change("tc", "qdisc", "del", "dev", wire, "root")
    assert status == 1, output
    assert re.search(rf"lost rank {1 - 'AB'.index(role)} on .*\(.*\) during", output), output
    time.sleep(1)
    device_s = min(retries.after_s, float(meeting.exchange(str(retries.after_s).encode())))
    print(f"told after {took:.1f} s, {device_s:.1f} s of them the device's")
    assert device_s < 4 * Settings().failure_s  # what the standard allows a device
    assert took < device_s + TOLD_S, f"{took:.1f} s, {device_s:.1f} s of them the device's"
    reasons = meeting.exchange(output.encode()[-500:]) + output.encode()
    assert b"RETRY_EXC_ERR" in reasons, reasons


@one_provider
def test_two_levels(role: str, start: Any, meeting: Any, device: str, provider_name: str) -> None:
    """Two ranks on each machine: shared memory inside, RDMA between, and the bits of the order that is promised."""
    from ends import counters

    before = counters(device)
    two_nodes = {"CKTRAIN_TEST_TRANSPORT": "auto", "CKTRAIN_TEST_NODES": "2,2", "CKTRAIN_TEST_LOG": "INFO"}
    ranks = start(provider_name, "brief_conformance", *TWO_LEVEL_CHECKS, local=2, **two_nodes)
    ends = [rank.end() for rank in ranks]
    assert [status for status, _ in ends] == [0, 0], ends
    if role == "A":
        assert "transport: rdma (2 nodes with 2 ranks each, shm inside)" in ends[0][1], ends[0][1]
        assert f"checks run: {len(TWO_LEVEL_CHECKS)}" in ends[0][1], ends[0][1]
    after = counters(device)
    assert after["sent_pkts"] - before["sent_pkts"] > 100
    meeting.exchange()


@one_provider
def test_a_link_that_flaps_is_survived(
    role: str, start: Any, meeting: Any, wire: str, provider_name: str
) -> None:
    """What B sends is dropped for 200 ms and must be sent again.

    Its own link is not taken down: without a route soft-RoCE breaks a queue pair at once, where a card tries again.
    """
    rank = start(provider_name, "repeat", "large")
    rank.wait_for("running")
    meeting.exchange()
    if role == "B":
        change("tc", "qdisc", "add", "dev", wire, "root", "netem", "loss", "100%")
        time.sleep(0.2)
        change("tc", "qdisc", "del", "dev", wire, "root")
    time.sleep(6)
    alive = rank.process.poll() is None
    meeting.exchange()
    rank.process.send_signal(signal.SIGKILL)
    status, output = rank.end()
    assert alive and "lost rank" not in output, (status, output)
    meeting.exchange()
