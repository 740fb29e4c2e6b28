"""The ranks of one node find each other, and pass file descriptors to each other.

They meet at an abstract unix socket (no file that could be left behind), whose name all of them know: `key` is
told by the launcher, or by the rendezvous of the whole world. Local rank 0 listens; the kernel tells both sides
the other's user id, and another user is refused before a byte is read. Rank 0 then makes a socket for every pair
of ranks and hands out the ends (SCM_RIGHTS), and the memory of the seats (csrc/world.h). From then on a rank that
ends is seen by all others: its pair sockets are hung up, and its pidfd is readable.

What they say to each other are messages of `cktrain.comm.messages`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from cktrain.comm import _engine
from cktrain.comm.errors import CollectiveTimeoutError, PeerLostError, RendezvousError
from cktrain.comm.messages import receive_message, send_message
from cktrain.comm.peers import Peers
from cktrain.comm.reasons import Reasons, as_message, from_message

PROTOCOL = 3
_WHERE = "comm.shm"
_MAX_MESSAGE_BYTES = 1 << 20
_HELLO_S = 5.0
_POLL_S = 0.05
_HANDED = struct.Struct("<8sQQ")
_MAGIC = b"cktrain\n"
_BELL = 0xBE11


@dataclass
class Node(Peers):
    """The ranks of one node; those that share it have rank, pid, host, cpus and pid_namespace in `members`.

    Seats are numbered by local rank, or by rank where the node is one of several (`cktrain.comm.two_level`).
    """

    sockets: dict[int, socket.socket] = field(default_factory=dict)
    """To each other seat."""
    pidfds: list[int] = field(default_factory=list)
    bells: list[int] = field(default_factory=list)

    def hand(self, seat: int, fd: int, nbytes: int, tag: int) -> None:
        """Give a descriptor to another rank."""
        self.sockets[seat].setblocking(True)
        try:
            socket.send_fds(self.sockets[seat], [_HANDED.pack(_MAGIC, tag, nbytes)], [fd])
        except OSError as error:
            raise self._handing_failed(seat, str(error)) from error

    def take(self, seat: int, tag: int, timeout_s: float) -> tuple[int, int]:
        """Receive the descriptor that the other rank hands over under the same `tag`, and the length of its memory."""
        source, deadline = self.sockets[seat], time.monotonic() + timeout_s
        source.settimeout(_POLL_S)
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(source, _HANDED.size, 1, socket.MSG_CMSG_CLOEXEC)
                break
            except TimeoutError:
                if (lost := self.lost("sharing memory")) is not None:
                    raise lost from None
                if time.monotonic() > deadline:
                    rank = self.members[seat]["rank"]
                    raise CollectiveTimeoutError(
                        _WHERE, self.world.rank, "sharing memory", timeout_s, [rank]
                    ) from None
            except OSError as error:
                raise self._handing_failed(seat, str(error)) from error
        if len(data) != _HANDED.size or len(fds) != 1:
            raise self._handing_failed(seat, "its process ended")
        magic, their_tag, nbytes = _HANDED.unpack(data)
        if magic != _MAGIC or their_tag != tag:
            raise RendezvousError(
                _WHERE,
                f"rank {self.world.rank} shares memory {tag} and rank {self.members[seat]['rank']} memory {their_tag}",
                "Make every rank call split and allocate in the same order",
            )
        return fds[0], nbytes

    def _handing_failed(self, seat: int, how: str) -> PeerLostError:
        rank = self.members[seat]["rank"]
        self.world.fail(rank, how)
        lost = self.lost("sharing memory")
        assert lost is not None
        return lost

    def watch_over(self) -> list[tuple[int, int, int, int]]:
        """What the watch thread looks at to see the other ranks of this node end."""
        members = self.members
        watched = [
            (s.fileno(), members[seat]["rank"], seat, _engine.HANGUP) for seat, s in self.sockets.items()
        ]
        for seat in self.sockets:
            # A child that was forked off keeps the sockets open; the pidfd knows the process itself.
            if members[seat]["pid_namespace"] == members[self.seat]["pid_namespace"]:
                with contextlib.suppress(OSError, AttributeError):
                    self.pidfds.append(os.pidfd_open(members[seat]["pid"]))
                    watched.append((self.pidfds[-1], members[seat]["rank"], seat, _engine.PIDFD))
        return watched

    def exchange_bells(self, wake_fd: int, timeout_s: float) -> None:
        """Every rank of the node can wake every other one's engine where it sleeps on sockets."""
        for seat in self.sockets:
            self.hand(seat, wake_fd, 0, _BELL)
        for seat in self.sockets:
            fd, _ = self.take(seat, _BELL, timeout_s)
            self.bells.append(fd)
            self.world.bell(seat, fd)

    def close(self) -> None:
        """Leave in order: the others do not take the end of this process for a failure."""
        self.world.leave()
        self.world.stop()
        for other in self.sockets.values():
            other.close()
        for fd in (*self.pidfds, *self.bells):
            os.close(fd)
        self.pidfds.clear()
        self.bells.clear()


