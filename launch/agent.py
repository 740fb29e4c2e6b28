"""Starts the ranks of one host, and sees to it that none outlives the job.

The launcher runs an agent on each host, as a child on its own and through the remote shell elsewhere, and talks to it
over its standard input and output (`cktrain.launch.messages`). What the ranks need comes that way too: the remote
shell may give an empty environment, and the secret must not stand on a command line or in a file.

No rank survives: the end of the input stream (the launcher, or the remote shell, is gone) kills all of them; the
kernel kills a rank whose agent is killed (PR_SET_PDEATHSIG); and what a rank started and left behind is handed to the
agent (PR_SET_CHILD_SUBREAPER), which kills it before it ends.

One thread: it forks, and nothing else may hold a lock at that moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cktrain import __version__
from cktrain.comm.rendezvous import own_addresses
from cktrain.host.cpu_limits import read_cpu_limits
from cktrain.host.topology import format_cpulist, read_topology
from cktrain.launch.messages import PROTOCOL, Lines, decode, encode
from cktrain.training.stop import SIGNALS, catchable

START = "import sys; sys.path[:] = [p for p in sys.path if p]; from {module} import main; sys.exit(main())"
"""Run a module's `main` without the current folder, in which a checkout's folders would be found as packages."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_READ_BYTES = 1 << 16
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Start:
    """What an agent is told to run."""

    first: int
    """World rank of its first rank."""
    ranks: int
    """Its own ranks."""
    world: int
    arguments: list[str]
    """Of `cktrain`."""
    folder: str
    """Where the ranks start."""
    environment: dict[str, str]
    """What is set over the agent's own environment."""
    secret: str
    """What all ranks share, as hexadecimal digits."""


def facts() -> dict[str, Any]:
    """What the launcher wants to know of this host before it starts anything."""
    known: dict[str, Any] = {
        "protocol": PROTOCOL,
        "version": __version__,
        "python": sys.executable,
        "host": socket.gethostname(),
        "addresses": own_addresses(),
        "port": _free_port(),
    }
    try:
        topology = read_topology()
        limits = read_cpu_limits(topology)
        known["topology"] = asdict(topology)
        known["cpus"] = format_cpulist(limits.mask & limits.cpuset or limits.cpuset)
    except (OSError, ValueError) as error:
        known["no_topology"] = str(error)
    return known


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Agent:
    """The ranks of this host."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._commands = Lines()

    def serve(self) -> int:
        """Say hello, run what the launcher asks for, and return the exit status."""
        self._send({"hello": facts()})
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._selector.register(0, selectors.EVENT_READ, None)
        self._selector.register(_wake_on_child(), selectors.EVENT_READ, None)
        try:
            return self._run()
        except BrokenPipeError:  # nobody listens any more
            return 1
        finally:
            kill_tree([process.pid for process in self._ranks.values()])

    def _run(self) -> int:
        started = False
        while not started or self._ranks:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._pass_on(key)
                    continue
                if key.fd != 0:
                    os.read(key.fd, _READ_BYTES)  # a child has ended
                    continue
                data = os.read(0, _READ_BYTES)
                if not data:
                    return 1
                for line in self._commands.feed(data):
                    message = decode(line) or {}
                    if "stop" in message:
                        return 1
                    if "signal" in message:
                        self._signal(message["signal"])
                    if "start" in message:
                        started = True
                        if not self._start(Start(**message["start"])):
                            return 1
            self._reap()
        return 0

    def _start(self, start: Start) -> bool:
        if not Path(start.folder).is_dir():
            problem = f"there is no folder {start.folder}: the run's files must be on a shared file system"
            self._send({"problem": problem})
            return False
        # A file without a name, which only these processes have, and which is read like any secret file.
        secret = os.memfd_create("cktrain secret")
        os.fchmod(secret, 0o600)
        os.write(secret, bytes.fromhex(start.secret))
        for local_rank in range(start.ranks):
            rank = start.first + local_rank
            environment = {
                **os.environ,
                **start.environment,
                "CKTRAIN_SECRET_FILE": f"/proc/self/fd/{secret}",
                "CKTRAIN_RANK": str(rank),
                "CKTRAIN_SIZE": str(start.world),
                "CKTRAIN_LOCAL_RANK": str(local_rank),
                "CKTRAIN_LOCAL_SIZE": str(start.ranks),
                "PYTHONUNBUFFERED": "1",
            }
            process = subprocess.Popen(
                [sys.executable, "-c", START.format(module="cktrain.launch.cli"), *start.arguments],
                cwd=start.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[secret],
                start_new_session=True,
                preexec_fn=_begin_rank,
            )
            self._ranks[rank] = process
            for stream, error in ((process.stdout, False), (process.stderr, True)):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                self._selector.register(stream, selectors.EVENT_READ, (rank, error))
        os.close(secret)
        return True

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        """Send a piece of a rank's output."""
        rank, error = key.data
        try:
            data = os.read(key.fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._send({"rank": rank, "text": data.decode("utf-8", "surrogateescape"), "error": error})
        else:
            self._selector.unregister(key.fileobj)

    def _reap(self) -> None:
        """Tell of the ranks that have ended, after the last of their output.

        Of those that ended at the same time the killed ones come first: the others may have ended because of them.
        """
        ended = [(rank, process) for rank, process in self._ranks.items() if process.poll() is not None]
        for rank, process in sorted(ended, key=lambda pair: pair[1].returncode >= 0):
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                with contextlib.suppress(KeyError, ValueError):
                    while (key := self._selector.get_key(stream)) and _has_data(stream.fileno()):
                        self._pass_on(key)
                    self._selector.unregister(stream)
            del self._ranks[rank]
            kill_tree([process.pid], reaped=True)
            self._send({"rank": rank, "status": process.returncode})

    def take_signal(self, number: int, _frame: FrameType | None) -> None:
        """Hand it on to the ranks, which save; without ranks this process ends.

        Who stops a service or a job signals all of its processes. A rank may get the same twice then, which means no more
        than once, but for SIGINT: that becomes SIGTERM here.
        """
        if not self._ranks:
            sys.exit(128 + number)
        self._signal(signal.SIGTERM if number == signal.SIGINT else number)

    def _signal(self, number: int) -> None:
        for process in self._ranks.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _send(self, message: dict[str, Any]) -> None:
        data = encode(message)
        while data:
            data = data[os.write(self._out, data) :]


def _wake_on_child() -> int:
    """A descriptor that can be read when a child has ended."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored signals do not wake
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _has_data(fd: int) -> bool:
    with selectors.DefaultSelector() as one:
        one.register(fd, selectors.EVENT_READ)
        return bool(one.select(0))


def _begin_rank() -> None:
    """In the child: end with the agent, and hold signals back until the rank has handlers for them (`cli.main`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def kill_tree(leaders: list[int], *, reaped: bool = False) -> None:
    """Kill the process groups of `leaders`; and unless ranks are left, whatever was handed to this process."""
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    if reaped:
        return
    while children := _children():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """Processes whose parent this one is, the ended ones included."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            _, parent, *_ = (directory / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == os.getpid():
                found.append(int(directory.name))
    return found


def main() -> int:
    """Serve the launcher on standard input and output; what else is printed goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    agent = Agent(out)
    for number in catchable():
        signal.signal(number, agent.take_signal)
    try:
        return agent.serve()
    except BrokenPipeError:
        return 1
