"""How ranks on several hosts find each other, and prove that they belong together.

Rank 0 listens at an address that all ranks are told; every rank tells it where it can be reached itself, and gets the
list of all. Then each pair of ranks makes its connections, the higher rank to the lower.

Every connection begins with the same handshake, in messages of fixed length, so nothing that a stranger says decides
how much is read, and nothing is unpickled:

    listener -> caller    nonce (32 bytes)
    caller -> listener    hello (job, protocol, who calls whom, for what), nonce, HMAC("caller", hello, both nonces)
    listener -> caller    HMAC("listener", hello, both nonces)

HMAC-SHA256 (RFC 2104) under a secret that all ranks share, compared in constant time; fresh nonces of both sides keep a
recorded handshake from being used again, and the role in the message keeps one side's answer from being the other's
question. Whoever fails is dropped, and the listener goes on. Without a secret only the loopback interface is used.
What follows the handshake is neither encrypted nor signed: the network between the hosts is trusted to that extent.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import select
import shlex
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cktrain.comm.errors import RendezvousError
from cktrain.comm.messages import exactly, receive_message, send_message
from cktrain.comm.reasons import Reasons, as_message, from_message

PROTOCOL = 4
"""Of all that ranks tell each other; to be raised with any change of it (tests/comm/test_rendezvous.py)."""
_MAGIC = b"cktrain\n"
_NONCE_BYTES = 32
_HELLO = struct.Struct("<8sI16sIIIQI")  # magic, protocol, job, size, caller, called, purpose, channel
_CALL_BYTES = _HELLO.size + _NONCE_BYTES + hashlib.sha256().digest_size
_HANDSHAKE_S = 5.0
_MAX_CALLERS = 512
MAX_SOCKETS = 16
"""Per pair of ranks (csrc/sockets.h)."""
_WHERE = "comm.rendezvous"
CONTAINERS = ("docker", "virbr", "br-", "veth")
"""How interfaces begin that join this host's containers and guests, and no other host."""
JOIN = 0
"""The purpose of the first connection, to rank 0; the others have the numbers of groups."""


@dataclass(frozen=True)
class Hello:
    """Who calls whom, and for what."""

    job: bytes
    size: int
    caller: int
    called: int
    purpose: int
    channel: int = 0

    def pack(self) -> bytes:
        """The bytes that are sent and signed."""
        return _HELLO.pack(
            _MAGIC, PROTOCOL, self.job, self.size, self.caller, self.called, self.purpose, self.channel
        )


class Refused(Exception):
    """A stranger, a rank of another job or version, or one that is already here; the message says which."""


@dataclass
class Caller:
    """What is known of a caller who has not yet proved who it is."""

    nonce: bytes
    deadline: float
    said: bytearray = field(default_factory=bytearray)