@dataclass
class NodeMeeting:
    """The ranks of a node that have met, before they share anything else."""

    seat: int
    members: list[dict[str, Any]]
    """As Node's, and what each of them cannot use (`reasons`)."""
    sockets: dict[int, socket.socket]
    seats_fd: int

    @property
    def cores(self) -> int:
        """How many cores they have together."""
        return len(set().union(*(member["cpus"] for member in self.members)))

    def map_seats(self) -> _engine.Mapping:
        """The memory of the seats, in this process."""
        mapping = _engine.Mapping(self.seats_fd, len(self.members) * _engine.SEAT_BYTES)
        os.close(self.seats_fd)
        return mapping

    def close(self) -> None:
        """Part again."""
        for other in self.sockets.values():
            other.close()
        os.close(self.seats_fd)


def join_node(
    key: str,
    rank: int,
    local_rank: int,
    local_size: int,
    timeout_s: float,
    *,
    engine_core: int | None = None,
) -> Node:
    """Meet the other ranks of this node, and watch them from then on (meet_on_node, watch_node)."""
    return watch_node(meet_on_node(key, rank, local_rank, local_size, timeout_s), engine_core=engine_core)


def meet_on_node(
    key: str, rank: int, local_rank: int, local_size: int, timeout_s: float, reasons: Reasons | None = None
) -> NodeMeeting:
    """Meet the other ranks of this node.

    Args:
        key: name of the meeting place, the same for all ranks of this job on this node and no other job's.
        rank: in the world.
        local_rank, local_size: place on the node.
        timeout_s: how long to wait for the others.
        reasons: what this rank cannot use, to be told to all.

    Raises:
        RendezvousError: ranks that do not come, or do not agree who they are.
    """
    if local_size > _engine.MAX_RANKS:
        raise RendezvousError(
            _WHERE, f"{local_size} ranks on one node; {_engine.MAX_RANKS} fit", "Use fewer ranks"
        )
    # The leading zero byte makes the name abstract.
    address = f"\0cktrain/{os.getuid()}/{key}"[:107]
    me = {
        "protocol": PROTOCOL,
        "local_rank": local_rank,
        "local_size": local_size,
        "rank": rank,
        "pid": os.getpid(),
        "pid_namespace": _pid_namespace(),
        "host": socket.gethostname(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "reasons": as_message(reasons or {}),
    }
    meet = _lead if local_rank == 0 else _follow
    return NodeMeeting(local_rank, *meet(address, me, local_size, time.monotonic() + timeout_s))


def watch_node(meeting: NodeMeeting, *, engine_core: int | None = None) -> Node:
    """The ranks that have met, watched from now on; `engine_core` is the comm thread's (None: where the process runs)."""
    members, me = meeting.members, meeting.members[meeting.seat]
    world = _engine.World(
        me["rank"],
        meeting.seat,
        len(members),
        meeting.map_seats(),
        spin=meeting.cores >= len(members),
        engine_core=-1 if engine_core is None else engine_core,
    )
    node = Node(meeting.seat, members, world, _WHERE, meeting.sockets)
    world.watch(node.watch_over(), node.sockets.values())
    return node


def share_node(
    world: _engine.World, seat: int, met: NodeMeeting, seats: list[int], members: list[dict[str, Any]]
) -> Node:
    """The ranks that have met as a part of a larger world.

    Args:
        world: of all ranks; it is not yet watched.
        seat: this rank's.
        met: who has met on this node.
        seats: in the world, of those, by local rank.
        members: of the world; those of this node get what is known of them here.
    """
    world.share_seats(met.map_seats(), seats)
    known = list(members)
    for local_rank, number in enumerate(seats):
        known[number] = met.members[local_rank] | {"rank": members[number]["rank"]}
    return Node(seat, known, world, _WHERE, {seats[local]: s for local, s in met.sockets.items()})


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def new_memory(name: str, nbytes: int) -> int:
    """A memfd of zeros."""
    fd = os.memfd_create(f"cktrain {name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, nbytes)
    return fd


def _lead(
    address: str, me: dict[str, Any], size: int, deadline: float
) -> tuple[list[dict[str, Any]], dict[int, socket.socket], int]:
    members: dict[int, dict[str, Any]] = {0: me}
    doors: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            raise RendezvousError(
                _WHERE,
                f"rank {me['rank']} cannot open the meeting place {address[1:]!r}: {error.strerror}",
                "Another job uses the same name on this host: give each job its own CKTRAIN_JOB",
            ) from error
        listener.listen(size)
        while len(members) < size:
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                door, _ = listener.accept()
            except TimeoutError:
                absent = ", ".join(str(s) for s in range(size) if s not in members)
                raise RendezvousError(
                    _WHERE,
                    f"local ranks {absent} of {size} did not come to {address[1:]!r} on {me['host']}",
                    "Check that they were started, and look into their logs",
                ) from None
            try:
                hello = _admit(door, size, members)
            except (OSError, ValueError, KeyError, TypeError) as error:
                with contextlib.suppress(OSError):
                    send_message(door, {"refused": str(error)})
                door.close()
                continue
            members[hello["local_rank"]] = hello
            doors[hello["local_rank"]] = door
    try:
        return _hand_out(members, doors, size)
    except OSError as error:
        raise RendezvousError(
            _WHERE,
            f"a local rank on {me['host']} went away while the ranks met: {error}",
            "Look into the ranks' logs",
        ) from error


def _hand_out(
    members: dict[int, dict[str, Any]], doors: dict[int, socket.socket], size: int
) -> tuple[list[dict[str, Any]], dict[int, socket.socket], int]:
    """Tell everybody who is here, and give out the seats' memory and a socket for every pair."""
    ordered = [members[seat] for seat in range(size)]
    seats_fd = new_memory("seats", size * _engine.SEAT_BYTES)
    own: dict[int, socket.socket] = {}
    for door in doors.values():
        send_message(door, {"members": ordered})
        socket.send_fds(door, [b"s"], [seats_fd])
    for low in range(size):
        for high in range(low + 1, size):
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            for seat, peer, end in ((low, high, ends[0]), (high, low, ends[1])):
                if seat == 0:
                    own[peer] = end
                else:
                    socket.send_fds(doors[seat], [struct.pack("<I", peer)], [end.fileno()])
                    end.close()
    for door in doors.values():
        door.close()
    return ordered, own, seats_fd


def _admit(door: socket.socket, size: int, members: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The hello of a newcomer; raises what is to be told to one who is refused."""
    _check_user(door)
    door.settimeout(_HELLO_S)
    hello = _receive(door)
    if hello["protocol"] != PROTOCOL:
        raise ValueError(
            f"protocol {hello['protocol']}, this is {PROTOCOL}: all ranks must run one version of cktrain"
        )
    if hello["local_size"] != size:
        raise ValueError(f"you count {hello['local_size']} ranks on this node, rank 0 counts {size}")
    from_message(hello["reasons"])
    if hello["local_rank"] in members or not 0 < hello["local_rank"] < size:
        raise ValueError(f"local rank {hello['local_rank']} is already here, or not below {size}")
    return hello


def _check_user(other: socket.socket) -> None:
    _, uid, _ = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid():
        raise ValueError(f"user {uid} is not user {os.getuid()}")


def _follow(
    address: str, me: dict[str, Any], size: int, deadline: float
) -> tuple[list[dict[str, Any]], dict[int, socket.socket], int]:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pause = 0.005
    while True:
        try:
            door.connect(address)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousError(
                    _WHERE,
                    f"rank {me['rank']} finds no local rank 0 at {address[1:]!r} on {me['host']} ({error.strerror})",
                    "Check that it was started, and look into its log",
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
    with door:
        try:
            _check_user(door)
            send_message(door, me)
            door.settimeout(max(0.001, deadline - time.monotonic()) + _HELLO_S)
            answer = _receive(door)
            if "refused" in answer:
                raise RendezvousError(
                    _WHERE, f"rank {me['rank']} was refused: {answer['refused']}", "Start the job anew"
                )
            members = answer["members"]
            _, (seats_fd,), _, _ = socket.recv_fds(door, 1, 1, socket.MSG_CMSG_CLOEXEC)
            sockets = {}
            for _ in range(size - 1):
                data, (fd,), _, _ = socket.recv_fds(door, 4, 1, socket.MSG_CMSG_CLOEXEC)
                sockets[struct.unpack("<I", data)[0]] = socket.socket(fileno=fd)
        except (OSError, ValueError) as error:
            raise RendezvousError(
                _WHERE,
                f"rank {me['rank']} was left alone by local rank 0 on {me['host']}: {error}",
                "Look into the log of the other ranks",
            ) from error
    return members, sockets, seats_fd


def _receive(other: socket.socket) -> dict[str, Any]:
    message = receive_message(other, _MAX_MESSAGE_BYTES)
    if not isinstance(message, dict):
        raise ValueError("not a message of this protocol")
    return message
