"""What goes wrong on a device gets its name: access, missing receives, lengths, a dead peer, limits, a link down."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import job
import machine_load
import pytest

from cktrain.comm.transport import verbs
from cktrain.comm.transport.queue_pair import Settings
from cktrain.comm.transport.rdma_device import describe_system, problems
from cktrain.comm.transport.verbs import WorkRequestError, check, status_name

pytestmark = pytest.mark.rdma


def names(completions: Any) -> list[str]:
    return [status_name(c.status) for c in completions]


# --------------------------------------------------------------------------------------------------- the requests


def test_a_wrong_key(connected: Any) -> None:
    a, b = connected()
    b.memory[:] = 7
    a.pair.post_write(a.region, 0, 8, b.remote.address, b.remote.rkey ^ 0x5500, wr_id=3)
    (failed,) = a.finished(good=False)
    with pytest.raises(
        WorkRequestError, match=r"rank 1: work request 3 .*REM_ACCESS_ERR.*Check its rkey"
    ) as error:
        check(failed, "rank 1")
    assert error.value.status == "REM_ACCESS_ERR"
    assert b.memory[0] == 7
    assert a.pair.state == "ERR"
    a.write(0, 8)  # after the first error nothing goes any more
    assert names(a.finished(good=False)) == ["WR_FLUSH_ERR"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_bytes_outside_the_peers_region(connected: Any, where: str) -> None:
    a, b = connected()
    start = b.remote.address + (b.remote.length - 4 if where == "after" else -4)
    a.pair.post_write(a.region, 0, 8, start, b.remote.rkey)
    assert names(a.finished(good=False)) == ["REM_ACCESS_ERR"]


@pytest.mark.parametrize(
    ("granted", "operation", "allowed"),
    [
        (verbs.ACCESS_LOCAL_WRITE, "write", False),
        (verbs.ACCESS_LOCAL_WRITE | verbs.ACCESS_REMOTE_READ, "write", False),
        (verbs.ACCESS_LOCAL_WRITE | verbs.ACCESS_REMOTE_READ, "read", True),
        (verbs.ACCESS_LOCAL_WRITE | verbs.ACCESS_REMOTE_WRITE, "read", False),
        (verbs.ACCESS_LOCAL_WRITE | verbs.ACCESS_REMOTE_WRITE, "write", True),
        (verbs.ACCESS_LOCAL_WRITE | verbs.ACCESS_REMOTE_WRITE, "atomic", False),
    ],
)
def test_a_region_allows_what_it_was_registered_for(
    connected: Any, granted: int, operation: str, allowed: bool
) -> None:
    a, b = connected(region_access=granted)
    if operation == "write":
        a.write(0, 8)
    elif operation == "read":
        a.read(0, 8)
    else:
        a.pair.post_fetch_add(a.region, 0, b.remote.address, b.remote.rkey, 1)
    assert names(a.finished(good=False)) == ["SUCCESS" if allowed else "REM_ACCESS_ERR"]


def test_no_receive_for_immediate_data(connected: Any) -> None:
    from ends import HASTY

    a, _ = connected(settings=HASTY)
    began = time.monotonic()
    a.write(0, 8, imm_data=1)
    (failed,) = a.finished(good=False)
    assert time.monotonic() - began < 10
    with pytest.raises(WorkRequestError, match="Post receives before the peer sends"):
        check(failed, "rank 1")


def test_a_message_longer_than_its_receive(connected: Any) -> None:
    a, b = connected()
    b.pair.post_receive(b.region, 0, 10)
    a.pair.post_send(a.region, 0, 11)
    # The standard asks for the first ones; soft-RoCE of Linux 6.1 gives the second.
    assert names(a.finished(good=False))[0] in ("REM_INV_REQ_ERR", "REM_OP_ERR")
    assert names(b.received(good=False))[0] in ("LOC_LEN_ERR", "LOC_QP_OP_ERR")


def test_a_registration_that_was_taken_back(connected: Any) -> None:
    a, b = connected()
    b.region.close()
    a.write(0, 8)
    assert names(a.finished(good=False)) == ["REM_ACCESS_ERR"]


# ---------------------------------------------------------------------------------------------------- a dead peer


@pytest.fixture
def peer(provider: Any, device: str) -> Iterator[Any]:
    """`peer(settings)` is an end connected to another process, and that process."""
    from ends import End, Meeting

    children: list[Any] = []
    ends: list[Any] = []

    def start(settings: Settings) -> Any:
        program = ["peer.py", provider.NAME, device, str(settings.timeout)]
        children.append(job.nursery(rdma=True).start(program, os.environ))
        ends.append(End(provider, device, size=4 << 20, settings=settings))
        with Meeting("A") as meeting:
            ends[-1].connect(meeting.exchange(ends[-1].card()))
            meeting.exchange()
        return ends[-1], children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()
    for end in ends:
        end.close()


@pytest.mark.parametrize("timeout", [14, 17])
def test_a_killed_peer_breaks_the_queue_pair_in_time(peer: Any, timeout: int) -> None:
    settings = Settings(timeout=timeout)
    end, child = peer(settings)
    size = 1 << 20
    killed, began = None, 0.0
    sent = done = 0
    while True:
        while sent - done < 4:
            end.write(sent % 4 * size, size, wr_id=sent)
            sent += 1
        completions = end.sends.poll(4)
        if any(c.status for c in completions):
            break
        done += len(completions)
        if killed is None and done >= 4:
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed, began = machine_load.now(), time.monotonic()
        machine_load.nap()
        assert killed is None or machine_load.now() - killed < 30
    assert killed is not None
    took, lasted = machine_load.now() - killed, time.monotonic() - began
    rest = sent - done - len(completions)
    failed = names([*completions, *(end.finished(rest, good=False) if rest else [])])
    assert failed[0] == "RETRY_EXC_ERR" and set(failed[1:]) <= {"WR_FLUSH_ERR"}, failed
    assert end.pair.state == "ERR"
    print(f"timeout {timeout}: {took:.2f} s after the kill; nominal {settings.failure_s:.2f} s")
    # A write that was on its way when the peer died counts from its last acknowledgement, before the kill; above,
    # the emulated machine may be slow: each retry sends all that is on its way again.
    assert 0.7 * settings.failure_s < lasted and took < 2 * settings.failure_s + 2


def test_a_stopped_peer_cannot_be_told_by_rdma(peer: Any) -> None:
    """The device answers for it: writes go on completing. Only heartbeats show that it stands still."""
    end, child = peer(Settings())
    child.send_signal(signal.SIGSTOP)
    for _ in range(5):
        end.write(0, 100_000)
        end.finished()
    child.send_signal(signal.SIGCONT)


# ------------------------------------------------------------------------------------------ limits and the system


def registering(provider: Any, device: str, *arguments: str) -> tuple[int, str]:
    """The status and the output of a user without rights who registers a mebibyte."""
    command = ["registering.py", provider.NAME, device, *arguments]
    process = job.nursery(rdma=True).start(command, os.environ)
    output, _ = process.communicate()
    return process.wait(), output


def test_too_little_memory_may_be_locked(provider: Any, device: str) -> None:
    status, output = registering(provider, device, str(64 << 10))
    assert status != 0
    assert "this process may lock 65,536 bytes of memory, and 1,048,576 are to be registered" in output
    assert "ibv_reg_mr on 1,048,576 bytes" in output and "Raise the limit of locked memory" in output


def test_no_permission_on_the_device(provider: Any, device: str) -> None:
    node = next(d.node for d in describe_system().devices if d.name == device)
    assert node is not None
    mode = node.stat().st_mode
    node.chmod(0o600)
    try:
        status, output = registering(provider, device)
    finally:
        node.chmod(mode)
    assert status != 0
    assert f"this user may not open {node} of {device}" in output
    assert "ibv_open_device" in output and "udev rules of rdma-core" in output


def interface_of(device: str) -> str:
    return Path(f"/sys/class/infiniband/{device}/parent").read_text().strip()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_port_that_is_down(provider: Any, device: str) -> None:
    context = provider.open_device(device)
    interface = interface_of(device)
    ip("link", "set", interface, "down")
    try:
        wait_until(lambda: not context.query_port().active)
        (found,) = problems(describe_system(), device=device, one_host=True)
        assert (
            found.reason == f"port 1 of {device} is DOWN, not ACTIVE"
            and f"ip link set {interface}" in found.remedy
        )
        assert "PORT_ERR" in context.events()
    finally:
        ip("link", "set", interface, "up")
        wait_until(lambda: context.query_port().active)
        context.close()
    wait_until(lambda: not problems(describe_system(), device=device, one_host=True))


def test_no_ipv4_address_no_gid_for_other_hosts(device: str) -> None:
    interface = interface_of(device)
    shown = subprocess.run(
        ["ip", "-brief", "-4", "address", "show", "dev", interface],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (address,) = (word for word in shown.split() if "/" in word)
    ip("address", "flush", "dev", interface, "scope", "global")
    try:
        wait_until(lambda: problems(describe_system(), device=device))
        (found,) = problems(describe_system(), device=device)
        assert "only a link-local RoCEv2 GID" in found.reason and f"dev {interface}" in found.remedy
        assert problems(describe_system(), device=device, one_host=True) == []
    finally:
        ip("address", "add", address, "dev", interface)
        wait_until(lambda: not problems(describe_system(), device=device))


def test_a_write_without_a_link_of_ones_own(connected: Any, device: str) -> None:
    """Soft-RoCE finds no route and does not retry. A link that is down at the peer's end is another matter."""
    a, _ = connected()
    interface = interface_of(device)
    ip("link", "set", interface, "down")
    try:
        a.write(0, 8)
        (failed,) = a.finished(good=False)
        with pytest.raises(WorkRequestError, match=r"LOC_QP_OP_ERR.*ip -brief link"):
            check(failed, "rank 1")
    finally:
        ip("link", "set", interface, "up")
        wait_until(lambda: not problems(describe_system(), device=device))