@dataclass
class Rendezvous:
    """This rank's door, open as long as the world, and what it knows of the others."""

    rank: int
    size: int
    job: bytes
    secret: bytes = field(repr=False)
    listener: socket.socket
    timeout_s: float
    members: list[dict[str, Any]] = field(default_factory=list)
    """Per rank: host (name), address, port, pid, node (name), sockets, tables, reasons (what it cannot use)."""
    early: dict[tuple[int, int, int], socket.socket] = field(default_factory=dict)
    """Connections that came before this rank asked for them, by (purpose, caller, channel)."""
    callers: dict[socket.socket, Caller] = field(default_factory=dict)
    """Those who have not yet proved who they are, in the order in which they came."""

    def connect_all(self, peers: list[int], purpose: int, channels: int) -> dict[int, list[socket.socket]]:
        """`channels` connections to each of `peers` (world ranks), which make the same call with the same purpose."""
        deadline = time.monotonic() + self.timeout_s
        found: dict[int, list[socket.socket]] = {}
        for peer in sorted(p for p in peers if p < self.rank):
            member = self.members[peer]
            found[peer] = [
                call(
                    (member["address"], member["port"]),
                    Hello(self.job, self.size, self.rank, peer, purpose, channel),
                    self.secret,
                    deadline,
                )
                for channel in range(channels)
            ]
        wanted = {(purpose, peer, c) for peer in peers if peer > self.rank for c in range(channels)}
        while missing := wanted - self.early.keys():
            self._accept(deadline, f"connections of ranks {sorted({peer for _, peer, _ in missing})}")
        for key in sorted(wanted):
            found.setdefault(key[1], []).append(self.early.pop(key))
        for sockets in found.values():
            for connection in sockets:
                prepare(connection)
        return found

    def _accept(self, deadline: float, what: str) -> None:
        """Let one caller in who proves to belong to this job. Whoever says nothing, or the wrong thing, holds up nobody."""
        self.listener.setblocking(False)
        while True:
            now = time.monotonic()
            for connection in [c for c, caller in self.callers.items() if now > caller.deadline]:
                self._drop(connection)
            if now > deadline:
                raise RendezvousError(
                    _WHERE,
                    f"rank {self.rank} of {self.size}: {what} did not come to "
                    f"{self.listener.getsockname()[0]} within {self.timeout_s:g} s",
                    "Check that they were started, reach this address (comm.interface), and have the same secret",
                )
            first = min([deadline, *(caller.deadline for caller in self.callers.values())])
            poll = select.poll()
            for each in (self.listener, *self.callers):
                poll.register(each, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(1.0, 1000 * (first - now)))}
            for connection in [c for c in self.callers if c.fileno() in ready]:
                if self._hear(connection):
                    return
            if self.listener.fileno() in ready:
                self._open()

    def _open(self) -> None:
        """A caller comes: it is told this side's nonce, and has a while to answer."""
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            connection.setblocking(False)
            if len(self.callers) == _MAX_CALLERS:
                self._drop(next(iter(self.callers)))
            caller = Caller(os.urandom(_NONCE_BYTES), time.monotonic() + _HANDSHAKE_S)
            self.callers[connection] = caller
            connection.send(caller.nonce)  # so few bytes always fit

    def _hear(self, connection: socket.socket) -> bool:
        """Take what a caller says; True when it is let in, and then stands in `early`."""
        caller = self.callers[connection]
        try:
            part = connection.recv(_CALL_BYTES - len(caller.said))
            if not part:
                raise Refused("it went away")
            caller.said += part
            if len(caller.said) < _CALL_BYTES:
                return False
            hello, proof = answer(
                bytes(caller.said), caller.nonce, self.job, self.secret, self.size, self.rank
            )
            key = (hello.purpose, hello.caller, hello.channel)
            if key in self.early:
                raise Refused(f"rank {hello.caller} is already here")
            connection.send(proof)
        except BlockingIOError:
            return False
        except (OSError, Refused):
            self._drop(connection)
            return False
        del self.callers[connection]
        self.early[key] = connection
        return True

    def _drop(self, connection: socket.socket) -> None:
        del self.callers[connection]
        connection.close()

    def close(self) -> None:
        """Shut the door."""
        for connection in list(self.callers):
            self._drop(connection)
        self.listener.close()


def meet(
    rank: int,
    size: int,
    address: tuple[str, int],
    secret: bytes | None,
    timeout_s: float,
    *,
    job: str = "",
    interface: str | None = None,
    node: str = "",
    sockets: int = 0,
    tables: str = "",
    reasons: Reasons | None = None,
) -> Rendezvous:
    """Join the job whose rank 0 listens at `address`; returns when all `size` ranks have.

    Args:
        rank, size: who this is.
        address: host and port.
        secret: what all ranks of the job share; None: only on the loopback interface.
        timeout_s: how long to wait for the others.
        job: name of the job; a connection of another job is refused.
        interface: network interface (or address) to be reached at; None: the one that leads to rank 0.
        node: name of this rank's node (`cktrain.comm.layout`).
        sockets: per pair of ranks, as rank 0 was told; 0: nobody said.
        tables: of algorithms (`cktrain.comm.tuning`), as rank 0 has read them.
        reasons: what this rank cannot use, to be told to all.

    Raises:
        RendezvousError: ranks that do not come, are refused, or cannot listen.
    """
    deadline = time.monotonic() + timeout_s
    name = hashlib.sha256(job.encode()).digest()[:16]
    key = secret or b""
    host = _resolve(address[0])
    if secret is None and not ipaddress.ip_address(host).is_loopback:
        raise RendezvousError(
            _WHERE,
            f"rank {rank}: the job meets at {address[0]} and has no secret; without one only loopback is used",
            "Write 32 random bytes to a file of mode 0600 on every host and set CKTRAIN_SECRET_FILE to its name",
        )
    own = address_of_interface(interface) if interface else _source_address(host)
    about = {"node": node, "sockets": sockets, "tables": tables if rank == 0 else ""}
    if rank == 0:
        door = _listen((host, address[1]))
        meeting = Rendezvous(rank, size, name, key, door, timeout_s)
        mine = _member(own, door, reasons) | about
        # The other connections may come to another interface than the meeting does.
        if own != host:
            meeting.listener = _listen((own, 0))
            mine["port"] = meeting.listener.getsockname()[1]
        _gather(meeting, door, mine, deadline)
        if own != host:
            door.close()
        return meeting
    meeting = Rendezvous(rank, size, name, key, _listen((own, 0)), timeout_s)
    mine = _member(own, meeting.listener, reasons) | about
    with call((host, address[1]), Hello(name, size, rank, 0, JOIN), key, deadline) as connection:
        try:
            connection.settimeout(_HANDSHAKE_S)
            send_message(connection, mine)
            connection.settimeout(max(0.001, deadline - time.monotonic()) + _HANDSHAKE_S)
            meeting.members = receive_message(connection)
        except (OSError, ValueError) as error:
            raise RendezvousError(
                _WHERE, f"rank {rank} was left alone by rank 0 at {address[0]}: {error}", "Look into its log"
            ) from error
    return meeting


