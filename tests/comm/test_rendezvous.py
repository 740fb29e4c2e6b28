"""Who is let in at the rendezvous, and who is not; the listener lives on, and no log has the secret."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
import threading
import time

import job
import machine_load
import pytest

from cktrain.comm import _engine, messages, node, rendezvous
from cktrain.comm.errors import RendezvousError
from cktrain.comm.rendezvous import JOIN, Hello, address_of_interface, call, meet, read_secret

SECRET = b"0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Meeting:
    """All ranks of a job in threads of this process; each result is a Rendezvous or the error."""

    def __init__(
        self, size: int, secrets: dict[int, bytes] | None = None, timeout_s: float = 10, only=None, **options
    ):
        self.port = free_port()
        self.results: dict[int, object] = {}
        self.threads = []
        for rank in range(size) if only is None else only:
            secret = (secrets or {}).get(rank, SECRET)
            thread = threading.Thread(target=self._run, args=(rank, size, secret, timeout_s, options))
            thread.start()
            self.threads.append(thread)

    def _run(self, rank, size, secret, timeout_s, options):
        try:
            self.results[rank] = meet(rank, size, ("127.0.0.1", self.port), secret, timeout_s, **options)
        except RendezvousError as error:
            self.results[rank] = error

    def add(self, rank, size, secret=SECRET, timeout_s=10, **options):
        """Another rank comes, in this thread."""
        self._run(rank, size, secret, timeout_s, options)
        return self.results[rank]

    def wait(self) -> dict[int, object]:
        for thread in self.threads:
            thread.join(20)
        return self.results

    def close(self):
        for result in self.wait().values():
            if not isinstance(result, RendezvousError):
                result.close()


def knock(port: int, data: bytes) -> bytes:
    """Connect as a stranger; what comes back until the connection is closed."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=8) as stranger:
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
                got = b""
                while part := stranger.recv(4096):
                    got += part
                return got
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        except OSError as error:  # dropped already
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
            return b""


def assert_closed(connection: socket.socket) -> None:
    """By the other side: at its end, or reset where it has not read all that was sent."""
    connection.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def test_everyone_learns_where_everyone_is():
    meeting = Meeting(4)
    results = meeting.wait()
    assert all(not isinstance(r, RendezvousError) for r in results.values()), results
    lists = [results[r].members for r in range(4)]
    assert all(members == lists[0] for members in lists)
    assert [m["port"] for m in lists[0]] == [results[r].listener.getsockname()[1] for r in range(4)]
    found = {}

    def connect(rank):
        found[rank] = results[rank].connect_all([r for r in range(4) if r != rank], 1, 2)

    threads = [threading.Thread(target=connect, args=(r,)) for r in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for low in range(4):
        for high in range(low + 1, 4):
            for lane in range(2):
                found[low][high][lane].setblocking(True)
                found[high][low][lane].sendall(bytes([low, high, lane]))
                assert found[low][high][lane].recv(3) == bytes([low, high, lane])
    for sockets in found.values():
        for lanes in sockets.values():
            for connection in lanes:
                connection.close()
    meeting.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 10_000,
        struct.pack("<I", 1 << 31) + b"x" * 200,
        Hello(b"j" * 16, 2, 1, 0, JOIN).pack() + b"n" * 32 + b"p" * 32,
    ],
    ids=["nothing", "a byte", "http", "noise", "length", "wrong proof"],
)
def test_strangers_are_dropped_and_the_meeting_goes_on(data):
    meeting = Meeting(2, only=[0])
    answer = knock(meeting.port, data)
    assert len(answer) in (0, 32)  # at most the nonce; never a proof
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    assert len(meeting.wait()[0].members) == 2
    meeting.close()


def test_silent_strangers_hold_up_nobody():
    """A hundred connections that say nothing, or half of it: the ranks meet as fast as without them."""
    meeting = Meeting(2, only=[0])
    knock(meeting.port, b"")
    strangers = [socket.create_connection(("127.0.0.1", meeting.port)) for _ in range(100)]
    for number, stranger in enumerate(strangers):
        stranger.sendall(b"x" * number)
    began = time.monotonic()
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    assert len(meeting.wait()[0].members) == 2
    # Below the 5 s that a single one may take to answer, on a machine without other work.
    assert time.monotonic() - began < 4 * machine_load.stretch()
    for stranger in strangers:
        stranger.close()
    meeting.close()


