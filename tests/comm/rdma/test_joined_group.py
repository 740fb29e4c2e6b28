"""A group of two ranks on two machines with a wire between them: both run this file, in step (see test_joined.py).

Rank 0 is A's. They meet over the wire, so they need a secret; netem delays, loses and cuts what RDMA and TCP carry.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import ADDRESSES

pytestmark = pytest.mark.rdma_joined

PROGRAM = Path(__file__).resolve().parents[1] / "rank_program.py"
_ports = iter(range(29700, 29800))


def change(*command: str) -> None:
    subprocess.run(command, check=True)


class Rank:
    """This machine's rank of a program."""

    def __init__(self, role: str, secret: Path, provider: str, *arguments: str, **environment: str):
        place = {"RANK": str("AB".index(role)), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        place |= {
            "CKTRAIN_RENDEZVOUS": f"{ADDRESSES['A']}:{next(_ports)}",
            "CKTRAIN_SECRET_FILE": str(secret),
        }
        place |= {"CKTRAIN_TEST_TRANSPORT": "rdma", "CKTRAIN_VERBS": provider, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            env={**os.environ, **place, "CKTRAIN_TEST_TIMEOUT": "60", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if text in line:
                return
        raise AssertionError(f"never said {text!r}:\n{seen}")

    def end(self, limit_s: float = 120) -> tuple[int, str]:
        try:
            output = self.process.communicate(timeout=limit_s)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            output = self.process.communicate()[0]
            pytest.fail(f"hung for {limit_s:g} s:\n{output}")
        return self.process.returncode, output


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The same bytes on both machines."""
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(bytes(range(32)))
    return path


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
    [("native", ""), ("pyverbs", ""), ("native", "delay 2ms loss 0.5%"), ("pyverbs", "delay 2ms loss 0.5%")],
)
def test_collectives_over_the_wire(
    role: str, secret: Path, meeting: Any, trouble: Any, provider_name: str, words: str, device: str
) -> None:
    from ends import counters

    before = counters(device)
    if words:
        trouble(words)
    meeting.exchange()
    status, output = Rank(role, secret, provider_name, "short_conformance").end()
    assert status == 0, output
    assert role == "B" or "checks run: 7" in output
    after = counters(device)
    assert after["sent_pkts"] - before["sent_pkts"] > 100
    meeting.exchange()


@pytest.mark.parametrize("provider_name", ["native", "pyverbs"])
def test_a_link_that_is_lost_for_good(
    role: str, secret: Path, meeting: Any, wire: str, provider_name: str
) -> None:
    """Both sides raise within 6 s, naming the other."""
    rank = Rank(role, secret, provider_name, "repeat", "large")
    rank.wait_for("running")
    meeting.exchange()
    began = time.monotonic()
    if role == "B":
        change("ip", "link", "set", wire, "down")
    try:
        status, output = rank.end(30)
        took = time.monotonic() - began
    finally:
        if role == "B":
            change("ip", "link", "set", wire, "up")
    assert status == 1, output
    other = 1 - "AB".index(role)
    assert re.search(rf"lost rank {other} on .*\(.*\) during", output), output
    assert took < 6 + 2, f"{took:.1f} s"  # what an emulated machine takes to print it and to end
    time.sleep(1)
    meeting.exchange()


def test_a_link_that_flaps_is_survived(role: str, secret: Path, meeting: Any, wire: str) -> None:
    """What B sends is dropped for 200 ms and must be sent again.

    Its own link is not taken down: without a route soft-RoCE breaks a queue pair at once, where a card tries again.
    """
    rank = Rank(role, secret, "native", "repeat", "large")
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