def _gather(meeting: Rendezvous, door: socket.socket, mine: dict[str, Any], deadline: float) -> None:
    """Rank 0: wait for all, then tell everybody who is here."""
    listener, meeting.listener = meeting.listener, door
    members = {0: mine}
    joined: dict[int, socket.socket] = {}
    while len(members) < meeting.size:
        absent = sorted(set(range(meeting.size)) - members.keys())
        meeting._accept(deadline, f"ranks {', '.join(map(str, absent))}")
        for purpose, caller, channel in list(meeting.early):
            if purpose != JOIN:
                continue
            connection = meeting.early.pop((purpose, caller, channel))
            try:
                if caller in members:
                    raise ValueError(f"rank {caller} is already here")
                connection.settimeout(_HANDSHAKE_S)
                members[caller] = _checked_member(receive_message(connection))
                joined[caller] = connection
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()
    meeting.members = [members[r] for r in range(meeting.size)]
    meeting.listener = listener
    for connection in joined.values():
        with contextlib.suppress(OSError):  # it is missed when it does not connect to the others
            send_message(connection, meeting.members)
        connection.close()


def _member(address: str, listener: socket.socket, reasons: Reasons | None) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "address": address,
        "port": listener.getsockname()[1],
        "pid": os.getpid(),
        "reasons": as_message(reasons or {}),
    }


def _checked_member(given: Any) -> dict[str, Any]:
    from_message(given["reasons"])
    ipaddress.ip_address(given["address"])
    if not 0 < int(given["port"]) < 65536:
        raise ValueError("no port")
    if not 0 <= int(given["sockets"]) <= MAX_SOCKETS:
        raise ValueError("sockets")
    return {k: given[k] for k in ("host", "address", "port", "pid", "node", "sockets", "tables", "reasons")}


# --------------------------------------------------------------------------------------------- the handshake


def answer(data: bytes, nonce: bytes, job: bytes, secret: bytes, size: int, rank: int) -> tuple[Hello, bytes]:
    """The listener's side: who calls, and this side's proof, for what a caller said in answer to `nonce`.

    Raises:
        Refused: it does not belong here.
    """
    hello, theirs, proof = data[: _HELLO.size], data[_HELLO.size : -32], data[-32:]
    if not hmac.compare_digest(proof, _proof(secret, b"caller", hello, nonce, theirs)):
        raise Refused("wrong secret")
    magic, protocol, their_job, their_size, caller, called, purpose, channel = _HELLO.unpack(hello)
    if magic != _MAGIC or protocol != PROTOCOL:
        raise Refused(f"protocol {protocol}, this is {PROTOCOL}")
    if their_job != job or their_size != size or called != rank or not rank < caller < size:
        raise Refused(f"rank {caller} of {their_size} calls rank {called} of another job")
    given = Hello(their_job, their_size, caller, called, purpose, channel)
    return given, _proof(secret, b"listener", hello, nonce, theirs)