def test_wrong_secret_is_refused_and_the_right_one_let_in():
    meeting = Meeting(2, only=[0])
    error = meeting.add(1, 2, secret=b"another secret of 32 bytes......")
    assert isinstance(error, RendezvousError)
    assert "refused" in str(error) and "same secret" in str(error)
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    for result in meeting.results.values():
        assert SECRET.decode() not in str(result)
    meeting.close()


@pytest.mark.parametrize("size, job_name, rank", [(3, "", 1), (2, "another", 1)])
def test_another_job_is_refused(size, job_name, rank):
    meeting = Meeting(2, only=[0])
    error = meeting.add(rank, size, job=job_name)
    assert isinstance(error, RendezvousError) and "refused" in str(error)
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    meeting.close()


def test_another_version_is_refused(monkeypatch):
    meeting = Meeting(2, only=[0])
    packed = Hello(rendezvous.hashlib.sha256(b"").digest()[:16], 2, 1, 0, JOIN).pack()
    other = packed[:8] + struct.pack("<I", 99) + packed[12:]
    monkeypatch.setattr(Hello, "pack", lambda self: other)
    error = meeting.add(1, 2)
    assert isinstance(error, RendezvousError) and "version" in str(error)
    monkeypatch.undo()
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    meeting.close()


SAID = {
    4: {
        "hello": "<8sI16sIIIQI",
        "member": "address str, host str, node str, pid int, port int, reasons dict, sockets int, tables str",
        "header of an operation": 48,
        "heartbeat": 248,
        "memory of an RDMA link with rings of 64 KiB": 2 * 65536 + 512 + 8192,
    }
}
"""By version of the protocol."""


def test_the_version_changes_with_what_ranks_tell_each_other():
    meeting = Meeting(2)
    member = meeting.wait()[0].members[1]
    meeting.close()
    said = {
        "hello": rendezvous._HELLO.format,
        "member": ", ".join(f"{key} {type(value).__name__}" for key, value in sorted(member.items())),
        "header of an operation": _engine.CALL_BYTES,
        "heartbeat": _engine.FRAME_BYTES,
        "memory of an RDMA link with rings of 64 KiB": _engine.RdmaLink.bytes_needed(65536),
    }
    assert said == SAID[rendezvous.PROTOCOL], "raise PROTOCOL, and write down here what the new version says"


def test_duplicate_rank_is_dropped():
    meeting = Meeting(3, only=[0, 1])
    time.sleep(0.3)
    deadline = time.monotonic() + 5
    hello = Hello(rendezvous.hashlib.sha256(b"").digest()[:16], 3, 1, 0, JOIN)
    with call(("127.0.0.1", meeting.port), hello, SECRET, deadline) as twin:
        messages.send_message(twin, {"host": "x", "address": "127.0.0.1", "port": 1, "pid": 1})
        assert_closed(twin)
    assert not isinstance(meeting.add(2, 3), RendezvousError)
    members = meeting.wait()[0].members
    assert members[1]["pid"] == os.getpid() and members[1]["port"] != 1
    meeting.close()


def test_member_with_an_oversized_message_is_dropped():
    meeting = Meeting(2, only=[0])
    hello = Hello(rendezvous.hashlib.sha256(b"").digest()[:16], 2, 1, 0, JOIN)
    with call(("127.0.0.1", meeting.port), hello, SECRET, time.monotonic() + 5) as member:
        member.sendall(struct.pack("<I", 1 << 30))
        assert_closed(member)
    assert not isinstance(meeting.add(1, 2), RendezvousError)
    meeting.close()