def call(address: tuple[str, int], hello: Hello, secret: bytes, deadline: float) -> socket.socket:
    """The caller's side: connect, again and again until the deadline if nobody listens yet, and prove each other."""
    pause = 0.01
    who = f"rank {hello.caller} calling rank {hello.called} at {address[0]}:{address[1]}"
    while True:
        try:
            connection = socket.create_connection(address, timeout=_HANDSHAKE_S)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousError(
                    _WHERE, f"{who}: {error}", "Check the address, the firewall, and that rank was started"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
    try:
        # The other side answers when it comes to this connection; others may stand before us.
        connection.settimeout(max(_HANDSHAKE_S, deadline - time.monotonic()))
        theirs = exactly(connection, _NONCE_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        packed = hello.pack()
        connection.sendall(packed + nonce + _proof(secret, b"caller", packed, theirs, nonce))
        proof = exactly(connection, 32)
    except OSError as error:
        connection.close()
        raise RendezvousError(
            _WHERE,
            f"{who}: refused ({error})",
            "Give all ranks the same secret, the same version of cktrain and the same number of ranks",
        ) from error
    if not hmac.compare_digest(proof, _proof(secret, b"listener", packed, theirs, nonce)):
        connection.close()
        raise RendezvousError(
            _WHERE,
            f"{who}: whoever listens there does not know the secret",
            "Check the address and the secret",
        )
    return connection


def _proof(secret: bytes, role: bytes, hello: bytes, listener_nonce: bytes, caller_nonce: bytes) -> bytes:
    return hmac.digest(secret, role + b"\0" + hello + listener_nonce + caller_nonce, "sha256")


def read_secret(path: str | Path) -> bytes:
    """The secret in a file that nobody else may read.

    Raises:
        RendezvousError: no such file, others may read it, or it holds less than 16 bytes.
    """
    remedy = f"Make it with: (umask 077; head -c 32 /dev/urandom > {shlex.quote(str(path))})"
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(4096)
    except OSError as error:
        raise RendezvousError(_WHERE, f"the secret file {path}: {error.strerror}", remedy) from error
    if stat.S_IMODE(mode) & 0o077:
        raise RendezvousError(
            _WHERE,
            f"the secret file {path} has mode {stat.S_IMODE(mode):04o}: others may read it",
            f"chmod 600 {shlex.quote(str(path))}",
        )
    if len(secret) < 16:
        raise RendezvousError(
            _WHERE, f"the secret file {path} holds {len(secret)} bytes, at least 16 are needed", remedy
        )
    return secret


# ------------------------------------------------------------------------------------- sockets and addresses


def prepare(connection: socket.socket) -> None:
    """For the traffic of groups: no waiting for more bytes, no blocking."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if ipaddress.ip_address(connection.getpeername()[0]).is_loopback:
        # Inside a host there is no congestion to control; BBR's pacing would leave both cores idle. Reno is always
        # there. Between hosts the system's choice stands.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    connection.setblocking(False)


def find_out_dead_link(connection: socket.socket) -> None:
    """For heartbeats: the connection breaks when what was sent, or a probe, is not acknowledged for 5 s.

    Not for payload: a rank that is late does not read, and its full buffers would be taken for a dead link.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    # Probes are for a peer that is stopped, to which no more heartbeats are sent.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


def address_of_interface(name: str) -> str:
    """The IPv4 address of an interface; an address is returned as it is."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name))
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # SIOCGIFADDR
            data = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
        except OSError as error:
            there = ", ".join(n for _, n in socket.if_nameindex())
            raise RendezvousError(
                _WHERE,
                f"comm.interface: {name!r} has no IPv4 address here ({error.strerror})",
                f"Give one of {there}",
            ) from error
    return socket.inet_ntoa(data[20:24])


def _resolve(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:  # UnicodeError: a..b is no name at all
        raise RendezvousError(
            _WHERE,
            f"the host {host!r} is unknown: {error}",
            "Set the address right: CKTRAIN_RENDEZVOUS, or torchrun's MASTER_ADDR",
        ) from error


def own_addresses() -> list[tuple[str, str]]:
    """(interface, IPv4 address) of this host, without the loopback interface."""
    found = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(RendezvousError):
            found.append((name, address_of_interface(name)))
    return [(name, address) for name, address in found if not address.startswith("127.")]


def reachable_address(interface: str | None) -> str:
    """Where other hosts reach this one.

    The interface's address, or that of the default route. A cluster's own network may have none: then of the first
    interface that is no container's, or loopback.
    """
    if interface:
        return address_of_interface(interface)
    try:
        return _source_address("192.0.2.1")  # a documentation address (RFC 5737); nothing is sent
    except RendezvousError:
        others = [address for name, address in own_addresses() if not name.startswith(CONTAINERS)]
        return others[0] if others else "127.0.0.1"


def free_port(address: str) -> int:
    """A port of this host that is free now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _source_address(host: str) -> str:
    """Our address on the way to `host`; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise RendezvousError(
                _WHERE, f"no route to {host}: {error.strerror}", "Set comm.interface"
            ) from error
        return str(probe.getsockname()[0])


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise RendezvousError(
            _WHERE,
            f"cannot listen at {address[0]}:{address[1]}: {error.strerror}",
            "Rank 0 must run on the host of that address, and the port must be free",
        ) from error
    listener.listen(512)
    return listener


def exchange(
    connections: dict[int, socket.socket], messages: dict[int, Any], timeout_s: float
) -> dict[int, Any]:
    """Send each peer its message and return what each sent; all of them make the same call. Messages are short.

    Raises:
        RendezvousError: a peer is gone, silent, or says what cannot be read.
    """
    found = {}
    peer = -1
    try:
        for peer, connection in connections.items():
            connection.settimeout(timeout_s)
            send_message(connection, messages[peer])
        for peer, connection in connections.items():
            found[peer] = receive_message(connection)
    except (OSError, ValueError) as error:
        raise RendezvousError(
            _WHERE, f"rank {peer} was lost while connecting: {error}", "Look into its log"
        ) from error
    return found