def test_an_impostor_who_listens_is_found_out():
    """Whoever listens at the address must know the secret as well; a proof cannot be reflected."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def listen():
            connection, _ = impostor.accept()
            with connection:
                connection.sendall(b"n" * 32)
                data = connection.recv(4096)
                connection.sendall(data[-32:])
                time.sleep(0.2)

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(RendezvousError, match="does not know the secret"):
            call(impostor.getsockname(), Hello(b"j" * 16, 2, 1, 0, JOIN), SECRET, time.monotonic() + 5)
        thread.join()


def test_absent_ranks_are_named():
    meeting = Meeting(4, only=[0, 2], timeout_s=1)
    results = meeting.wait()
    assert "ranks 1, 3" in str(results[0])
    assert isinstance(results[2], RendezvousError)


def test_without_a_secret_only_loopback():
    with pytest.raises(RendezvousError, match="CKTRAIN_SECRET_FILE"):
        meet(0, 2, ("10.1.2.3", 1234), None, 1)


@pytest.mark.parametrize("mode, content, words", [(0o644, b"x" * 32, "0644"), (0o600, b"short", "5 bytes")])
def test_secret_file_that_is_not_safe(tmp_path, mode, content, words):
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(RendezvousError, match=words) as caught:
        read_secret(path)
    assert content.decode() not in str(caught.value)


def test_secret_file(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    assert read_secret(path) == SECRET
    with pytest.raises(RendezvousError, match="umask"):
        read_secret(tmp_path / "none")


def test_interface_by_name():
    assert address_of_interface("lo") == "127.0.0.1"
    assert address_of_interface("10.0.0.7") == "10.0.0.7"
    with pytest.raises(RendezvousError, match=r"'nope0'.*lo"):
        address_of_interface("nope0")


def test_where_other_hosts_reach_this_one_without_a_default_route(monkeypatch):
    def no_route(host):
        raise RendezvousError("comm.rendezvous", f"no route to {host}", "Set comm.interface")

    found = [("docker0", "172.17.0.1"), ("eth0", "10.8.0.1"), ("eth1", "10.9.0.1")]
    monkeypatch.setattr(rendezvous, "_source_address", no_route)
    monkeypatch.setattr(rendezvous, "own_addresses", lambda: found)
    assert rendezvous.reachable_address(None) == "10.8.0.1"
    assert rendezvous.reachable_address("10.9.0.1") == "10.9.0.1"
    del found[1:]
    assert rendezvous.reachable_address(None) == "127.0.0.1"


def test_ranks_with_a_secret_file(tmp_path):
    """Whole processes; a rank with another secret is refused, and nobody prints a secret."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for path, content in ((good, SECRET), (bad, SECRET[::-1])):
        path.write_bytes(content)
        path.chmod(0o600)
    common = {
        "CKTRAIN_TEST_TRANSPORT": "tcp",
        "CKTRAIN_JOB": "secret",
        "CKTRAIN_RENDEZVOUS": f"127.0.0.1:{free_port()}",
    }
    with job.start(
        2, "rank_program.py", "exit_with", "0", only=[0], CKTRAIN_SECRET_FILE=str(good), **common
    ) as first:
        with job.start(
            2, "rank_program.py", "exit_with", "0", only=[1], CKTRAIN_SECRET_FILE=str(bad), **common
        ) as wrong:
            refused = wrong.ends(20)[0]
        assert refused.status == 1 and re.search("refused|does not know", refused.output)
        with job.start(
            2, "rank_program.py", "exit_with", "0", only=[1], CKTRAIN_SECRET_FILE=str(good), **common
        ) as right:
            ends = [*first.ends(20), *right.ends(20)]
    assert [end.status for end in ends] == [0, 0], ends
    for end in [refused, *ends]:
        assert SECRET.decode() not in end.output and SECRET[::-1].decode() not in end.output


@pytest.mark.parametrize("receive", [messages.receive_message, node._receive])
@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' * 100_000, "", "\x00", "NaN}", "\xff"])
def test_a_message_that_is_no_message_is_a_value_error(receive, text):
    """What the door catches; a RecursionError would end the listener."""
    here, there = socket.socketpair()
    with here, there:
        data = text.encode("latin-1")
        writer = threading.Thread(target=here.sendall, args=(struct.pack("<I", len(data)) + data,))
        writer.start()
        with pytest.raises(ValueError):
            receive(there)
        writer.join()
